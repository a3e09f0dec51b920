"""Bounded stores that overwrite their oldest rows: the bank of features and the pool of synthetic images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fl_cmi.checkpoint.tree import Tree
from fl_cmi.types import ConfigError

__all__ = ["Bank", "Draws", "Pool", "PoolBatch", "Shuffled", "Stored"]


class Bank:
    """A first-in-first-out ring of feature rows, on the device that the teacher uses.

    Args:
        capacity: Rows kept at most, > 0; any number, it need not be a multiple of the batch.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self.capacity = capacity
        self.written = 0
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        """Rows that hold something: min(written, capacity)."""
        return min(self.written, self.capacity)

    @property
    def num_bytes(self) -> int:
        """Memory that the ring takes, in bytes (0 before the first row)."""
        return 0 if self._rows is None else self._rows.numel() * self._rows.element_size()

    def add(self, rows: Float[Tensor, "batch width"]) -> None:
        """Write rows after the newest, over the oldest."""
        if self._rows is None:
            self._rows = torch.zeros(self.capacity, rows.shape[1], dtype=rows.dtype, device=rows.device)
        kept = rows[-self.capacity :]
        start = self.written + len(rows) - len(kept)
        slots = (start + torch.arange(len(kept))) % self.capacity
        self._rows[slots.to(rows.device)] = kept.detach()
        self.written += len(rows)

    def draw(self, num_rows: int, rng: torch.Generator) -> Float[Tensor, "rows width"]:
        """`min(num_rows, len(self))` different rows, in random order."""
        if self._rows is None:
            raise ValueError("the bank is empty")
        choice = torch.randperm(len(self), generator=rng)[:num_rows]
        return self._rows[choice.to(self._rows.device)]

    def state_dict(self) -> Tree:
        """The ring as it stands."""
        return {"written": self.written, "rows": self._rows}

    def load_state_dict(self, state: Tree, device: torch.device) -> None:
        """Go on from `state`, on this device."""
        rows = state["rows"]
        assert rows is None or len(rows) == self.capacity, "a bank of another size"
        self.written, self._rows = state["written"], None if rows is None else rows.to(device)


@dataclass(frozen=True)
class PoolBatch:
    """Images drawn from a pool, or made for the moment.

    Args:
        x: Images in [0, 1].
        y: The labels that synthesis aimed at; None where it aimed at none.
        labels: Cached log-probabilities of the ensemble for the image as stored; None where nothing is cached.
        client: Partition id of the client that an image was inverted from, -1 where it was several.
        index: Slots in the pool, -1 where there is none.
        pool: The pool that they come from, or None.
    """

    x: Float[Tensor, "batch channels height width"]
    y: Int[Tensor, " batch"] | None
    labels: Float[Tensor, "batch classes"] | None
    client: Int[Tensor, " batch"]
    index: Int[Tensor, " batch"]
    pool: "Pool | None" = None

    def __len__(self) -> int:
        return len(self.x)


class Draws(Protocol):
    """Whatever images can be drawn from: a pool, or a generator."""

    def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
        """A batch."""
        ...


