"""Named random streams.

A stream is found by its name, not by its place in a sequence of draws: adding a client or a loss term shifts
nothing else, and the order in which clients answer does not matter.
"""

import hashlib

import numpy as np
import torch

__all__ = ["numpy_stream", "stream", "stream_seed"]


def stream_seed(seed: int, *name: str | int) -> int:
    """The 63-bit seed of the stream called `name` in the run seeded with `seed`.

    The first eight bytes of sha256 over the seed and the parts of the name: `("client", 1)` and `("client", "1")`
    differ, and so do `("a", "bc")` and `("ab", "c")`.
    """
    digest = hashlib.sha256(repr((int(seed), *name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator for the stream called `name`; draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    """The same stream for numpy (other draws than `stream`, the same independence)."""
    return np.random.default_rng(stream_seed(seed, *name))
