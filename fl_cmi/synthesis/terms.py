"""The terms of an inversion loss: functions of what the models made of one batch.

Shape letters: K teachers, B batch, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.batchnorm import Seen, observe, statistics_distance
from fl_cmi.ensemble import Ensemble
from fl_cmi.losses import kl_divergence
from fl_cmi.types import ConfigError

__all__ = ["Adversarial", "BatchNorm", "Look", "OneHot", "Term", "look"]


@dataclass(frozen=True)
class Look:
    """What the models made of one augmented batch.

    Args:
        y: Labels that the batch is driven to (B,).
        teacher: Combined logits (B, C).
        seen: Inputs of the batch-norm layers, one entry per teacher.
        student: The student's logits (B, C), or None where no term asks for them.
    """

    y: Int[Tensor, " batch"]
    teacher: Float[Tensor, "batch classes"]
    seen: Sequence[Seen]
    student: Float[Tensor, "batch classes"] | None


def look(ensemble: Ensemble, student: nn.Module | None, x: Tensor, y: Tensor) -> Look:
    """One forward pass of every teacher, and of the student if given."""
    seen: list[Seen] = []
    logits = []
    for model in ensemble.models:
        with observe(model) as inputs:
            logits.append(model(x))
        seen.append(inputs)
    combined = ensemble.combine(torch.stack(logits), ensemble)
    return Look(y, combined, seen, None if student is None else student(x))


class Term(Protocol):
    """A scalar loss of a look. `weight` is applied by the inversion; `student` says whether it needs the student."""

    weight: float
    student: bool

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError if these teachers lack what the term needs."""
        ...

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The unweighted loss."""
        ...


class BatchNorm:
    """`L_bn`: distance of the batch's statistics from the running ones, summed over layers, averaged over clients.

    Each client with its own statistics, never averaged ones. The mean keeps the weight's meaning at any number of
    clients: the sum of ten would swamp the classification term.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795, equation 4.

    Args:
        weight: Factor of the term, >= 0.
    """

    student = False

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher needs batch norm; the loss over zero layers would silently be 0."""
        for teacher, layers in zip(ensemble.teachers, ensemble.batch_norm_counts, strict=True):
            if layers == 0:
                name = type(teacher.model).__name__
                raise ConfigError(
                    "synthesizer...bn.weight",
                    self.weight,
                    f"no batch-norm term, because client {teacher.client}'s model ({name}) has no batch norm;"
                    " remove the term or choose another model",
                )

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean over teachers of `statistics_distance`."""
        return torch.stack([statistics_distance(inputs) for inputs in seen.seen]).mean()


class OneHot:
    """`L_oh = CE(t, y)`: the teachers should be sure of the label that the image is driven to.

    Args:
        weight: Factor of the term, >= 0.
    """

    student = False

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def check(self, ensemble: Ensemble) -> None:
        """Nothing is needed."""

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """Cross-entropy, averaged over the batch."""
        return F.cross_entropy(seen.teacher, seen.y)


class Adversarial:
    """`L_adv = -1/B sum_i m_i KL(p_t,i || p_s,i)` at T = 1: images on which the student disagrees.

    The mask m decides where to push student and teacher apart: only where they still `agree` (CMI), only where they
    already `disagree` (DENSE), or everywhere (`none`: Co-Boosting, DFQ). Divided by B and not by the sum of the mask;
    neither side is detached.

    References:
        Fang et al. 2021 (CMI), released code.

    Args:
        weight: Factor of the term, >= 0.
        mask: `agree`, `disagree` or `none`.
    """

    student = True

    def __init__(self, weight: float = 0.5, mask: Literal["agree", "disagree", "none"] = "agree") -> None:
        if mask not in ("agree", "disagree", "none"):
            raise ConfigError("synthesizer...adv.mask", mask, "one of agree, disagree, none")
        self.weight, self.mask = weight, mask

    def check(self, ensemble: Ensemble) -> None:
        """Nothing is needed of the teachers."""

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The masked, negated divergence."""
        assert seen.student is not None
        agree = seen.teacher.argmax(dim=1) == seen.student.argmax(dim=1)
        mask = {"agree": agree, "disagree": ~agree, "none": None}[self.mask]
        return -kl_divergence(seen.teacher, seen.student, weight=mask)
