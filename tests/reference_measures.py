"""Measures of a synthetic set, from their equations, in plain float64 loops."""

import math

import numpy as np
from scipy import linalg

Rows = list[list[float]]


def class_balance(predicted: list[int], num_classes: int) -> float:
    entropy = 0.0
    for c in range(num_classes):
        share = sum(p == c for p in predicted) / len(predicted)
        if share > 0:
            entropy -= share * math.log(share)
    return entropy / math.log(num_classes)


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))


def mean_and_covariance(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    mean = [sum(row[d] for row in rows) / len(rows) for d in range(len(rows[0]))]
    covariance = [
        [
            sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (len(rows) - 1)
            for j in range(len(mean))
        ]
        for i in range(len(mean))
    ]
    return np.array(mean), np.array(covariance)


def frechet_distance(real: Rows, synthetic: Rows) -> float:
    (m_r, s_r), (m_s, s_s) = mean_and_covariance(real), mean_and_covariance(synthetic)
    root = linalg.sqrtm(s_r @ s_s)
    return float(((m_r - m_s) ** 2).sum() + np.trace(s_r + s_s - 2 * root.real))


def diversity(rows: Rows, classes: list[int]) -> float:
    means = []
    for c in set(classes):
        members = [row for row, own in zip(rows, classes, strict=True) if own == c]
        n = len(members)
        if n >= 2:
            total = sum(distance(members[i], members[j]) for i in range(n) for j in range(n) if i != j)
            means.append(total / (n * (n - 1)))
    return sum(means) / len(means)


def manifold_share(inside: Rows, manifold: Rows, k: int) -> float:
    radius = []
    for j, center in enumerate(manifold):
        others = sorted(distance(center, other) for i, other in enumerate(manifold) if i != j)
        radius.append(others[k - 1])
    hits = 0
    for row in inside:
        hits += any(distance(row, center) <= r for center, r in zip(manifold, radius, strict=True))
    return hits / len(inside)
