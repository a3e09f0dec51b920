"""Soft labels: the divergence of the student's probabilities from the teacher's."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.losses import kl_divergence
from fl_cmi.types import ConfigError

__all__ = ["KL"]


class KL(DistillLoss):
    """`L = T^2 / B sum_i sum_c p_ic ln(p_ic / q_ic)`, p and q the softmax of target / T and of student / T.

    References:
        Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.

    Args:
        temperature: T > 0. CMI, FastDFKD and DENSE use 20, RDSKD 10, CRD and Co-Boosting 4, FedDF and the generator
            family (DAFL, ZSKT, DFQ) 1.
        reduction: `sum_classes` divides by B; `mean` divides by C as well (The Knowledge Within, which makes up for it
            by its learning rate).
    """

    def __init__(
        self, temperature: float = 20.0, reduction: Literal["sum_classes", "mean"] = "sum_classes"
    ) -> None:
        if temperature <= 0:
            raise ConfigError("distiller.loss...temperature", temperature, "a number > 0")
        if reduction not in ("sum_classes", "mean"):
            raise ConfigError("distiller.loss...reduction", reduction, "sum_classes or mean")
        self.temperature, self.reduction = temperature, reduction

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The divergence, in nats."""
        loss = kl_divergence(answers.target, answers.student, self.temperature)
        return loss / answers.target.shape[1] if self.reduction == "mean" else loss
