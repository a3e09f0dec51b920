"""Rules that a few bad teachers cannot move far: the middle of the probabilities, class by class.

Shape letters: K teachers, B batch, C classes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.ensemble import Combined, Ensemble, Logits
from fl_cmi.types import ConfigError

__all__ = ["check_saturation", "class_weights", "median_probs", "middle", "trimmed_probs", "weighted_probs"]

MIDDLE = 0.499
"""Trimmed by so much at either end, the mean is the median, for up to 500 teachers of equal weight."""

FLOOR = math.log(1e-12)
"""Of a class in which nobody has a say."""


def class_weights(
    ensemble: Ensemble, num_classes: int, saturation: float | None
) -> Float[Tensor, "teachers classes"]:
    """`W_kc ~ n_k(c) / (1 + n_k(c) / s)`, its sum over k being 1, or 0 for a class that nobody owns.

    Args:
        ensemble: The teachers.
        num_classes: C.
        saturation: s > 0, in images, as in `by_class_counts`; None, or clients that keep their counts: `1/K`.

    Returns:
        In float64, so that equal weights add up to shares that are exact enough to trim by.
    """
    check_saturation(saturation)
    counts_KC = ensemble.class_counts_KC
    if saturation is None or counts_KC is None:
        like = ensemble.num_examples_K.double()
        return torch.full_like(like, 1 / len(ensemble))[:, None].expand(-1, num_classes)
    saturated_KC = counts_KC.double() / (1 + counts_KC.double() / saturation)
    total_C = saturated_KC.sum(dim=0)
    return saturated_KC / torch.where(total_C > 0, total_C, 1.0)


def check_saturation(saturation: float | None) -> None:
    """Raise ConfigError unless it is > 0 or None."""
    if saturation is not None and not saturation > 0:
        raise ConfigError(
            "combine.saturation", saturation, "a number of images > 0, or null for equal weights"
        )


def weighted_probs(logits_KBC: Logits, weight_KC: Float[Tensor, "teachers classes"]) -> Combined:
    """`P_c ~ sum_k W_kc softmax(t_k)_c`; about 0 for classes without weight."""
    log_p_KBC = logits_KBC.log_softmax(dim=2)
    return combined(log_p_KBC, weight_KC[:, None, :].expand(log_p_KBC.shape))


def middle(logits_KBC: Logits, weight_KC: Float[Tensor, "teachers classes"], trim: float) -> Combined:
    """`P_c ~` the mean of `softmax(t_k)_c` by W_kc, the share `trim` of the weight cut off at either end.

        F_m = sum_{l <= m} W_lc over teachers in the order of their p_c
        P_c ~ sum_m max(0, min(F_m, 1 - trim) - max(F_{m-1}, trim)) p_mc

    The teacher at which the cut is made counts with what is left of its weight. Where bad teachers have at most the
    share `trim` of a class's weight, its mean lies between the least and the largest of the others' probabilities.
    """
    log_p_KBC, order_KBC = logits_KBC.log_softmax(dim=2).sort(dim=0)
    weight_KBC = weight_KC[:, None, :].expand(log_p_KBC.shape).gather(0, order_KBC)
    upto_KBC = weight_KBC.cumsum(dim=0)
    left_KBC = upto_KBC.clamp(max=1 - trim) - (upto_KBC - weight_KBC).clamp(min=trim)
    return combined(log_p_KBC, left_KBC.clamp(min=0))


def combined(
    log_p_KBC: Float[Tensor, "teachers batch classes"], weight_KBC: Float[Tensor, "teachers batch classes"]
) -> Combined:
    """`log` of the weighted sum of probabilities, renormalized; computed on logarithms to keep the gradient."""
    spoken_BC = weight_KBC.sum(dim=0) > 0
    # Where all weights are 0, their logarithms are -inf, and the gradient of logsumexp would be NaN.
    log_weight_KBC = torch.where(spoken_BC, weight_KBC.log(), 0.0).to(log_p_KBC)
    log_sum_BC = (log_p_KBC + log_weight_KBC).logsumexp(dim=0)
    return F.log_softmax(torch.where(spoken_BC, log_sum_BC, FLOOR), dim=1)


def trimmed_probs(
    logits_KBC: Logits, ensemble: Ensemble, trim: float = 0.2, saturation: float | None = None
) -> Combined:
    """The mean of the teachers' probabilities, the share `trim` of the lowest and of the highest left out.

    See `middle`; renormalized over classes.

    References:
        Yin et al. 2018, arXiv 1803.01498, definition 2, on parameters; here on probabilities, with weights.

    Args:
        logits_KBC: Of each teacher.
        ensemble: The teachers.
        trim: In [0, .5); 0 is the plain mean, or without equal weights `by_class_counts`.
        saturation: See `class_weights`: teachers weigh by what they own of a class, because those who never saw it
            are no evidence against it; None: equally.
    """
    if not 0 <= trim < 0.5:
        raise ConfigError("combine.trim", trim, "a number in [0, .5)")
    return middle(logits_KBC, class_weights(ensemble, logits_KBC.shape[2], saturation), trim)


def median_probs(logits_KBC: Logits, ensemble: Ensemble, saturation: float | None = None) -> Combined:
    """The median over teachers of each class's probability, renormalized over classes; of two middles, their mean.

    References:
        Yin et al. 2018, arXiv 1803.01498, definition 1, on parameters; here on probabilities, with weights.

    Args:
        logits_KBC: Of each teacher.
        ensemble: The teachers.
        saturation: As for `trimmed_probs`.
    """
    return middle(logits_KBC, class_weights(ensemble, logits_KBC.shape[2], saturation), MIDDLE)
