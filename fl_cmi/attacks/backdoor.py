"""A sign that makes the model see what the attacker likes."""

import torch
from torch import Tensor

from fl_cmi.attacks.attack import Attack, target_class
from fl_cmi.types import ConfigError, Images

__all__ = ["Backdoor"]


class Backdoor(Attack):
    """A share of the images gets a white patch, in the lower right corner, and the target's label.

    Success is the share of test images of other classes that are put into the target class once they have the patch.

    References:
        Gu et al. 2017 (BadNets), arXiv 1708.06733; Bagdasaryan et al. 2020, arXiv 1807.00459.

    Args:
        target: The class, from 0.
        share: Of the client's images, rounded up, in [0, 1].
        size: Of the patch, in pixels, >= 1 and at most the image's.
    """

    def __init__(self, target: int = 0, share: float = 0.5, size: int = 3) -> None:
        if not 0 <= share <= 1:
            raise ConfigError("attacks...share", share, "a number in [0, 1]")
        if size < 1:
            raise ConfigError("attacks...size", size, "an integer >= 1")
        self.target, self.share, self.size = target, share, size

    def images(self, images: Images, rng: torch.Generator) -> Images:
        """Some of the images with the patch."""
        number = -int(-self.share * len(images) // 1)
        return self.patched(images, torch.randperm(len(images), generator=rng)[:number])

    def wanted(self, test: Images) -> Images:
        """The images of other classes, all of them with the patch."""
        others = test.subset(torch.nonzero(test.y != target_class(self.target, test.num_classes))[:, 0])
        return self.patched(others, torch.arange(len(others)))

    def patched(self, images: Images, rows: Tensor) -> Images:
        """A copy with the patch and the target's label in these rows."""
        target = target_class(self.target, images.num_classes)
        if self.size > min(images.shape[1:]):
            raise ConfigError("attacks...size", self.size, f"at most {min(images.shape[1:])} pixels")
        x, y = images.x.clone(), images.y.clone()
        corner = x[rows]
        corner[:, :, -self.size :, -self.size :] = 255 if x.dtype == torch.uint8 else 1.0
        x[rows], y[rows] = corner, target
        return Images(x, y, images.num_classes)
