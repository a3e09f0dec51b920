"""What a bad client may do; the base does nothing bad."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fl_cmi.types import ConfigError, Images, State

__all__ = ["Attack", "parameters_changed", "target_class"]


class Attack:
    """Honest work, in three places where an attack may do something else.

    All of it happens on the client, from its own random streams, so that it is the same on every backend.
    """

    def team(self, client: int, bad: Sequence[int]) -> tuple[int, ...]:
        """Clients whose images are trained on, ascending; the first one's random streams are used.

        Args:
            client: A bad client.
            bad: All of them, ascending.
        """
        return (client,)

    def images(self, images: Images, rng: torch.Generator) -> Images:
        """What is trained on, and counted in what the client tells of its labels."""
        return images

    def state(self, model: nn.Module, start: State, rng: torch.Generator) -> State:
        """What is sent.

        Args:
            model: As trained.
            start: Its state before, on the CPU.
            rng: The attack's own draws of the round.

        Returns:
            A state of the model, on the CPU.
        """
        return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

    def wanted(self, test: Images) -> Images | None:
        """Test images, each with the label that the attack wants it to get, to measure its success; None: none."""
        return None


def parameters_changed(model: nn.Module, changed: dict[str, Tensor]) -> State:
    """The model's state with other parameters; buffers, such as batch norm's statistics, as trained."""
    return {**Attack().state(model, {}, torch.Generator()), **changed}


def target_class(target: int, num_classes: int) -> int:
    """The class that an attack aims at.

    Raises:
        ConfigError: If there is no such class.
    """
    if not 0 <= target < num_classes:
        raise ConfigError("attacks...target", target, f"a class, 0 to {num_classes - 1}")
    return target
