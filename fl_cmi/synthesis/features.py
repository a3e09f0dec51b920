"""What stands for an image in the contrastive term: features of the teachers.

Features of several clients are put side by side: models trained apart share no axes to average over.

Shape letters: K teachers, B batch, D width of the features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.batchnorm import Seen, pooled_inputs
from fl_cmi.rng import stream
from fl_cmi.types import ConfigError

__all__ = ["BatchNormInputs", "FeatureMap", "Penultimate", "RandomProjection", "Shown"]


class Shown(Protocol):
    """What a forward pass of every teacher showed."""

    @property
    def seen(self) -> Sequence[Seen]:
        """Inputs of the batch-norm layers, one entry per teacher."""
        ...

    @property
    def features(self) -> Sequence[Float[Tensor, "batch _"]]:
        """Inputs of the classifier, one entry per teacher."""
        ...


class FeatureMap(Protocol):
    """One row of features per image."""

    @property
    def needs_batch_norm(self) -> bool:
        """Whether teachers without batch norm must be refused."""
        ...

    def __call__(self, shown: Shown) -> Float[Tensor, "batch width"]:
        """The features."""
        ...


@dataclass(frozen=True)
class BatchNormInputs:
    """Spatial means of the inputs of all batch-norm layers (CMI), or of the last ones only.

    Args:
        last: Number of layers at the end of each teacher, >= 1; None: all.
    """

    last: int | None = None
    needs_batch_norm = True

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ConfigError("synthesizer...contrast.features.last", self.last, "an integer >= 1, or null")

    def __call__(self, shown: Shown) -> Float[Tensor, "batch width"]:
        """Layers side by side, teacher by teacher."""
        first = 0 if self.last is None else -self.last
        chosen = (dict(list(seen.items())[first:]) for seen in shown.seen)
        return torch.cat([pooled_inputs(seen) for seen in chosen], dim=1)


@dataclass(frozen=True)
class Penultimate:
    """What the classifier sees; needs no batch norm."""

    needs_batch_norm = False

    def __call__(self, shown: Shown) -> Float[Tensor, "batch width"]:
        """Teacher by teacher."""
        return torch.cat(list(shown.features), dim=1)


@dataclass(frozen=True)
class RandomProjection:
    """`f R / sqrt(width)` with a fixed R ~ N(0, 1): the bank's memory no longer grows with the clients.

    Distances are kept up to a factor `1 +- sqrt(8 ln n / width)` for n images (Johnson and Lindenstrauss 1984).

    Args:
        width: Width of the features, >= 1.
        of: What is projected.
    """

    width: int = 256
    of: FeatureMap = field(default_factory=BatchNormInputs)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError("synthesizer...contrast.features.width", self.width, "an integer >= 1")

    @property
    def needs_batch_norm(self) -> bool:
        """As what is projected."""
        return self.of.needs_batch_norm

    def __call__(self, shown: Shown) -> Float[Tensor, "batch width"]:
        """The same R for every batch of the same width."""
        f = self.of(shown)
        return f @ projection(f.shape[1], self.width).to(f) / self.width**0.5


@lru_cache(maxsize=8)
def projection(rows: int, width: int) -> Float[Tensor, "rows width"]:
    """R, drawn once for all steps: not to be written to."""
    return torch.randn(rows, width, generator=stream(0, "projection", rows))
