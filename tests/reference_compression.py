"""The equations of compression again, as naive loops over single numbers; nothing of the package is imported."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def quantize(x: float, low: float, high: float, bits: int) -> float:
    """`round(clip((x - low) / scale, 0, 2^b - 1)) scale + low`, halves to even."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    return round(min(max((x - low) / scale, 0), levels)) * scale + low


def per_channel(weight: Tensor, bits: int) -> Tensor:
    """Each output channel by its own least and greatest weight."""
    rows = []
    for row in weight.flatten(1).tolist():
        rows.append([quantize(w, min(row), max(row), bits) for w in row])
    return torch.tensor(rows, dtype=weight.dtype).view_as(weight)


def mean_range(batches: Sequence[Tensor]) -> tuple[float, float]:
    """Mean over all samples of their least and of their greatest value."""
    lows, highs = [], []
    for x in batches:
        for sample in x:
            values = sample.flatten().tolist()
            lows.append(min(values))
            highs.append(max(values))
    return sum(lows) / len(lows), sum(highs) / len(highs)


def layer_match(learnt: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """`sum_k 2 (k + 1) / (n^2 + n) mean SmoothL1(h_k^s - h_k^t)`."""
    n = len(learnt)
    total = torch.zeros((), dtype=learnt[0].dtype)
    for k in range(n):
        distances = []
        for s, t in zip(learnt[k].flatten(), taught[k].flatten(), strict=True):
            d = (s - t).abs()
            distances.append(d * d / 2 if d < 1 else d - 0.5)
        total = total + 2 * (k + 1) / (n * n + n) * sum(distances) / len(distances)
    return total


def warm_stairs(epoch: int) -> float:
    """The CIFAR schedule of 80 epochs: 10 of warm-up, 15 flat, 40 of cosine by the epoch, then flat."""
    if epoch < 10:
        return (1 - math.cos(math.pi * epoch / 10)) / 2
    if epoch < 25:
        return 1.0
    if epoch < 65:
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (epoch - 25) / 40)) / 2
    return 0.01
