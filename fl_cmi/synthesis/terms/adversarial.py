"""The adversarial term: images on which the student errs."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from fl_cmi.losses import kl_divergence
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Adversarial"]


class Adversarial(Term):
    """Images on which the student disagrees: `L_adv = -D(t, s)`, by a divergence and a mask m_i of the images.

        kl:      D = T^2/B sum_i m_i KL(softmax(t_i / T) || softmax(s_i / T))     (CMI, ZSKT, DFQ, DENSE, Co-Boosting)
        l1:      D = 1/(B C) sum_i m_i sum_c |t_ic - s_ic|,  on raw logits         (DFAD, classification)
        log_l1:  D = log(1 + l1)                                                   (DFAD, segmentation)

    The mask decides where to push student and teacher apart: only where they still `agree` (CMI), only where they
    already `disagree` (DENSE), or everywhere (`none`: all others). Divided by B and not by the sum of the mask; neither
    side is detached. With mask none and divergence l1 or log_l1 it is the negative of the student's own loss L1 or
    LogL1, if both are centered or neither is.

    References:
        Fang et al. 2021 (CMI), released code; Fang et al. 2019 (DFAD), arXiv 1912.11006.

    Args:
        weight: Factor of the term, >= 0.
        mask: `agree`, `disagree` or `none`.
        divergence: `kl`, `l1` or `log_l1`.
        temperature: T > 0 of `kl`.
        centered: Whether `z_ic - mean_c z_ic` takes the place of both sides in `l1` and `log_l1`: for rules that
            average probabilities, whose logarithms come without the teachers' level. `kl` does not see the level.
    """

    student = combined = True

    def __init__(
        self,
        weight: float = 0.5,
        mask: Literal["agree", "disagree", "none"] = "agree",
        divergence: Literal["kl", "l1", "log_l1"] = "kl",
        temperature: float = 1.0,
        centered: bool = False,
    ) -> None:
        super().__init__(weight)
        if mask not in ("agree", "disagree", "none"):
            raise ConfigError("synthesizer...adv.mask", mask, "one of agree, disagree, none")
        if divergence not in ("kl", "l1", "log_l1"):
            raise ConfigError("synthesizer...adv.divergence", divergence, "one of kl, l1, log_l1")
        if not temperature > 0:
            raise ConfigError("synthesizer...adv.temperature", temperature, "a number > 0")
        self.mask, self.divergence, self.temperature = mask, divergence, temperature
        self.centered = centered

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The masked, negated divergence."""
        assert seen.student is not None
        agree = seen.teacher.argmax(dim=1) == seen.student.argmax(dim=1)
        mask = {"agree": agree, "disagree": ~agree, "none": None}[self.mask]
        if self.divergence == "kl":
            return -kl_divergence(seen.teacher, seen.student, self.temperature, mask)
        apart = seen.teacher - seen.student
        if self.centered:
            apart = apart - apart.mean(dim=1, keepdim=True)
        distance = mean_size(apart, mask)
        return -distance if self.divergence == "l1" else -distance.log1p()


def mean_size(
    apart: Float[Tensor, "batch classes"], mask: Bool[Tensor, " batch"] | None
) -> Float[Tensor, ""]:
    """`1/(B C) sum_i m_i sum_c |d_ic|`."""
    per_sample = apart.abs().mean(dim=1)
    return (per_sample if mask is None else per_sample * mask).mean()
