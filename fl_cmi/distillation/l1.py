"""The distance of logits."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.types import ConfigError

__all__ = ["L1", "LogL1"]


class L1(DistillLoss):
    """`L = 1/B sum_i r_i`, with `r_i = 1/C sum_c |s_ic - t_ic|` or, by `reduction`, without the 1/C.

    Softmax does not see a constant added to all logits of an image, but this loss does: averages of probabilities come
    as log-probabilities, whose level the student has no reason to share. Centered, `z_ic - mean_c z_ic` takes the
    place of both sides, and the loss depends on the probabilities alone.

    References:
        Fang et al. 2019 (DFAD), arXiv 1912.11006, the student's loss.

    Args:
        reduction: `mean` over images and classes (DFAD: the gradient shrinks with C), or `sum_classes`.
        centered: Whether each row is centered first; for targets that are log-probabilities.
    """

    def __init__(self, reduction: Literal["mean", "sum_classes"] = "mean", centered: bool = False) -> None:
        if reduction not in ("mean", "sum_classes"):
            raise ConfigError("distiller.loss...reduction", reduction, "mean or sum_classes")
        self.reduction, self.centered = reduction, centered

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The distance."""
        distance = differences(answers, self.centered).abs()
        return distance.mean() if self.reduction == "mean" else distance.sum(dim=1).mean()


class LogL1(DistillLoss):
    """`L = ln( 1/(B C) sum_i sum_c |s_ic - t_ic| + 1 )`: the gradient fades where the distance is great.

    References:
        Fang et al. 2019 (DFAD), arXiv 1912.11006: the form of its generators for segmentation, with the sign turned.

    Args:
        centered: As for `L1`.
    """

    def __init__(self, centered: bool = False) -> None:
        self.centered = centered

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The logarithm of one more than the distance."""
        return differences(answers, self.centered).abs().mean().log1p()


def differences(answers: Answers, centered: bool) -> Float[Tensor, "batch classes"]:
    """`s - t`, which is centered where each side is."""
    found = answers.student - answers.target
    return found - found.mean(dim=1, keepdim=True) if centered else found
