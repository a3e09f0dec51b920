"""RDSKD's weighing of losses: each by the exponential of its rise."""

import math

from jaxtyping import Float
from torch import Tensor

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["ExpIncrement"]


class ExpIncrement(Term):
    """`exp(L - ref)` of another term L: a loss that has risen above its reference pulls the harder for it.

    ref is 0 at first. Steps are counted in epochs of `every`; at index 1 of each, the second step, the value of L
    becomes ref for the steps after it (the step itself still has the old one), until the next epoch's. A reference
    renewed at every step would make the term a constant 1 with the gradient of L: a plain sum.

    References:
        P. Han et al., *Robustness and Diversity Seeking Data-Free Knowledge Distillation*, ICASSP 2021, arXiv
        2011.03749 (exponentially penalized increments), released code.

    Args:
        term: L; its weight is this one's, and what it remembers it goes on remembering.
        every: Steps in an epoch, >= 2.
        max_exponent: Largest exponent (5 is a good one), beyond which the term is flat; None, the paper's, has none.
    """

    def __init__(self, term: Term, every: int = 120, max_exponent: float | None = None) -> None:
        super().__init__(term.weight)
        self.averages, self.combined = term.averages, term.combined
        if not isinstance(every, int) or every < 2:
            raise ConfigError("synthesizer...every", every, "an integer >= 2")
        self.term, self.every = term, every
        self.max_exponent = math.inf if max_exponent is None else max_exponent
        self.student = term.student
        self.index = 0
        self.reference = 0.0

    def check(self, ensemble: Ensemble) -> None:
        """As the other term."""
        self.term.check(ensemble)

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The exponential of the increment; counts the step."""
        loss = self.term(seen)
        value = (loss - self.reference).clamp(max=self.max_exponent).exp()
        if self.index == 1:
            self.reference = loss.item()
        self.index = (self.index + 1) % self.every
        return value

    def finish(self) -> None:
        """As the other term."""
        self.term.finish()

    def state_dict(self, scene: Scene) -> Tree:
        """Step, reference, and the other term's memory."""
        return {"index": self.index, "reference": self.reference, "term": self.term.state_dict(scene)}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.index, self.reference = state["index"], state["reference"]
        self.term.load_state_dict(state["term"], scene)
