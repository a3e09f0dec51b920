"""Flower's partitioners through the adapter, and ours against theirs."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from partition_cases import balanced, rng

from fl_cmi import partition
from fl_cmi.types import ConfigError


def flower(name: str, **params: Any) -> Callable[..., Any]:
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    return functools.partial(getattr(partitioners, name), **params)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("IidPartitioner", {}),
        ("DirichletPartitioner", {"alpha": 0.5}),
        ("PathologicalPartitioner", {"num_classes_per_partition": 3}),
        ("ShardPartitioner", {"num_shards_per_partition": 2}),
        ("SquarePartitioner", {}),
        ("SizePartitioner", {"partition_sizes": [400, 300, 200, 100]}),
        ("InnerDirichletPartitioner", {"alpha": 0.5, "partition_sizes": [250] * 4}),
    ],
)
def test_adapter_takes_flower_partitioners(name: str, params: dict) -> None:
    labels = balanced(1000)
    split = functools.partial(partition.flower_datasets, labels, 4, partitioner=flower(name, **params))
    part, again, other = split(rng(1)), split(rng(1)), split(rng(2))
    dealt = np.concatenate(part.indices)
    assert len(np.unique(dealt)) == len(dealt) == sum(part.sizes)
    # An image stays behind with all of its class, where no client has drawn that.
    left = np.setdiff1d(np.arange(len(labels)), dealt)
    assert not np.isin(labels[left], labels[dealt]).any()
    assert not left.size or name == "PathologicalPartitioner"
    assert part.params["partitioner"] == name
    assert part.hash == again.hash
    seeded = "seed" in flower(name).func.__init__.__code__.co_varnames
    assert (part.hash != other.hash) == seeded


def test_adapter_takes_an_instance_twice() -> None:
    instance = flower("DirichletPartitioner", num_partitions=4, partition_by="label", alpha=1.0, seed=5)()
    first, again = (partition.flower_datasets(balanced(500), 4, rng(s), partitioner=instance) for s in (0, 1))
    assert first.hash == again.hash  # the instance's own seed


def test_adapter_errors() -> None:
    labels = balanced(500)
    with pytest.raises(
        ConfigError, match=r"^num_clients=4: 2, the number of parts that SizePartitioner makes"
    ):
        partition.flower_datasets(
            labels, 4, rng(), partitioner=flower("SizePartitioner", partition_sizes=[250, 250])
        )
    with pytest.raises(
        ConfigError, match=r"^partition.partitioner=DirichletPartitioner: .*greater than zero"
    ):
        partition.flower_datasets(labels, 4, rng(), partitioner=flower("DirichletPartitioner", alpha=0.0))
    picky = flower("DirichletPartitioner", alpha=0.01, min_partition_size=120)
    with pytest.raises(
        ConfigError, match=r"^partition.partitioner=DirichletPartitioner: .*max number of attempts"
    ):
        partition.flower_datasets(labels, 4, rng(), partitioner=picky)
    with pytest.raises(ConfigError, match=r"^partition.partitioner=VerticalEvenPartitioner: "):
        partition.flower_datasets(labels, 2, rng(), partitioner=flower("VerticalEvenPartitioner"))


def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'fl_cmi\[flwr-datasets\]'"):
        partition.flower_datasets(balanced(500), 4, rng(), partitioner=object)


@pytest.mark.parametrize("capped", [True, False])
def test_dirichlet_class_agrees_with_flower_in_distribution(capped: bool) -> None:
    """Mean over seeds of the spread of class counts, and of sizes, within 5 standard errors."""
    labels, seeds = balanced(600), 80
    ours = partition.dirichlet_class if capped else partition.dirichlet_class_uncapped
    theirs = flower("DirichletPartitioner", alpha=0.5, min_partition_size=10, self_balancing=capped)

    def spreads(split: Callable[[np.random.Generator], partition.Partition]) -> np.ndarray:
        counts = [split(rng(seed)).counts(labels, 10) for seed in range(seeds)]
        return np.array([(c.std(), c.sum(axis=1).std(), c[:, 9].max()) for c in counts])

    a = spreads(lambda draw: ours(labels, 4, draw, alpha=0.5))
    b = spreads(lambda draw: partition.flower_datasets(labels, 4, draw, partitioner=theirs))
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / seeds)
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5 * error).all()
    # The statistics tell the two procedures apart: sizes spread more without the cap.
    other = partition.dirichlet_class_uncapped if capped else partition.dirichlet_class
    c = spreads(lambda draw: other(labels, 4, draw, alpha=0.5))
    assert abs(c[:, 1].mean() - b[:, 1].mean()) > 5 * error[1]


def test_dirichlet_client_agrees_with_flower_in_distribution() -> None:
    labels, seeds = balanced(200, 4), 40
    theirs = flower("InnerDirichletPartitioner", alpha=0.5, partition_sizes=[50] * 4)
    a = np.array(
        [
            partition.dirichlet_client(labels, 4, rng(s), alpha=0.5).counts(labels, 4).std()
            for s in range(seeds)
        ]
    )
    b = np.array(
        [
            partition.flower_datasets(labels, 4, rng(s), partitioner=theirs).counts(labels, 4).std()
            for s in range(seeds)
        ]
    )
    assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / seeds)
