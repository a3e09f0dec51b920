"""Federated update rules again, as naive loops from the papers' equations; nothing of the package is imported."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
"""A client's gradient at some weights."""


def scaffold(
    x: Tensor,
    gradients: Sequence[Gradient],
    rounds: Sequence[Sequence[int]],
    rate: float,
    steps: int,
    server_rate: float,
    option: int,
    shares: Callable[[Sequence[int]], Sequence[float]],
) -> list[Tensor]:
    """Algorithm 1 of arXiv 1910.06378: the model after each round; `shares` are the weights of a round's clients."""
    c, own, found = torch.zeros_like(x), [torch.zeros_like(x) for _ in gradients], []
    for clients in rounds:
        ends, changes = [], []
        for k in clients:
            y = x.clone()
            for _ in range(steps):
                y = y - rate * (gradients[k](y) - own[k] + c)
            new = gradients[k](x) if option == 1 else own[k] - c + (x - y) / (steps * rate)
            ends.append(y)
            changes.append(new - own[k])
            own[k] = new
        p = shares(clients)
        x = x + server_rate * sum(p_k * (y - x) for p_k, y in zip(p, ends, strict=True))
        c = c + sum(changes) / len(gradients)
        found.append(x)
    return found


def momentum_norm(steps: int, momentum: float) -> float:
    """`||a||_1`, `a_j = (1 - rho^(tau - j)) / (1 - rho)` for j = 0..tau-1 (arXiv 2007.07481, section 4)."""
    return sum((1 - momentum ** (steps - j)) / (1 - momentum) for j in range(steps))


def proximal_norm(steps: int, alpha: float) -> float:
    """`||a||_1`, `a_j = (1 - alpha)^(tau - 1 - j)`, alpha = rate mu (arXiv 2007.07481, section 4)."""
    return sum((1 - alpha) ** (steps - 1 - j) for j in range(steps))


def fednova(
    x: Tensor, ends: Sequence[Tensor], rate: float, norms: Sequence[float], examples: Sequence[int]
) -> Tensor:
    """`x - tau_eff sum_k p_k rate d_k` with `d_k = (x - y_k) / (rate ||a_k||_1)` (arXiv 2007.07481, equation 6)."""
    p = [n / sum(examples) for n in examples]
    effective = sum(p_k * norm for p_k, norm in zip(p, norms, strict=True))
    step = torch.zeros_like(x)
    for p_k, y, norm in zip(p, ends, norms, strict=True):
        direction = (x - y) / (rate * norm)
        step = step + p_k * rate * direction
    return x - effective * step


def softmax_gradient(
    weight: Tensor, bias: Tensor, images: Tensor, labels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The gradient of the mean cross-entropy of `W x + b`, sample by sample."""
    at_weight, at_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for x, y in zip(images, labels, strict=True):
        exponentials = [math.exp(float(weight[c] @ x + bias[c])) for c in range(len(bias))]
        for c in range(len(bias)):
            error = exponentials[c] / sum(exponentials) - (c == y)
            at_weight[c] += error * x / len(labels)
            at_bias[c] += error / len(labels)
    return at_weight, at_bias


def diversity(eps: Tensor, z: Tensor) -> Tensor:
    """`exp(- mean_ij mean_d |z_i - z_j| mean_e (eps_i - eps_j)^2)`."""
    total = torch.zeros((), dtype=z.dtype)
    for i in range(len(z)):
        for j in range(len(z)):
            apart = sum(torch.abs(z[i, d] - z[j, d]) for d in range(z.shape[1])) / z.shape[1]
            noise = sum((eps[i, e] - eps[j, e]) ** 2 for e in range(eps.shape[1])) / eps.shape[1]
            total = total + apart * noise
    return torch.exp(-total / len(z) ** 2)


def log_softmax(row: Tensor, label: int) -> Tensor:
    """`ln p_label`."""
    return row[label] - torch.log(sum(torch.exp(value) for value in row))


def weighted_teacher(logits_KBC: Tensor, y: Sequence[int], counts: Sequence[Sequence[float]]) -> Tensor:
    """`sum_k mean_b W[y_b, k] CE(h_k(z_b), y_b)` with `W[c, k] = n_k(c) / sum_j n_j(c)`."""
    total = torch.zeros((), dtype=logits_KBC.dtype)
    for k in range(len(logits_KBC)):
        for b, label in enumerate(y):
            share = counts[k][label] / sum(row[label] for row in counts)
            total = total - share * log_softmax(logits_KBC[k, b], label) / len(y)
    return total


def released_teacher(logits_KBC: Tensor, y: Sequence[int], counts: Sequence[Sequence[float]]) -> Tensor:
    """`sum_k mean_{b,b'} W[y_b, k] CE(h_k(z_b'), y_b')`: every weight meets every loss."""
    total = torch.zeros((), dtype=logits_KBC.dtype)
    for k in range(len(logits_KBC)):
        for owned in y:
            share = counts[k][owned] / sum(row[owned] for row in counts)
            for b, label in enumerate(y):
                total = total - share * log_softmax(logits_KBC[k, b], label) / len(y) ** 2
    return total


def mean_logits_teacher(logits_KBC: Tensor, y: Sequence[int]) -> Tensor:
    """`1/B sum_b CE(softmax(1/K sum_k h_k(z_b)), y_b)`."""
    total = torch.zeros((), dtype=logits_KBC.dtype)
    for b, label in enumerate(y):
        mean = sum(logits_KBC[k, b] for k in range(len(logits_KBC))) / len(logits_KBC)
        total = total - log_softmax(mean, label) / len(y)
    return total


def label_means(batches: Sequence[tuple[Tensor, Sequence[int]]], classes: int, start: int) -> Tensor:
    """`m_c`: the sum of logits of class c over its count, which begins at `start`."""
    result = torch.zeros(classes, classes, dtype=torch.float64)
    for c in range(classes):
        count = start
        for logits, labels in batches:
            for row, label in zip(logits, labels, strict=True):
                if label == c:
                    result[c] += row
                    count += 1
        result[c] /= max(count, 1)
    return result
