"""What the student is asked to reproduce for a batch of the pool."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.bank import PoolBatch
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import ConfigError

__all__ = ["Cached", "Fresh", "Targets"]


class Targets(Protocol):
    """Target logits (B, C) for a batch of the pool, given the images as the student will see them."""

    def __call__(
        self, ensemble: Ensemble, batch: PoolBatch, seen: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]: ...


class Fresh:
    """The ensemble's logits for the augmented images (CMI, DENSE): K teacher passes a step."""

    @torch.no_grad()
    def __call__(
        self, ensemble: Ensemble, batch: PoolBatch, seen: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Combined logits of `seen`."""
        return ensemble(seen)


class Cached:
    """The labels that the pool has cached, sharpened and mixed with the label that the image was inverted for.

        q = (1 - m) P^s / sum_c P_c^s + m onehot(y)

    An ensemble of skewed clients is right but unsure (mean top probability about .4): flat targets teach slowly, and
    the inverted label is right where the ensemble is split. No teacher pass.

    Args:
        sharpen: s > 0; 1 leaves P as it is.
        mix: m in [0, 1].
    """

    def __init__(self, sharpen: float = 4.0, mix: float = 0.5) -> None:
        if sharpen <= 0:
            raise ConfigError("distiller.targets.sharpen", sharpen, "a number > 0")
        if not 0 <= mix <= 1:
            raise ConfigError("distiller.targets.mix", mix, "a number in [0, 1]")
        self.sharpen, self.mix = sharpen, mix

    def __call__(
        self, ensemble: Ensemble, batch: PoolBatch, seen: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """`log q`, on the device of `seen`."""
        labels = batch.labels.to(seen.device)
        sharp = (self.sharpen * labels).softmax(dim=1)
        hard = F.one_hot(batch.y.to(seen.device), labels.shape[1]).to(sharp)
        return ((1 - self.mix) * sharp + self.mix * hard).clamp(min=1e-12).log()
