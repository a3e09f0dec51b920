"""The activation term: real images excite a teacher's features."""

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.synthesis.terms.term import Look, Term

__all__ = ["Activation"]


class Activation(Term):
    """`L_a = -1/K sum_k mean_{b,d} |f_k,bd|`, f_k the penultimate features of teacher k.

    Averaged over teachers one by one, because their features may differ in width.

    References:
        Chen et al. 2019 (DAFL), arXiv 1904.01186 (as in DataFree: the mean over features).

    Args:
        weight: Factor of the term, >= 0 (DAFL: .001, DataFree's).
    """

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The negative mean magnitude."""
        return -torch.stack([features.abs().mean() for features in seen.features]).mean()
