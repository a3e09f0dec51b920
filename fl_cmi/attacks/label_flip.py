"""Training on wrong labels."""

from dataclasses import replace
from typing import Literal

import torch

from fl_cmi.attacks.attack import Attack
from fl_cmi.types import ConfigError, Images

__all__ = ["LabelFlip"]


class LabelFlip(Attack):
    """`y -> (y + 1) mod C`, or `y -> C - 1 - y`; label counts are told as flipped.

    References:
        Tolpegin et al. 2020, arXiv 2007.08432; Fang et al. 2020, arXiv 1911.11815, section 4.1, for `mirrored`.

    Args:
        to: `next` or `mirrored`.
    """

    def __init__(self, to: Literal["next", "mirrored"] = "next") -> None:
        if to not in ("next", "mirrored"):
            raise ConfigError("attacks.attack.to", to, "next or mirrored")
        self.to = to

    def images(self, images: Images, rng: torch.Generator) -> Images:
        """The same images, every label wrong (but the middle one of an odd number, mirrored)."""
        classes = images.num_classes
        y = (images.y + 1) % classes if self.to == "next" else classes - 1 - images.y
        return replace(images, y=y)

    def wanted(self, test: Images) -> Images:
        """Every image in its wrong class."""
        return self.images(test, torch.Generator())
