"""The equations of the robust rules and of trust again, as naive loops; nothing of the package is imported."""

import math
from collections.abc import Sequence

from torch import Tensor


def probabilities(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(v - max(logits)) for v in logits]
    return [p / sum(powers) for p in powers]


def shares(counts: Sequence[Sequence[float]], saturation: float | None) -> list[list[float]]:
    """`n / (1 + n / s)`, by class a sum of 1; `1/K` without saturation."""
    teachers, classes = len(counts), len(counts[0])
    if saturation is None:
        return [[1 / teachers] * classes for _ in range(teachers)]
    weights = [[n / (1 + n / saturation) for n in row] for row in counts]
    totals = [sum(row[c] for row in weights) for c in range(classes)]
    return [[row[c] / totals[c] if totals[c] else 0.0 for c in range(classes)] for row in weights]


def trimmed(pairs: Sequence[tuple[float, float]], trim: float) -> float:
    """Mean of (value, weight) without the share `trim` of the weight at either end, in small slices of weight."""
    slices = 10_000
    ordered = sorted(pairs)
    values = []
    for number in range(slices):
        at, upto = trim + (number + 0.5) / slices * (1 - 2 * trim), 0.0
        found = ordered[-1][0]
        for value, weight in ordered:
            upto += weight
            if upto >= at:
                found = value
                break
        values.append(found)
    return sum(values) / slices


def combined(
    logits: Tensor, counts: Sequence[Sequence[float]], trim: float, saturation: float | None
) -> list[list[float]]:
    """Probabilities for each sample."""
    teachers, batch, classes = logits.shape
    weights = shares(counts, saturation)
    found = []
    for b in range(batch):
        p = [probabilities([float(v) for v in logits[k, b]]) for k in range(teachers)]
        row = [trimmed([(p[k][c], weights[k][c]) for k in range(teachers)], trim) for c in range(classes)]
        found.append([value / sum(row) for value in row])
    return found


def weighted(
    logits: Tensor, counts: Sequence[Sequence[float]], trust: Sequence[float], saturation: float
) -> list[list[float]]:
    """`P_c ~ sum_k w_k W_kc p_kc / sum_j w_j W_jc`."""
    teachers, batch, classes = logits.shape
    weights = shares(counts, saturation)
    found = []
    for b in range(batch):
        p = [probabilities([float(v) for v in logits[k, b]]) for k in range(teachers)]
        row = []
        for c in range(classes):
            total = sum(trust[k] * weights[k][c] for k in range(teachers))
            row.append(sum(trust[k] * weights[k][c] * p[k][c] for k in range(teachers)) / total)
        found.append([value / sum(row) for value in row])
    return found


def agreement(said: Sequence[Sequence[int]], know: Sequence[Sequence[float]]) -> list[list[float]]:
    """How often two say the same, by how much both know."""
    teachers, images = len(said), len(said[0])
    table = []
    for k in range(teachers):
        row = []
        for j in range(teachers):
            common = sum(know[k][i] * know[j][i] for i in range(images))
            same = sum(know[k][i] * know[j][i] for i in range(images) if said[k][i] == said[j][i])
            row.append(same / common if common else math.nan)
        table.append(row)
    return table
