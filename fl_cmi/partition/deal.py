"""From a table of counts, clients x classes, to index arrays."""

import numpy as np

from fl_cmi.partition.types import Counts, Indices, Labels

__all__ = ["cut", "deal"]


def cut(indices: np.ndarray, sizes: np.ndarray) -> Indices:
    """Consecutive pieces of the given sizes; what is left over is dropped."""
    ends = np.cumsum(sizes)
    return tuple(np.split(indices[: ends[-1]], ends[:-1]))


def deal(labels: Labels, counts_KC: Counts, rng: np.random.Generator) -> Indices:
    """Give client k `counts_KC[k, c]` random images of class c, no image twice, in random order."""
    clients, classes = counts_KC.shape
    have_C, dealt_C = np.bincount(labels, minlength=classes), counts_KC.sum(axis=0)
    assert len(have_C) == classes, "a class without a column"
    assert (dealt_C <= have_C).all(), "more images dealt than there are"
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]  # class after class, shuffled within
    place = np.arange(len(labels)) - np.repeat(np.cumsum(have_C) - have_C, have_C)  # rank within the class
    dealt = by_class[place < np.repeat(dealt_C, have_C)]
    owner = np.repeat(np.tile(np.arange(clients), classes), counts_KC.T.ravel())
    mixed = rng.permutation(len(dealt))
    dealt, owner = dealt[mixed], owner[mixed]
    return cut(dealt[np.argsort(owner, kind="stable")], counts_KC.sum(axis=1))
