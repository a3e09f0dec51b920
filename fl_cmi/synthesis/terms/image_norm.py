"""The norm term: images should stay close to the data set's mean."""

from jaxtyping import Float
from torch import Tensor

from fl_cmi.synthesis.terms.term import Look, Term

__all__ = ["ImageNorm"]


class ImageNorm(Term):
    """`L_2 = ||x||`, the plain 2-norm of the whole batch of normalized pixels; it grows with the root of the batch.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795 (weight 0 on CIFAR-10).

    Args:
        weight: Factor of the term, >= 0.
    """

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__(weight)

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The norm."""
        return seen.normalized.norm()
