"""A term that sets in later."""

from jaxtyping import Float
from torch import Tensor

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Delayed"]


class Delayed(Term):
    """Another term, which is 0 in the batches before `from_batch`; until then nobody asks the student for its sake.

    FastDFKD's adversarial term starts when its warm-up ends: before, the student has learnt nothing to disagree about.

    Args:
        term: The other term; its weight is this one's.
        from_batch: Number, from 1, of the first batch with the term.
    """

    def __init__(self, term: Term, from_batch: int = 20) -> None:
        super().__init__(term.weight)
        self.averages, self.combined = term.averages, term.combined
        if not isinstance(from_batch, int) or from_batch < 1:
            raise ConfigError("synthesizer...from_batch", from_batch, "an integer >= 1")
        self.term, self.from_batch, self.batch = term, from_batch, 1
        self.student = term.student and self.begun

    @property
    def begun(self) -> bool:
        """Whether the batch at hand has the term."""
        return self.batch >= self.from_batch

    def check(self, ensemble: Ensemble) -> None:
        """As the other term."""
        self.term.check(ensemble)

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The other term, or 0."""
        return self.term(seen) if self.begun else seen.teacher.new_zeros(())

    def finish(self) -> None:
        """Count the batch."""
        self.batch += 1
        self.student = self.term.student and self.begun
        self.term.finish()

    def state_dict(self, scene: Scene) -> Tree:
        """The count, and the other term's memory."""
        return {"batch": self.batch, "term": self.term.state_dict(scene)}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.batch = state["batch"]
        self.student = self.term.student and self.begun
        self.term.load_state_dict(state["term"], scene)
