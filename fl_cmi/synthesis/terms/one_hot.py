"""The classification term."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.synthesis.terms.term import Look, Term

__all__ = ["OneHot"]


class OneHot(Term):
    """`L_oh = CE(t, y)`: the teachers should be sure of the label that the image is driven to."""

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """Cross-entropy, averaged over the batch."""
        return F.cross_entropy(seen.teacher, seen.y)
