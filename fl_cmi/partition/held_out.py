"""Images that no client gets, because the server keeps them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fl_cmi.partition.types import Labels, Partition
from fl_cmi.types import ConfigError

__all__ = ["hold_out"]


def hold_out(
    labels: Labels, number: int, rng: np.random.Generator, deal: Callable[[Labels], Partition]
) -> Partition:
    """Set images aside, uniformly at random, and deal the others to the clients.

    Methods that are compared should all leave the same images out, whether they use them or not.

    Args:
        labels: Classes (N,), 0..C-1.
        number: Images to set aside, 0..N-1. With 0, `deal` gets all of them in their order.
        rng: Source of the choice, and of nothing else.
        deal: Makes the partition of the labels that it is given; what it holds out itself is held out as well.

    Raises:
        ConfigError: If nothing would be left for the clients.
    """
    if number == 0:
        return deal(labels)
    if number >= len(labels):
        raise ConfigError("held_out", number, f"fewer than the {len(labels)} training images")
    shuffled = rng.permutation(len(labels))
    chosen, rest = np.sort(shuffled[:number]), np.sort(shuffled[number:])
    dealt = deal(labels[rest])
    own = np.empty(0, np.int64) if dealt.held_out is None else rest[dealt.held_out]
    return replace(
        dealt,
        indices=tuple(rest[indices] for indices in dealt.indices),
        held_out=np.concatenate([chosen, own]),
        notes=(*dealt.notes, f"{number} images were held out for the server before"),
    )
