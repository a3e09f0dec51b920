"""Which images of a pool an image is compared with.

Shape letters: B batch, K negatives.
"""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Deck", "distinct"]

Batch = Int[Tensor, " batch"]


class Deck:
    """A pool's slots sorted by class, from which positives and negatives are dealt, on the CPU.

    The slots of a class lie side by side, so that all the others are two runs, and a number below their count is a
    slot: nothing of the size of the pool is drawn or searched for an image.

    Args:
        labels: The class of each slot.
        positive: `exact`, the image itself; or `relax`, any image of its class.
        negatives: Images of `other_classes`; or `any` other images (where labels mean nothing).
    """

    def __init__(
        self,
        labels: Int[Tensor, " images"],
        positive: Literal["exact", "relax"] = "exact",
        negatives: Literal["other_classes", "any"] = "other_classes",
    ) -> None:
        self.labels, self.positive, self.negatives = labels, positive, negatives
        self.by_class = labels.argsort(stable=True)
        self.counts = torch.bincount(labels)
        self.starts = self.counts.cumsum(dim=0) - self.counts

    def deal(self, index: Batch, num_negatives: int, rng: torch.Generator) -> Int[Tensor, "batch columns"]:
        """For each slot of `index` its positive, then its negatives: no slot twice, all sets equally likely.

        They are as many as wanted, or as the image with the fewest candidates has: one number serves the whole batch.
        """
        negatives = self.deal_negatives(index, num_negatives, rng)
        return torch.cat([self.deal_positives(index, rng)[:, None], negatives], dim=1)

    def deal_positives(self, index: Batch, rng: torch.Generator) -> Batch:
        """The image itself or one of its class."""
        if self.positive == "exact":
            return index
        y = self.labels[index]
        return self.by_class[self.starts[y] + below(self.counts[y], rng)]

    def deal_negatives(
        self, index: Batch, number: int, rng: torch.Generator
    ) -> Int[Tensor, "batch negatives"]:
        """Slots outside the run that is an image's class, or itself."""
        if self.negatives == "any":
            order, start, length = torch.arange(len(self.labels)), index, torch.ones_like(index)
        else:
            y = self.labels[index]
            order, start, length = self.by_class, self.starts[y], self.counts[y]
        others = len(order) - length
        place = distinct(others, min(number, int(others.min())), rng)
        return order[place + (place >= start[:, None]) * length[:, None]]


def distinct(limit: Batch, number: int, rng: torch.Generator) -> Int[Tensor, "batch number"]:
    """For each row so many different integers in [0, limit), all sets equally likely.

    Where the limit is ample, numbers drawn twice are drawn again; the rest is shuffled, at most `2 number` wide. So
    the cost is that of the numbers wanted, and not of the limit.
    """
    assert number <= int(limit.min())
    found = torch.empty(len(limit), number, dtype=torch.int64)
    tight = limit < 2 * number
    found[tight], found[~tight] = shuffled(limit[tight], number, rng), redrawn(limit[~tight], number, rng)
    return found


def shuffled(limit: Batch, number: int, rng: torch.Generator) -> Int[Tensor, "batch number"]:
    """The first of each row's [0, limit) in random order."""
    if len(limit) == 0:
        return limit.new_empty(0, number)
    width = int(limit.max())
    keys = torch.rand(len(limit), width, generator=rng, dtype=torch.float64)
    keys[torch.arange(width) >= limit[:, None]] = 1.0
    return keys.topk(number, dim=1, largest=False).indices


def redrawn(limit: Batch, number: int, rng: torch.Generator) -> Int[Tensor, "batch number"]:
    """Draw, and draw again what has come twice, until nothing has."""
    limits = limit[:, None].expand(-1, number)
    found = below(limits, rng)
    while True:
        found = found.sort(dim=1).values
        again = torch.zeros_like(found, dtype=torch.bool)
        again[:, 1:] = found[:, 1:] == found[:, :-1]
        if not again.any():
            return found
        found[again] = below(limits[again], rng)


def below(limit: Int[Tensor, "*shape"], rng: torch.Generator) -> Int[Tensor, "*shape"]:
    """Uniform integers in [0, limit), element by element."""
    return (torch.rand(limit.shape, generator=rng, dtype=torch.float64) * limit).long()
