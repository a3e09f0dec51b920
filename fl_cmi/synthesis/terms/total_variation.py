"""The total-variation term: neighboring pixels should be alike."""

from jaxtyping import Float
from torch import Tensor

from fl_cmi.synthesis.terms.term import Look, Term

__all__ = ["TotalVariation"]


class TotalVariation(Term):
    """`L_tv = sum over directions of the mean of |x_ij - x_neighbor|`, on normalized pixels.

    The directions are right, down and, unless switched off, both diagonals; each mean is over batch, channels and all
    pairs of that direction.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795 (weight .001, l1).

    Args:
        weight: Factor of the term, >= 0.
        diagonals: Whether diagonal neighbors count too.
    """

    def __init__(self, weight: float = 1e-3, diagonals: bool = True) -> None:
        super().__init__(weight)
        self.diagonals = diagonals

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The l1 total variation."""
        x = seen.normalized
        total = (x[..., :, 1:] - x[..., :, :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
        if self.diagonals:
            falling = (x[..., 1:, 1:] - x[..., :-1, :-1]).abs().mean()
            rising = (x[..., 1:, :-1] - x[..., :-1, 1:]).abs().mean()
            total = total + falling + rising
        return total
