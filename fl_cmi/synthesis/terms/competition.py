"""The competition term of adaptive DeepInversion: images on which student and teachers disagree."""

from jaxtyping import Float
from torch import Tensor

from fl_cmi.losses import js_divergence
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Competition"]


class Competition(Term):
    """`L_adv = -JS(p_t, p_s)` at temperature T, of probabilities clamped to [.01, .99]; neither side is detached.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795.

    Args:
        weight: Factor of the term, >= 0.
        temperature: T > 0.
    """

    student = combined = True

    def __init__(self, weight: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__(weight)
        if not temperature > 0:
            raise ConfigError("synthesizer...competition.temperature", temperature, "a number > 0")
        self.temperature = temperature

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The negated divergence."""
        assert seen.student is not None
        return -js_divergence(seen.teacher, seen.student, self.temperature)
