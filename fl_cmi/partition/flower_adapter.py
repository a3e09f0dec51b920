"""Any partitioner of `flwr-datasets` as one of our procedures."""

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fl_cmi.partition.checks import check_clients
from fl_cmi.partition.types import Labels, Param, Partition, seal
from fl_cmi.types import ConfigError

__all__ = ["flower_datasets"]

INSTALL = "needs the extra: pip install 'fl_cmi[flwr-datasets]'"


def flower_datasets(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, partitioner: Callable[..., Any] | Any
) -> Partition:
    """Split as `partitioner` splits a data set with the single feature `label`.

    What a class or partial leaves open is filled in where its constructor takes it: `num_partitions` with K,
    `partition_by` with `label`, `seed` from `rng`. A ready instance keeps its own, and is copied, so that it
    can be used again. Flower draws in another order than our procedures: same law, other indices. Slow:
    seconds to import, seconds for 100 clients.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K; the partitioner has to agree.
        rng: Source of the partitioner's seed.
        partitioner: A `flwr_datasets.partitioner` class, a partial of one, or an instance without a data set.

    Raises:
        ConfigError: For a missing extra, or whatever Flower rejects, in its words.
    """
    check_clients(labels, num_clients)
    try:
        import datasets  # slow, and an extra
    except ImportError as error:
        raise ConfigError("partition", "flower_datasets", INSTALL) from error
    name, params = _describe(partitioner)
    table = datasets.Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            built = _build(partitioner, num_clients, int(rng.integers(2**31)))
            built.dataset = table
            given = built.num_partitions
            loaded = [built.load_partition(k).with_format("numpy") for k in range(given)]
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError("partition.partitioner", name, " ".join(str(error).split())) from error
    if given != num_clients:
        raise ConfigError("num_clients", num_clients, f"{given}, the number of parts that {name} makes")
    if not all("index" in part.column_names for part in loaded):
        raise ConfigError("partition.partitioner", name, "a partitioner that splits rows, not columns")
    indices = [np.asarray(part["index"][:], dtype=np.int64) for part in loaded]
    notes = dict.fromkeys(
        " ".join(str(w.message).split()) for w in caught if issubclass(w.category, UserWarning)
    )
    return seal("flower_datasets", {"partitioner": name, **params}, indices, labels, notes=list(notes)[-1:])


def _build(partitioner: Any, num_clients: int, seed: int) -> Any:
    """A fresh partitioner without a data set."""
    if not callable(partitioner):
        return copy.deepcopy(partitioner)
    bound = getattr(partitioner, "keywords", {})
    fillings = {"num_partitions": num_clients, "partition_by": "label", "seed": seed}
    takes = inspect.signature(partitioner).parameters
    return partitioner(**{key: value for key, value in fillings.items() if key in takes and key not in bound})


def _describe(partitioner: Any) -> tuple[str, dict[str, Param]]:
    """The class's name, and the parameters that were given with it."""
    made = getattr(partitioner, "func", partitioner)
    name = made.__name__ if isinstance(made, type) else type(made).__name__
    given = getattr(partitioner, "keywords", {})
    return name, {k: v if isinstance(v, (int, float, str, list, bool)) else str(v) for k, v in given.items()}
