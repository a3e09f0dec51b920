"""Skew by label: few labels per client, or a table that says who gets what."""

from collections.abc import Sequence

import numpy as np

from fl_cmi.partition.checks import check_clients, check_whole
from fl_cmi.partition.deal import deal
from fl_cmi.partition.types import Labels, Partition, seal
from fl_cmi.types import ConfigError

__all__ = ["fixed_counts", "label_distribution", "labels_per_client", "shards"]


def shards(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, shards_per_client: int = 2
) -> Partition:
    """Sort by label, cut into K*s equal shards, deal s to each client at random; the remainder is dropped.

    References:
        McMahan et al. 2017 (FedAvg), arXiv:1602.05629, section 3.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K.
        rng: Source of every draw.
        shards_per_client: s, >= 1; K*s at most N.

    Raises:
        ConfigError: For an impossible argument.
    """
    check_clients(labels, num_clients)
    check_whole("partition.shards_per_client", shards_per_client)
    number = num_clients * shards_per_client
    if number > len(labels):
        raise ConfigError(
            "partition.shards_per_client",
            shards_per_client,
            f"at most {len(labels) // num_clients}: N/K images",
        )
    size = len(labels) // number
    by_label = np.argsort(labels, kind="stable")[: number * size].reshape(number, size)
    dealt = by_label[rng.permutation(number)].reshape(num_clients, -1)
    return seal("shards", {"shards_per_client": shards_per_client}, list(rng.permuted(dealt, axis=1)), labels)


def labels_per_client(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, num_labels: int
) -> Partition:
    """Client k owns class `k mod C` and m-1 other random ones; each class is split evenly among its owners.

    A class that nobody owns is lost, and the notes say so.

    References:
        Li, Diao, Chen, He 2022 (NIID-Bench, "#C = m"), arXiv:2102.02079, section 4.1.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K.
        rng: Source of every draw.
        num_labels: m, 1..C.

    Raises:
        ConfigError: For an impossible argument, or where a client's classes have too few images to share.
    """
    check_clients(labels, num_clients)
    class_sizes_C = np.bincount(labels)
    classes = len(class_sizes_C)
    check_whole("partition.num_labels", num_labels)
    if num_labels > classes:
        raise ConfigError("partition.num_labels", num_labels, f"at most {classes}, the number of classes")
    owns_KC = np.zeros((num_clients, classes), dtype=bool)
    for k in range(num_clients):
        first = k % classes
        others = rng.permutation(np.delete(np.arange(classes), first))[: num_labels - 1]
        owns_KC[k, [first, *others]] = True
    owners_C = np.maximum(owns_KC.sum(axis=0), 1)
    # Even split as numpy.array_split: the first N_c mod owners get one more.
    rank_KC = np.cumsum(owns_KC, axis=0) - 1
    counts_KC = owns_KC * (class_sizes_C // owners_C + (rank_KC < class_sizes_C % owners_C))
    return seal("labels_per_client", {"num_labels": num_labels}, deal(labels, counts_KC, rng), labels)


def label_distribution(
    labels: Labels,
    num_clients: int,
    rng: np.random.Generator,
    *,
    distribution: Sequence[Sequence[float | int]],
    size: int | None = None,
) -> Partition:
    """Give every client `size` images in the label mix prescribed for it.

    Counts are `floor(size * distribution[k][c] / sum_c distribution[k][c])`. Flower's
    `DistributionPartitioner` rescales per class instead, which uses every image but changes the clients'
    mixes.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K, the number of rows.
        rng: Source of every draw.
        distribution: K rows of C weights >= 0, each row with a positive sum.
        size: Images per client before rounding; None means the largest for which no class runs out.

    Raises:
        ConfigError: For a table of the wrong form, or where a class runs out.
    """
    table_KC = _table("partition.distribution", distribution, labels, num_clients)
    class_sizes_C = np.bincount(labels, minlength=table_KC.shape[1])
    if not (table_KC.sum(axis=1) > 0).all():
        raise ConfigError("partition.distribution", table_KC.tolist(), "a positive sum in every row")
    mix_KC = table_KC / table_KC.sum(axis=1, keepdims=True)
    asked_C = mix_KC.sum(axis=0)
    largest = int((class_sizes_C[asked_C > 0] / asked_C[asked_C > 0]).min())
    if largest < 1:
        raise ConfigError("partition.distribution", table_KC.tolist(), "weights on classes that have images")
    chosen = largest if size is None else size
    check_whole("partition.size", chosen)
    # The small excess undoes rounding, as in 0.1 * 3 / 0.3.
    counts_KC = np.floor(chosen * mix_KC + 1e-9).astype(np.int64)
    if (counts_KC.sum(axis=0) > class_sizes_C).any():
        raise ConfigError("partition.size", chosen, f"{largest} or less, because a class runs out")
    params = {"distribution": table_KC.tolist(), "size": chosen}
    return seal("label_distribution", params, deal(labels, counts_KC, rng), labels)


def fixed_counts(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, counts: Sequence[Sequence[int]]
) -> Partition:
    """Give client k exactly `counts[k][c]` random images of class c.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K, the number of rows.
        rng: Source of every draw.
        counts: K rows of C whole numbers >= 0; a column sums to at most N_c.

    Raises:
        ConfigError: For a table of the wrong form, or where a class has too few images.
    """
    table_KC = _table("partition.counts", counts, labels, num_clients)
    counts_KC = table_KC.astype(np.int64)
    if (counts_KC != table_KC).any():
        raise ConfigError("partition.counts", table_KC.tolist(), "whole numbers")
    have_C, asked_C = np.bincount(labels, minlength=counts_KC.shape[1]), counts_KC.sum(axis=0)
    for c in np.flatnonzero(asked_C > have_C):
        raise ConfigError(
            "partition.counts",
            f"{asked_C[c]} images of class {c}",
            f"at most {have_C[c]}, all that there are",
        )
    return seal("fixed_counts", {"counts": counts_KC.tolist()}, deal(labels, counts_KC, rng), labels)


def _table(key: str, rows: Sequence[Sequence[float | int]], labels: Labels, num_clients: int) -> np.ndarray:
    """A table (K, C) of numbers >= 0 as float64."""
    check_clients(labels, num_clients)
    classes = int(labels.max()) + 1
    try:
        lengths = [len(row) for row in rows]
        numbers = [np.array(list(row), dtype=np.float64) for row in rows]
    except (TypeError, ValueError):
        raise ConfigError(key, rows, "a list of rows of numbers") from None
    if len(rows) != num_clients:
        raise ConfigError(key, f"{len(rows)} rows", f"{num_clients} rows, one per client (num_clients)")
    if len(set(lengths)) != 1 or lengths[0] < classes:
        raise ConfigError(key, f"rows of length {lengths}", f"{classes} numbers in each row, one per class")
    table_KC = np.stack(numbers)
    if not (np.isfinite(table_KC) & (table_KC >= 0)).all():
        raise ConfigError(key, table_KC.tolist(), "numbers >= 0")
    return table_KC
