"""What a distillation loss is, and what it is a function of.

Shape letters: B batch, C classes, D feature width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import State

__all__ = ["Answers", "DistillLoss"]


@dataclass(frozen=True)
class Answers:
    """What teachers and student answered to one batch, and what is known of its images.

    Args:
        target: Logits, or log-probabilities, that the student is to reproduce.
        student: The student's logits.
        student_features: What the student's classifier saw; None unless the loss needs features.
        teacher_features: What each teacher's classifier saw (B, D_k), without gradient; empty unless the loss needs
            features.
        index: Slots of the images in `pool` (on the CPU); None for images of no pool and for blends of two.
        y: The labels that the images were made for; None where they were made for none, and for blends.
        pool: Where the images come from; None as for `index`.
        student_layers: Outputs of the student's parts, in order of execution; empty unless the loss needs layers.
        teacher_layers: The same of each teacher, without gradient.
    """

    target: Float[Tensor, "batch classes"]
    student: Float[Tensor, "batch classes"]
    student_features: Float[Tensor, "batch features"] | None = None
    teacher_features: Sequence[Float[Tensor, "batch _"]] = ()
    index: Int[Tensor, " batch"] | None = None
    y: Int[Tensor, " batch"] | None = None
    pool: Pool | None = None
    student_layers: Sequence[Tensor] = ()
    teacher_layers: Sequence[Sequence[Tensor]] = ()


class DistillLoss(Protocol):
    """How far the student is from what it is asked to reproduce, and whatever helps to tell.

    A loss may own parameters, which are trained with the student's, and a memory of earlier batches. Each lesson works
    on a copy of its own, so a loss in a `Distiller` is a template. What is declared here serves those that own nothing.
    """

    needs_features: bool = False
    """Whether features are needed. Those of the teachers cost a forward pass where the targets come from a cache."""

    needs_layers: bool = False
    """Whether outputs of the models' parts are needed; as costly as features."""

    needs_pool: bool = False
    """Whether images must come from a pool, as they are: the loss tells them apart by slot or by label."""

    def check(self, ensemble: Ensemble, student: nn.Module) -> None:
        """Raise ConfigError where these teachers, or this student, lack what the loss needs; most need nothing."""
        return

    def begin(self, answers: Answers, rng: torch.Generator) -> Iterable[nn.Parameter]:
        """Make whatever depends on the models, at the first batch of a lesson, unless a checkpoint has brought it.

        Returns:
            The parameters to train along with the student.
        """
        return ()

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The loss of one batch; what it remembers is brought up to date."""
        ...

    def state_dict(self) -> State:
        """Parameters and memory, copied to the CPU."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state`."""
        assert not state

    def __str__(self) -> str:
        """The name in messages."""
        return type(self).__name__
