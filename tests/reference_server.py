"""The equations of the methods in which only the server distils, as naive loops; nothing of the package is imported."""

import math
from collections.abc import Sequence

import torch
from reference import cross_entropy, softmax
from torch import Tensor


def owner_weights(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """`W_kc = n_k(c) / sum_j n_j(c)`, 0 where nobody owns c."""
    totals = [sum(row[c] for row in counts) for c in range(len(counts[0]))]
    return [[row[c] / totals[c] if totals[c] else 0.0 for c in range(len(row))] for row in counts]


def hard_samples(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """`-1/B sum_i W_i 1/C sum_c |s_ic - t_ic|`, t a constant."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t, w in zip(student, teacher.detach(), weight, strict=True):
        total = total - w * sum(abs(a - b) for a, b in zip(s, t, strict=True)) / len(s)
    return total / len(student)


def hard_samples_kl(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """`-1/B sum_i W_i KL(p_t,i || p_s,i)`, t a constant."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t, w in zip(student, teacher.detach(), weight, strict=True):
        p, q = softmax(t), softmax(s)
        total = total - w * sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def fidelity(teacher: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`CE(t, y) * 1/B sum_i W_i`."""
    return cross_entropy(teacher, y) * sum(weight) / len(weight)


def pairwise_diversity(x: Tensor, z: Tensor) -> Tensor:
    """`exp( -1/B^2 sum_ij mean|x_i - x_j| mean(z_i - z_j)^2 )`."""
    total = torch.zeros((), dtype=x.dtype)
    for i in range(len(x)):
        for j in range(len(x)):
            pixels = [abs(a - b) for a, b in zip(x[i].flatten(), x[j].flatten(), strict=True)]
            latents = [(a - b) ** 2 for a, b in zip(z[i], z[j], strict=True)]
            total = total + sum(pixels) / len(pixels) * sum(latents) / len(latents)
    return torch.exp(-total / len(x) ** 2)


def owners(logits: Tensor, counts: Sequence[Sequence[int]], y: Sequence[int]) -> list[list[Tensor]]:
    """`q_ic = sum_k W_{k, y_i} softmax(t_ki)_c`."""
    weights = owner_weights(counts)
    rows = []
    for i, label in enumerate(y):
        shares = [softmax(logits[k][i]) for k in range(len(counts))]
        rows.append(
            [sum(weights[k][label] * shares[k][c] for k in range(len(counts))) for c in range(len(shares[0]))]
        )
    return rows


def soft_loss(target: Sequence[Sequence[Tensor]], student: Tensor) -> Tensor:
    """`-1/(B C) sum_ic q_ic ln softmax(s_i)_c`."""
    total = torch.zeros((), dtype=student.dtype)
    for q, s in zip(target, student, strict=True):
        for q_c, p_c in zip(q, softmax(s), strict=True):
            total = total - q_c * torch.log(p_c)
    return total / student.numel()


def weighted_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """`sum_k w_k t_k / sum_k w_k`."""
    total = sum(weights)
    rows = [
        torch.stack(
            [sum(w * t[i, c] for w, t in zip(weights, logits, strict=True)) for c in range(logits.shape[2])]
        )
        for i in range(logits.shape[1])
    ]
    return torch.stack(rows) / total


def weight_step(weights: Sequence[float], logits: Tensor, y: Tensor, rate: float) -> list[float]:
    """`clip(w - r sign(d CE / d w_k), 0, 1)`, the slope written out.

    d T_w / d w_k = (t_k - T_w) / sum w, and d CE / d T_ic = (p_ic - [c = y_i]) / B.
    """
    combined, total = weighted_logits(logits, torch.tensor(weights, dtype=logits.dtype)), sum(weights)
    moved = []
    for w, own in zip(weights, logits, strict=True):
        slope = 0.0
        for i, label in enumerate(y.tolist()):
            for c, p in enumerate(softmax(combined[i])):
                slope += float((p - float(c == label)) * (own[i, c] - combined[i, c])) / total / len(y)
        moved.append(min(1.0, max(0.0, w - rate * math.copysign(1.0, slope) if slope else w)))
    return moved


def worth_keeping(accuracies: Sequence[float], num_classes: int) -> list[int]:
    """FedDF's drop_worst, in plain numbers."""
    passed = [k for k, a in enumerate(accuracies) if a >= 1.2 / num_classes]
    if not passed:
        return list(range(len(accuracies)))
    mean = sum(accuracies[k] for k in passed) / len(passed)
    deviation = math.sqrt(sum((accuracies[k] - mean) ** 2 for k in passed) / len(passed))
    return [k for k in passed if not accuracies[k] < mean - 1.5 * deviation - 1e-12]
