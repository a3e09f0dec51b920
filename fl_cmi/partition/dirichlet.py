"""Dirichlet by class: every class is cut among the clients in proportions of its own."""

import numpy as np
from jaxtyping import Int

from fl_cmi.partition.checks import (
    MAX_ATTEMPTS,
    check_clients,
    check_min_size,
    check_positive,
    out_of_attempts,
)
from fl_cmi.partition.deal import deal
from fl_cmi.partition.types import Counts, Labels, Partition, seal
from fl_cmi.types import ConfigError

__all__ = ["dirichlet_class", "dirichlet_class_uncapped", "dirichlet_counts"]


def dirichlet_class(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, alpha: float, min_size: int = 10
) -> Partition:
    """Cut each class in proportions `p ~ Dir(alpha, ..., alpha)`; who already holds N/K gets no more.

    The commonest procedure of the literature (NIID-Bench, DENSE, PFLlib, FederatedScope, FedML's "LDA").
    Classes come in the order of their numbers, so that the cap makes later ones more concentrated. Everything
    is redrawn until the smallest client holds `min_size`. Where all clients below the cap have p = 0 the
    class is redrawn, and rounding never hands an image to a client above it; the published loop divides by 0
    and may do that.

    References:
        Li, Diao, Chen, He 2022, arXiv:2102.02079, section 4.1; the cap is in the released code only.
        Yurochkin et al. 2019, arXiv:1905.12022.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K, at most N.
        rng: Source of every draw.
        alpha: Concentration, > 0; small is skewed, infinity is `iid` in distribution.
        min_size: Images of the smallest client, >= 1.

    Raises:
        ConfigError: For an impossible argument, or when bounded redraws did not reach `min_size`.
    """
    check_clients(labels, num_clients)
    return _by_class("dirichlet_class", labels, num_clients, rng, alpha, min_size, len(labels) / num_clients)


def dirichlet_class_uncapped(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, alpha: float, min_size: int = 10
) -> Partition:
    """`dirichlet_class` without the cap: classes are independent, sizes differ more (FL-bench, fluke).

    References:
        Hsu, Qi, Brown 2019, arXiv:1909.06335 (the idea); FL-bench, `dirichlet` (the procedure).

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K, at most N.
        rng: Source of every draw.
        alpha: Concentration, > 0.
        min_size: Images of the smallest client, >= 1.

    Raises:
        ConfigError: As `dirichlet_class`.
    """
    check_clients(labels, num_clients)
    return _by_class("dirichlet_class_uncapped", labels, num_clients, rng, alpha, min_size, np.inf)


def _by_class(
    name: str,
    labels: Labels,
    num_clients: int,
    rng: np.random.Generator,
    alpha: float,
    min_size: int,
    cap: float,
) -> Partition:
    sizes_C = np.bincount(labels)
    counts_KC = dirichlet_counts(sizes_C, num_clients, rng, alpha=alpha, min_size=min_size, cap=cap)
    return seal(name, {"alpha": alpha, "min_size": min_size}, deal(labels, counts_KC, rng), labels)


def dirichlet_counts(
    sizes_C: Int[np.ndarray, " classes"],
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int,
    cap: float,
) -> Counts:
    """The table behind every by-class procedure: class c is cut at `floor(cumsum(p) * N_c)`.

    Which image goes where is independent of how many, so that only this table is redrawn.

    Args:
        sizes_C: Images to deal per class, N_c, in the order in which classes are dealt.
        num_clients: K.
        rng: Source of every draw; each attempt draws all C proportions at once.
        alpha: Concentration, > 0.
        min_size: Images of the smallest client.
        cap: A client that holds this many gets nothing of the classes that follow.

    Raises:
        ConfigError: For `partition.alpha` or `partition.min_size`.
    """
    check_positive("partition.alpha", alpha)
    check_min_size(min_size, int(sizes_C.sum()), num_clients)
    concentration_K = np.full(num_clients, float(alpha))
    for _ in range(MAX_ATTEMPTS):
        p_CK = rng.dirichlet(concentration_K, size=len(sizes_C))
        counts_KC = np.zeros((num_clients, len(sizes_C)), dtype=np.int64)
        held_K = np.zeros(num_clients, dtype=np.int64)
        for c in np.flatnonzero(sizes_C):
            below = np.flatnonzero(held_K < cap)
            cumulative = _cumulative(p_CK[c], below, concentration_K, rng)
            ends = np.floor(cumulative * sizes_C[c]).astype(np.int64)
            counts_KC[below, c] = np.diff(ends, prepend=0)
            held_K += counts_KC[:, c]
        if held_K.min() >= min_size:
            return counts_KC
    raise out_of_attempts("partition.alpha", alpha, min_size)


def _cumulative(
    p_K: np.ndarray, below: np.ndarray, concentration_K: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Proportions of the clients `below` the cap, renormalized and summed up; the last is exactly 1."""
    for _ in range(MAX_ATTEMPTS):
        total = np.cumsum(p_K[below])
        if total[-1] > 0:
            cumulative: np.ndarray = total / total[-1]
            return cumulative
        p_K = rng.dirichlet(concentration_K)
    raise ConfigError(
        "partition.alpha", concentration_K[0], "a larger number: all clients below the cap drew proportion 0"
    )
