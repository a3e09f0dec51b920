"""Splits of single papers: FedGen, FedDF, Co-Boosting."""

import math

import numpy as np
from jaxtyping import Int

from fl_cmi.partition.checks import check_clients, check_positive, check_whole
from fl_cmi.partition.client_prior import fill_clients, outlived_notes
from fl_cmi.partition.deal import deal
from fl_cmi.partition.dirichlet import dirichlet_counts
from fl_cmi.partition.types import Indices, Labels, Param, Partition, seal
from fl_cmi.types import ConfigError

__all__ = ["client_tests", "feddf", "fedgen", "n_cls"]

FEDDF_GROUP = 10


def fedgen(
    labels: Labels,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    ratio: float = 0.5,
    min_size: int = 10,
) -> Partition:
    """`dirichlet_class` over `min(r N/K, r N_c)` images of each class, the cap being `r N/K` instead of N/K.

    Classes come in an order shuffled once. On MNIST with r = .5 and K = 20 that keeps 1,500 images per class,
    15,000 in all: a quarter, not the half that r suggests. As in the released code r = 1 keeps everything.

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv:2105.10056, released code, `generate_niid_dirichlet.py`.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K; the paper has 20.
        rng: Source of every draw.
        alpha: Concentration, > 0; the paper has .05, .1, 1, 10.
        ratio: r, in (0, 1]; .5 for MNIST, .1 for EMNIST.
        min_size: Images of the smallest client; 10 for MNIST, 10 C for EMNIST.

    Raises:
        ConfigError: For an impossible argument, or when bounded redraws did not reach `min_size`.
    """
    check_clients(labels, num_clients)
    check_positive("partition.ratio", ratio)
    if ratio > 1:
        raise ConfigError("partition.ratio", ratio, "a number in (0, 1]")
    have_C = np.bincount(labels)
    cap = ratio * len(labels) / num_clients
    keep_C = have_C if ratio == 1 else np.minimum(cap, np.floor(ratio * have_C)).astype(np.int64)
    order = rng.permutation(len(have_C))
    drawn_KC = dirichlet_counts(keep_C[order], num_clients, rng, alpha=alpha, min_size=min_size, cap=cap)
    counts_KC = np.empty_like(drawn_KC)
    counts_KC[:, order] = drawn_KC
    params: dict[str, Param] = {"alpha": alpha, "ratio": ratio, "min_size": min_size}
    return seal("fedgen", params, deal(labels, counts_KC, rng), labels)


def client_tests(partition: Partition, labels: Labels, test_labels: Int[np.ndarray, " tests"]) -> Indices:
    """FedGen's local tests: each client in turn takes the next 1/K of the test images of its classes.

    Args:
        partition: Any partition of the training set.
        labels: Training labels (N,).
        test_labels: Test labels.

    Returns:
        Indices into the test set, one int64 array per client, disjoint; empty for a client whose classes have
        fewer than K test images.
    """
    classes = 1 + max(int(labels.max()), int(test_labels.max()))
    by_class = [np.flatnonzero(test_labels == c) for c in range(classes)]
    share_C = np.array([len(own) // partition.num_clients for own in by_class])
    owns_KC = partition.counts(labels, classes) > 0
    start_KC = (np.cumsum(owns_KC, axis=0) - owns_KC) * share_C
    return tuple(
        np.concatenate([by_class[c][start_C[c] : start_C[c] + share_C[c]] for c in np.flatnonzero(owns_C)])
        for owns_C, start_C in zip(owns_KC, start_KC, strict=True)
    )


def feddf(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, alpha: float, holdout: float = 0.1
) -> Partition:
    """`dirichlet_class` inside groups of 10 consecutive clients, each group on its own random part.

    The smallest client of a group has at least half of the group's mean, rounded down: milder than
    `dirichlet_class`. A random share `holdout` goes to the server for validation first.

    References:
        Lin, Kong, Stich, Jaggi 2020 (FedDF), arXiv:2006.07242, released code, `partition_data.py`.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K.
        rng: Source of every draw.
        alpha: Concentration, > 0; the paper has 1, .1, .01.
        holdout: Share of the images held out, in [0, 1).

    Raises:
        ConfigError: For an impossible argument, or when bounded redraws did not reach the minimum.
    """
    check_clients(labels, num_clients)
    if not 0 <= holdout < 1:
        raise ConfigError("partition.holdout", holdout, "a number in [0, 1)")
    shuffled = rng.permutation(len(labels))
    held_out, shared = np.split(shuffled, [int(holdout * len(labels))])
    if num_clients > len(shared):
        raise ConfigError(
            "num_clients", num_clients, f"at most {len(shared)}, the training images not held out"
        )
    groups = math.ceil(num_clients / FEDDF_GROUP)
    step = int(FEDDF_GROUP / num_clients * len(shared))
    indices: list[np.ndarray] = []
    for g, part in enumerate(np.split(shared, [step * g for g in range(1, groups)])):
        members = min(FEDDF_GROUP, num_clients - g * FEDDF_GROUP)
        fair = len(part) / members
        own = labels[part]
        least = max(int(0.5 * fair), 1)
        counts_KC = dirichlet_counts(np.bincount(own), members, rng, alpha=alpha, min_size=least, cap=fair)
        indices += [part[chosen] for chosen in deal(own, counts_KC, rng)]
    params: dict[str, Param] = {"alpha": alpha, "holdout": holdout}
    return seal("feddf", params, indices, labels, held_out=held_out)


def n_cls(labels: Labels, num_clients: int, rng: np.random.Generator, *, num_labels: int) -> Partition:
    """`dirichlet_client` with equal sizes and a uniform prior over m classes in place of a Dirichlet one.

    Up to 5 clients take consecutive classes, `(m k + j) mod C` for j = 0..m-1; more take m random ones each.
    Where a client's classes run out it draws in proportion to what remains, as in `dirichlet_client`.

    References:
        Dai et al. 2024 (Co-Boosting), arXiv:2402.15070, released code, partition `n_cls`.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K.
        rng: Source of every draw.
        num_labels: m, 1..C.

    Raises:
        ConfigError: For an impossible argument.
    """
    check_clients(labels, num_clients)
    have_C = np.bincount(labels)
    check_whole("partition.num_labels", num_labels)
    if num_labels > len(have_C):
        raise ConfigError("partition.num_labels", num_labels, f"at most {len(have_C)}, the number of classes")
    prior_KC = np.zeros((num_clients, len(have_C)))
    for k in range(num_clients):
        consecutive = (num_labels * k + np.arange(num_labels)) % len(have_C)
        chosen = consecutive if num_clients <= 5 else rng.permutation(len(have_C))[:num_labels]
        prior_KC[k, chosen] = 1 / num_labels
    # The remainder of N/K is dropped, as in the released code.
    sizes_K = np.full(num_clients, len(labels) // num_clients, dtype=np.int64)
    counts_KC, outlived = fill_clients(have_C, sizes_K, prior_KC, rng)
    return seal(
        "n_cls",
        {"num_labels": num_labels},
        deal(labels, counts_KC, rng),
        labels,
        notes=outlived_notes(outlived),
    )
