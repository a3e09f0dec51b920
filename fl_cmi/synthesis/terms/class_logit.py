"""The class term of The Knowledge Within's Inception images."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["ClassLogit"]


class ClassLogit(Term):
    """`L_I = exp(-a m)` with `m = mean_b t_{b, y_b}`: the logit of the label, averaged over the batch, should be large.

    Next to one, `a` being small: its pull on a single logit is a / B at most of exp(-a m). The alternatives are
    `-a m` (`logit`) and `a CE(t, y)` (`cross_entropy`). Rules that combine probabilities give log-probabilities for t,
    whose mean has 0 as its upper end.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274.

    Args:
        weight: Factor of the term, >= 0.
        scale: a > 0.
        form: `exp`, `logit` or `cross_entropy`.
    """

    combined = True

    def __init__(
        self,
        weight: float = 1.0,
        scale: float = 4e-4,
        form: Literal["exp", "logit", "cross_entropy"] = "exp",
    ) -> None:
        super().__init__(weight)
        if not scale > 0:
            raise ConfigError("synthesizer...inception.scale", scale, "a number > 0")
        if form not in ("exp", "logit", "cross_entropy"):
            raise ConfigError("synthesizer...inception.form", form, "one of exp, logit, cross_entropy")
        self.scale, self.form = scale, form

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The term in the chosen form."""
        if self.form == "cross_entropy":
            return self.scale * F.cross_entropy(seen.teacher, seen.y)
        exponent = -self.scale * seen.teacher.gather(1, seen.y[:, None]).mean()
        return exponent.exp() if self.form == "exp" else exponent
