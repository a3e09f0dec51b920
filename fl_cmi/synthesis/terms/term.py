"""What a term of an inversion loss is, and what it is a function of.

Shape letters: K teachers, B batch, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fl_cmi.batchnorm import Seen
from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import ConfigError, Task

__all__ = ["Look", "Term", "look"]


@dataclass(frozen=True)
class Look:
    """What the models made of one augmented batch.

    Args:
        x: The images as the models saw them, in [0, 1].
        y: Labels that they are driven to (B,).
        teachers_KBC: Each teacher's logits.
        teacher: Combined logits (B, C).
        seen: Inputs of the batch-norm layers, one entry per teacher.
        features: Inputs of the classifier (B, D_k), one entry per teacher.
        student: The student's logits (B, C), or None where no term asks for them.
        task: Shape, classes and the normalization of the images.
    """

    x: Float[Tensor, "batch channels height width"]
    y: Int[Tensor, " batch"]
    teachers_KBC: Float[Tensor, "teachers batch classes"]
    teacher: Float[Tensor, "batch classes"]
    seen: Sequence[Seen]
    features: Sequence[Float[Tensor, "batch _"]]
    student: Float[Tensor, "batch classes"] | None
    task: Task

    @property
    def normalized(self) -> Float[Tensor, "batch channels height width"]:
        """`(x - mean) / std` per channel: what a model's first convolution sees."""
        mean, std = (self.x.new_tensor(v)[:, None, None] for v in (self.task.mean, self.task.std))
        return (self.x - mean) / std


def look(
    ensemble: Ensemble,
    student: nn.Module | None,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " labels"],
    task: Task,
) -> Look:
    """One forward pass of every teacher, and of the student if given.

    A view may hold several copies of the batch, one after the other; the labels are repeated to match.
    """
    observed = ensemble.observe(x)
    logits_KBC = torch.stack(list(observed.logits))
    return Look(
        x,
        y.repeat(len(x) // len(y)),
        logits_KBC,
        ensemble.combine(logits_KBC, ensemble),
        observed.seen,
        observed.features,
        None if student is None else ensemble.run(student, x),
        task,
    )


class Term:
    """A scalar loss of a look; the inversion applies the weight.

    Args:
        weight: Factor of the term, >= 0; 0 leaves it out.

    Raises:
        ConfigError: For a negative weight, which would be left out as well.
    """

    student = False
    """Whether the term asks for the student's logits."""

    combined = False
    """Whether images follow the combined logits, so that the ensemble's rule must pass gradients on."""

    halves = False
    """Whether the term compares two halves of the batch, which must then be even."""

    averages = True
    """Whether what the term asks of the teachers one by one is their mean, so that some, drawn, stand for all."""

    def __init__(self, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ConfigError("synthesizer...weight", weight, "a number >= 0; 0 leaves the term out")
        self.weight = weight

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError if these teachers lack what the term needs."""

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The unweighted loss."""
        raise NotImplementedError

    def finish(self) -> None:
        """The batch is over: terms that remember something do it here."""

    def state_dict(self, scene: Scene) -> Tree:
        """What the term remembers from batch to batch: nothing, unless it says so."""
        return {}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        assert not state, "a memory without an owner"
