"""The classification term of Co-Boosting: hard images count for more."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["HardOneHot"]


class HardOneHot(Term):
    """`1/B sum_i (1 - p_i,y)^g * CE(t_i, y_i)`: the less the teachers believe in the label, the more it counts.

    p = softmax(t); the factor is detached, so it weighs the gradient and has none of its own.

    References:
        R. Dai et al., *Enhancing One-Shot Federated Learning Through Data and Ensemble Co-Boosting*, ICLR 2024.

    Args:
        weight: Factor of the term, >= 0.
        power: g >= 0; 0 is the plain term.
    """

    combined = True

    def __init__(self, weight: float = 1.0, power: float = 1.0) -> None:
        super().__init__(weight)
        if not power >= 0:
            raise ConfigError("synthesizer...oh.power", power, "a number >= 0")
        self.power = power

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The weighted cross-entropy, divided by the size of the batch."""
        losses = F.cross_entropy(seen.teacher, seen.y, reduction="none")
        # exp(-CE) is p_y; expm1 keeps the digits of 1 - p_y where p_y is close to 1.
        hardness = -torch.expm1(-losses.detach())
        return (hardness**self.power * losses).mean()
