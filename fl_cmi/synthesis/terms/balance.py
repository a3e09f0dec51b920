"""The class-balance term: together, the images of a batch should show all classes."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.synthesis.terms.term import Look, Term

__all__ = ["ClassBalance"]

NEVER = -1000.0
"""A log-probability whose exponential is 0, but whose product with it is 0 too, and not NaN."""


class ClassBalance(Term):
    """`L_ie = sum_c pbar_c log pbar_c`, pbar the batch mean of softmax(t): in [-log C, 0], least at even classes.

    The negative entropy of the mean, and not the mean of entropies: each image may be sure of its class. Computed on
    logarithms with 0 log 0 = 0, so that a class that no image shows gives neither NaN nor a gradient of NaN.

    References:
        Chen et al. 2019 (DAFL), arXiv 1904.01186 (information entropy loss).

    Args:
        weight: Factor of the term, >= 0 (DAFL, DFQ: 20).
    """

    combined = True

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The negative entropy of the mean prediction."""
        log_p_BC = F.log_softmax(seen.teacher, dim=1).clamp(min=NEVER)
        log_mean_C = log_p_BC.logsumexp(dim=0) - math.log(len(log_p_BC))
        return (log_mean_C.exp() * log_mean_C).sum()
