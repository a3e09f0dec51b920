"""The symmetric divergence of the student's probabilities from the teacher's."""

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.losses import js_divergence
from fl_cmi.types import ConfigError

__all__ = ["JS"]


class JS(DistillLoss):
    """`L = KL(M || P) / 2 + KL(M || Q) / 2` with `M = (P + Q) / 2`, summed over classes, averaged over the batch.

    P and Q are the softmax of student / T and of target / T; P, Q and M are clamped to [.01, .99], so they need not sum
    to 1, and a class that both sides are sure about gives no gradient.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795, the divergence of its adaptive competition.

    Args:
        temperature: T > 0.
        floor: Least probability, in (0, .5); 1 - floor is the greatest.
    """

    def __init__(self, temperature: float = 3.0, floor: float = 0.01) -> None:
        if temperature <= 0:
            raise ConfigError("distiller.loss...temperature", temperature, "a number > 0")
        if not 0 < floor < 0.5:
            raise ConfigError("distiller.loss...floor", floor, "a number in (0, 0.5)")
        self.temperature, self.floor = temperature, floor

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The divergence, in nats."""
        return js_divergence(answers.student, answers.target, self.temperature, self.floor)