class Stored(Protocol):
    """Images that can be had by their numbers, from 0."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def get(self, index: Int[Tensor, " batch"]) -> PoolBatch:
        """The images of these numbers."""
        ...


class Shuffled:
    """One image after the other, in random order: each once before any comes again, in another order.

    Batches are always full: the last one of a pass takes its missing images from the next pass.

    Args:
        images: At least one; as many as there are at the first draw.
    """

    def __init__(self, images: Stored) -> None:
        self.images = images
        self.order = torch.empty(0, dtype=torch.int64)

    def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
        """The next images in line."""
        while len(self.order) < batch_size:
            self.order = torch.cat([self.order, torch.randperm(len(self.images), generator=rng)])
        index, self.order = self.order[:batch_size], self.order[batch_size:]
        return self.images.get(index)


class Pool:
    """Synthetic images as bytes in memory, with their labels; the oldest go first when it is full.

    Args:
        capacity: Images kept at most, >= 2: nothing can be measured of a single one.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        if capacity < 2:
            raise ConfigError("pool.capacity", capacity, "an integer >= 2")
        self.capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.written = 0
        self._store: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    @property
    def num_bytes(self) -> int:
        """Memory that the stored rows take, in bytes."""
        return 0 if self._store is None else sum(t.numel() * t.element_size() for t in self._store)

    def add(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        labels: Float[Tensor, "batch classes"],
        client: int = -1,
    ) -> None:
        """Store a batch; pixels are rounded to the nearest of 256 levels."""
        pixels = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        found = (pixels, y.cpu(), labels.detach().float().cpu(), torch.full((len(y),), client))
        rows = tuple(row[-self.capacity :] for row in found)
        if self._store is None:
            self._store = tuple(t.new_empty(0, *t.shape[1:]) for t in rows)
        new = len(y)
        skipped = new - len(rows[0])
        slots = (self.written + torch.arange(skipped, new)) % self.capacity
        missing = min(self.written + new, self.capacity) - len(self._store[0])
        if missing > 0:
            self._store = tuple(self._grow(t, missing) for t in self._store)
        for stored, value in zip(self._store, rows, strict=True):
            stored[slots] = value.contiguous()
        self.written += new

    def _grow(self, stored: Tensor, missing: int) -> Tensor:
        return torch.cat([stored, stored.new_zeros(missing, *stored.shape[1:])])

    def get(self, index: Int[Tensor, " batch"]) -> PoolBatch:
        """The images in the given slots."""
        if self._store is None:
            raise ValueError("the pool is empty")
        x, y, labels, client = (t[index] for t in self._store)
        return PoolBatch(x.float().div_(255), y, labels, client, index, self)

    def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
        """A batch drawn uniformly, with replacement, from the whole pool."""
        return self.get(torch.randint(len(self), (batch_size,), generator=rng))

    def relabel(self, index: Int[Tensor, " batch"], labels: Float[Tensor, "batch classes"]) -> None:
        """Replace the labels of the images in the given slots."""
        assert self._store is not None
        self._store[2][index] = labels.detach().float().cpu()

    def relabel_all(self, label: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Replace all labels by what `label` says of the images, of at most 256 at a time on this device."""
        for some in torch.arange(len(self)).split(256) if len(self) else ():
            self.relabel(some, label(self.get(some).x.to(device)))

    def surest(self, share: float = 0.25) -> Int[Tensor, " chosen"]:
        """Slots, ascending, of that share of each class's images which the ensemble is surest show the class."""
        if self._store is None:
            raise ValueError("the pool is empty")
        _, y, labels, _ = self._store
        sure = labels.gather(1, y[:, None])[:, 0]
        chosen = []
        for members in (torch.nonzero(y == c)[:, 0] for c in y.unique()):
            most = max(1, round(share * len(members)))
            chosen.append(members[sure[members].topk(most).indices])
        return torch.cat(chosen).sort().values

    @property
    def pixels(self) -> UInt8[Tensor, "images channels height width"]:
        """All stored images, by slot."""
        assert self._store is not None
        return self._store[0]

    @property
    def targets(self) -> Int[Tensor, " images"]:
        """The labels that synthesis aimed at, by slot."""
        assert self._store is not None
        return self._store[1]

    def tensors(self) -> dict[str, Tensor]:
        """All that is stored, by slot: `pixels`, `targets`, `labels` (log-probabilities) and `clients`."""
        assert self._store is not None
        return dict(zip(("pixels", "targets", "labels", "clients"), self._store, strict=True))

    @property
    def serials(self) -> Int[Tensor, " images"]:
        """The running number of the image in each slot, from 0: a slot that is overwritten gets a new one."""
        newest = self.written - 1
        return newest - (newest - torch.arange(len(self))) % self.capacity

    def state_dict(self) -> Tree:
        """All that is stored."""
        return {"written": self.written, "store": self._store}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from `state`."""
        store = state["store"]
        assert store is None or len(store[0]) == min(state["written"], self.capacity), (
            "a pool of another size"
        )
        self.written, self._store = state["written"], store
