"""The adversarial term: images on which the student errs."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fl_cmi.losses import kl_divergence
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Adversarial"]


class Adversarial(Term):
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
        super().__init__(weight)
        if mask not in ("agree", "disagree", "none"):
            raise ConfigError("synthesizer...adv.mask", mask, "one of agree, disagree, none")
        self.mask = mask

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The masked, negated divergence."""
        assert seen.student is not None
        agree = seen.teacher.argmax(dim=1) == seen.student.argmax(dim=1)
        mask = {"agree": agree, "disagree": ~agree, "none": None}[self.mask]
        return -kl_divergence(seen.teacher, seen.student, weight=mask)
