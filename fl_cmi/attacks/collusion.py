"""Bad clients that send one and the same wrong model."""

from collections.abc import Sequence

import torch
from torch import nn

from fl_cmi.attacks.attack import Attack
from fl_cmi.attacks.label_flip import LabelFlip
from fl_cmi.types import Images, State

__all__ = ["Collusion"]


class Collusion(Attack):
    """All bad clients pool their images and attack as one: the same images, draws and model from each.

    Rules that believe whoever agrees with others are what this is for. Models are the same where the bad clients have
    one architecture and start alike; sizes and label counts are those of the pooled images.

    Args:
        attack: What they do together; None: `LabelFlip`.
    """

    def __init__(self, attack: Attack | None = None) -> None:
        self.attack = LabelFlip() if attack is None else attack

    def team(self, client: int, bad: Sequence[int]) -> tuple[int, ...]:
        """All of them."""
        return tuple(bad)

    def images(self, images: Images, rng: torch.Generator) -> Images:
        """As the attack."""
        return self.attack.images(images, rng)

    def state(self, model: nn.Module, start: State, rng: torch.Generator) -> State:
        """As the attack."""
        return self.attack.state(model, start, rng)

    def wanted(self, test: Images) -> Images | None:
        """As the attack."""
        return self.attack.wanted(test)
