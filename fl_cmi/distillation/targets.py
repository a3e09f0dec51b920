"""What the student is asked to reproduce."""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fl_cmi.ensemble import Ensemble, owner_weights
from fl_cmi.types import ConfigError

__all__ = ["Fresh", "Owners", "Sharpened", "Targets"]


class Targets(Protocol):
    """Target logits (B, C) for a batch of images as the student will see them; teachers are asked about these only.

    Args:
        ensemble: The teachers.
        seen: The images, augmented and perhaps mixed.
        labels: Log-probabilities that the pool has cached, or None where there are none or mixing made them void.
        aims: One-hot labels that the images were inverted for, mixed as the images are; None where there are none.
    """

    needs_pool: bool
    """Whether the images must come from a pool, which knows what they were inverted for."""

    reads_labels: bool
    """Whether labels that the pool has cached are used, which must then be those of the ensemble as it is."""

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError where these teachers lack what the targets need."""
        ...

    def __call__(
        self,
        ensemble: Ensemble,
        seen: Float[Tensor, "batch channels height width"],
        labels: Float[Tensor, "batch classes"] | None,
        aims: Float[Tensor, "batch classes"] | None,
    ) -> Float[Tensor, "batch classes"]:
        """The targets."""
        ...


class Fresh:
    """The ensemble's logits for the augmented images (CMI, DENSE): K teacher passes a step."""

    needs_pool = reads_labels = False

    def check(self, ensemble: Ensemble) -> None:
        """Any teachers will do."""

    @torch.no_grad()
    def __call__(
        self,
        ensemble: Ensemble,
        seen: Float[Tensor, "batch channels height width"],
        labels: Float[Tensor, "batch classes"] | None,
        aims: Float[Tensor, "batch classes"] | None,
    ) -> Float[Tensor, "batch classes"]:
        """Combined logits of `seen`."""
        return ensemble(seen)


class Sharpened:
    """The ensemble's probabilities P, sharpened and mixed with the label that the image was inverted for.

        q = max(floor, (1 - m) P^s / sum_c P_c^s + m onehot(y))

    An ensemble of skewed clients is right but unsure (mean top probability about .4): flat targets teach slowly, and
    the inverted label is right where the ensemble is split. P comes from the pool's cache where it can; only mixed
    images cost a pass of every teacher.

    Args:
        sharpen: s > 0; 1 leaves P as it is.
        mix: m in [0, 1].
        floor: Least probability, in (0, 1): sharpening takes most classes to 0, and targets are logarithms. KL hardly
            sees it; losses on logits do, for it is the level that they pull those classes to.
    """

    needs_pool = reads_labels = True

    def __init__(self, sharpen: float = 4.0, mix: float = 0.5, floor: float = 1e-12) -> None:
        if sharpen <= 0:
            raise ConfigError("distiller.targets.sharpen", sharpen, "a number > 0")
        if not 0 <= mix <= 1:
            raise ConfigError("distiller.targets.mix", mix, "a number in [0, 1]")
        if not 0 < floor < 1:
            raise ConfigError("distiller.targets.floor", floor, "a number in (0, 1)")
        self.sharpen, self.mix, self.floor = sharpen, mix, floor

    def check(self, ensemble: Ensemble) -> None:
        """Any teachers will do."""

    def __call__(
        self,
        ensemble: Ensemble,
        seen: Float[Tensor, "batch channels height width"],
        labels: Float[Tensor, "batch classes"] | None,
        aims: Float[Tensor, "batch classes"] | None,
    ) -> Float[Tensor, "batch classes"]:
        """`log q`."""
        assert aims is not None, "checked by the schedule"
        labels = ensemble.label(seen) if labels is None else labels
        sharp = (self.sharpen * labels).softmax(dim=1)
        return ((1 - self.mix) * sharp + self.mix * aims).clamp(min=self.floor).log()


class Owners:
    """`q = sum_k W_yk softmax(t_k)`, `W_yk = n_k(y) / sum_j n_j(y)`: who owns an image's class says what it shows.

    One weight for an image, by the label that it was made for; `combine=by_class_counts` has one for each class that a
    teacher speaks of. Needs label counts.

    References:
        Zhang et al. 2022 (FedFTG), CVPR, arXiv 2203.09249, class-level ensemble.

    Args:
        floor: Least probability, in (0, 1), because targets are logarithms.
    """

    needs_pool, reads_labels = True, False

    def __init__(self, floor: float = 1e-12) -> None:
        if not 0 < floor < 1:
            raise ConfigError("distiller.targets.floor", floor, "a number in (0, 1)")
        self.floor = floor

    def check(self, ensemble: Ensemble) -> None:
        """Label counts are needed."""
        self.counts(ensemble)

    def counts(self, ensemble: Ensemble) -> Int[Tensor, "teachers classes"]:
        """The n_k(c)."""
        return ensemble.require_class_counts("distiller.targets=Owners")

    @torch.no_grad()
    def __call__(
        self,
        ensemble: Ensemble,
        seen: Float[Tensor, "batch channels height width"],
        labels: Float[Tensor, "batch classes"] | None,
        aims: Float[Tensor, "batch classes"] | None,
    ) -> Float[Tensor, "batch classes"]:
        """`log q`."""
        assert aims is not None, "checked by the schedule"
        weight_KC = owner_weights(self.counts(ensemble)).to(aims)
        p_KBC = ensemble.logits(seen).softmax(dim=2)
        q_BC = torch.einsum("kc,bc,kbd->bd", weight_KC, aims, p_KBC)
        return q_BC.clamp(min=self.floor).log()
