"""The equations of the methods that train a generator, as naive loops; see `reference` for the rest."""

import math
from collections.abc import Callable, Sequence

import torch
from reference import softmax
from torch import Tensor

Parameters = list[Tensor]


def mean_difference(teacher: Tensor, student: Tensor, mask: str) -> Tensor:
    """`1/(B C) sum_i m_i sum_c |t_ic - s_ic|`."""
    total = torch.zeros((), dtype=teacher.dtype)
    for t, s in zip(teacher, student, strict=True):
        agree = t.tolist().index(max(t.tolist())) == s.tolist().index(max(s.tolist()))
        if {"agree": agree, "disagree": not agree, "none": True}[mask]:
            for t_c, s_c in zip(t, s, strict=True):
                total = total + (t_c - s_c if t_c > s_c else s_c - t_c)
    return total / (len(teacher) * teacher.shape[1])


def class_balance(logits: Tensor) -> Tensor:
    """`sum_c pbar_c ln pbar_c`."""
    rows = [softmax(row) for row in logits]
    total = torch.zeros((), dtype=logits.dtype)
    for c in range(logits.shape[1]):
        mean = sum(row[c] for row in rows) / len(rows)
        total = total + mean * torch.log(mean)
    return total


def activation(features: Sequence[Tensor]) -> Tensor:
    """`-1/K sum_k 1/(B D_k) sum_b sum_d |f_k,bd|`."""
    total = torch.zeros((), dtype=features[0].dtype)
    for f in features:
        one = torch.zeros((), dtype=f.dtype)
        for row in f:
            for value in row:
                one = one + (value if value > 0 else -value)
        total = total - one / (f.shape[0] * f.shape[1])
    return total / len(features)


def hard_cross_entropy(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """`-1/B sum_i (1 - p_iy)^g ln p_iy`; the factors are numbers and take no part in the gradient."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = softmax(row)[label]
        total = total - (1 - p.item()) ** power * torch.log(p)
    return total / len(logits)


def mode_seeking(x: Tensor, logits: Tensor, norm: str) -> Tensor:
    """`1 / ( ||x2 - x1|| / ||p2 - p1|| + 1e-20 )` over halves; `rms`: norms over the root of their entries."""
    half = len(x) // 2
    p = [softmax(row) for row in logits]
    squares_x = squares_p = torch.zeros((), dtype=x.dtype)
    for i in range(half):
        for one, other in zip(x[i].flatten(), x[half + i].flatten(), strict=True):
            squares_x = squares_x + (other - one) ** 2
        for one, other in zip(p[i], p[half + i], strict=True):
            squares_p = squares_p + (other - one) ** 2
    if norm == "rms":
        squares_x, squares_p = squares_x / x[:half].numel(), squares_p / (half * len(p[0]))
    return 1 / (torch.sqrt(squares_x) / torch.sqrt(squares_p) + 1e-20)


def statistics(f: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Variance (biased) and mean of each channel over samples, rows and columns."""
    variances, means = [], []
    for d in range(f.shape[1]):
        values = [
            f[n, d, i, j] for n in range(f.shape[0]) for i in range(f.shape[2]) for j in range(f.shape[3])
        ]
        mean = sum(values) / len(values)
        means.append(mean)
        variances.append(sum((v - mean) ** 2 for v in values) / len(values))
    return variances, means  # type: ignore[return-value]


def remembered_distance(
    running: tuple[Tensor, Tensor], f: Tensor, memory: tuple[list[float], list[float]] | None, a: float
) -> Tensor:
    """`||rv - (1 - a) var - a var_ema|| + ||rm - (1 - a) mean - a mean_ema||` of a layer; plain without memory."""
    total = torch.zeros((), dtype=f.dtype)
    for which, current in enumerate(statistics(f)):
        squares = torch.zeros((), dtype=f.dtype)
        for d, value in enumerate(current):
            seen = value if memory is None else (1 - a) * value + a * memory[which][d]
            squares = squares + (running[which][d] - seen) ** 2
        total = total + torch.sqrt(squares)
    return total


def exp_increments(losses: Sequence[float], every: int) -> list[tuple[float, float]]:
    """The reference that each step leaves, and `exp(L - ref)` with the one that it found."""
    found, ref = [], 0.0
    for step, loss in enumerate(losses):
        value = math.exp(loss - ref)
        if step % every == 1:
            ref = loss
        found.append((ref, value))
    return found


class HandAdam:
    """Adam by its equations (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, rates: Sequence[float], betas: tuple[float, float] = (0.5, 0.999)) -> None:
        self.rates, self.betas, self.t = rates, betas, 0
        self.m = [torch.zeros(())] * len(rates)
        self.v = [torch.zeros(())] * len(rates)

    def __call__(self, parameters: Parameters, gradients: Sequence[Tensor]) -> Parameters:
        """The parameters after a step."""
        self.t += 1
        (b1, b2), moved = self.betas, []
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g * g
            m, v = self.m[i] / (1 - b1**self.t), self.v[i] / (1 - b2**self.t)
            moved.append((p - self.rates[i] * m / (torch.sqrt(v) + 1e-8)).detach())
        return moved


def meta_learning(
    start: Parameters,
    latents: Sequence[Tensor],
    loss: Callable[[Parameters, Tensor], Tensor],
    how: str,
    steps: int,
    rate: float,
    latent_rate: float,
    factor: float = 67.0,
) -> list[Parameters]:
    """FastDFKD's outer parameters after each batch."""
    outer, number = start, len(start)
    meta = HandAdam([rate * steps] * number)
    history = []
    for z in latents:
        inner, adam = outer, HandAdam([rate] * number + [latent_rate])
        summed = [torch.zeros_like(p) for p in outer]
        for _ in range(steps):
            leaves = [p.clone().requires_grad_() for p in [*inner, z]]
            gradients = torch.autograd.grad(loss(leaves[:-1], leaves[-1]), leaves)
            summed = [s + g for s, g in zip(summed, gradients[:-1], strict=True)]
            *inner, z = adam([*inner, z], gradients)
        if how == "fast":
            outer = inner
        elif how == "fomaml":
            outer = meta(outer, summed)
        else:
            outer = meta(outer, [factor * (p - q) for p, q in zip(outer, inner, strict=True)])
        history.append(outer)
    return history
