"""A partition: who holds which images, under a name that can be cited."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from fl_cmi.types import ConfigError

__all__ = ["Counts", "Indices", "Labels", "Param", "Partition", "listed", "seal"]

Labels = Int[np.ndarray, " images"]
Indices = tuple[np.ndarray, ...]
Counts = Int[np.ndarray, "clients classes"]
Param = float | int | str | list[Any] | bool | None


@dataclass(frozen=True, eq=False)
class Partition:
    """Index arrays, one per client, and what made them. Compare two by their `hash`.

    Args:
        name: The procedure.
        params: Its parameters, as given.
        indices: One int64 array (n_k,) of indices into the training set per client, in client order.
        noise_sd: Standard deviation of the Gaussian noise on each client's images in [0, 1], or None for
            none.
        held_out: Indices that no client gets because the server keeps them (FedDF), or None.
        notes: What a reader of the results has to know, such as a class that nobody holds.
    """

    name: str
    params: dict[str, Param]
    indices: Indices
    noise_sd: tuple[float, ...] | None = None
    held_out: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(own.ndim == 1 and own.dtype == np.int64 for own in self.indices), (
            "indices are int64 vectors"
        )
        assert self.noise_sd is None or len(self.noise_sd) == len(self.indices), "one noise level per client"

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.indices)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images per client."""
        return tuple(len(own) for own in self.indices)

    @property
    def hash(self) -> str:
        """Sha256 (hex) over each client's sorted indices as little-endian int64, in client order."""
        digest = hashlib.sha256()
        for own in self.indices:
            digest.update(np.sort(own).astype("<i8").tobytes())
        return digest.hexdigest()

    def counts(self, labels: Labels, num_classes: int) -> Counts:
        """Images per client and class."""
        return np.stack([np.bincount(labels[own], minlength=num_classes) for own in self.indices])

    def manifest(self) -> dict[str, Any]:
        """What a result row carries: name, params, hash, sizes, notes."""
        return {
            "name": self.name,
            "params": dict(self.params),
            "hash": self.hash,
            "sizes": list(self.sizes),
            "notes": list(self.notes),
        }


def seal(
    name: str,
    params: dict[str, Param],
    indices: Sequence[np.ndarray],
    labels: Labels,
    *,
    noise_sd: tuple[float, ...] | None = None,
    held_out: np.ndarray | None = None,
    notes: Sequence[str] = (),
) -> Partition:
    """Make the `Partition`, with notes on what `indices` leave out.

    Raises:
        ConfigError: Where a client would get no image at all.
    """
    empty = [k for k, own in enumerate(indices) if len(own) == 0]
    if empty:
        raise ConfigError(
            "num_clients",
            len(indices),
            f"fewer, because {name} leaves {listed('client', empty)} without an image",
        )
    dealt = np.unique(np.concatenate(indices))
    have, got = np.bincount(labels), np.bincount(labels[dealt], minlength=labels.max() + 1)
    unused = len(labels) - len(dealt) - (0 if held_out is None else len(held_out))
    single = [k for k, own in enumerate(indices) if len(own) == 1]
    remarks = [
        (have == 0, f"{listed('class', np.flatnonzero(have == 0))}: no image in the data"),
        (
            (have > 0) & (got == 0),
            f"{listed('class', np.flatnonzero((have > 0) & (got == 0)))}: held by no client",
        ),
        (len(single) > 0, f"{listed('client', single)}: one image only"),
        (unused > 0, f"{unused} of {len(labels)} images are held by no client"),
    ]
    return Partition(
        name,
        params,
        tuple(np.asarray(own, dtype=np.int64) for own in indices),
        noise_sd,
        held_out,
        (*notes, *(text for when, text in remarks if np.any(when))),
    )


def listed(noun: str, numbers: Sequence[int] | np.ndarray) -> str:
    """`client 3`, or `clients 3, 4, 5 and 7 more`."""
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    plural = {"class": "classes", "client": "clients"}[noun]
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"{plural} {', '.join(str(n) for n in numbers[:5])}{more}"
