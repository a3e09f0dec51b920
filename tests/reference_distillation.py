"""The equations of distillation again, as naive loops over single samples, classes and rows.

Nothing of the package is imported. Tensors go in as float64 and results stay differentiable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reference import dot, softmax
from torch import Tensor


def centered(row: Tensor) -> Tensor:
    """`z_c - mean_c z_c`."""
    mean = sum(row) / len(row)
    return torch.stack([z - mean for z in row])


def l1(target: Tensor, student: Tensor, reduction: str, center: bool) -> Tensor:
    """`mean_b sum_c |s - t|`, and over C where `reduction` is `mean`."""
    total = torch.zeros((), dtype=student.dtype)
    for t, s in zip(target, student, strict=True):
        t, s = (centered(t), centered(s)) if center else (t, s)
        for t_c, s_c in zip(t, s, strict=True):
            total = total + (s_c - t_c if s_c > t_c else t_c - s_c)
    return total / len(student) / (student.shape[1] if reduction == "mean" else 1)


def jensen_shannon(target: Tensor, student: Tensor, temperature: float, floor: float) -> Tensor:
    """`mean_b [KL(M||P) / 2 + KL(M||Q) / 2]`, with P, Q and their mean M clamped each by itself."""
    total = torch.zeros((), dtype=student.dtype)
    for t, s in zip(target, student, strict=True):
        for p, q in zip(softmax(s, temperature), softmax(t, temperature), strict=True):
            m = torch.clamp((p + q) / 2, floor, 1 - floor)
            p, q = (torch.clamp(v, floor, 1 - floor) for v in (p, q))
            total = total + m * torch.log(m / p) / 2 + m * torch.log(m / q) / 2
    return total / len(student)


def embedded(weight: Tensor, bias: Tensor, row: Tensor) -> Tensor:
    """`(W f + b) / ||W f + b||`."""
    out = torch.stack([dot(w, row) + b for w, b in zip(weight, bias, strict=True)])
    return out / torch.sqrt(dot(out, out))


@dataclass
class CrdPair:
    """Weight and bias of both projections, both banks, and both Z once they are known."""

    student: tuple[Tensor, Tensor]
    teacher: tuple[Tensor, Tensor]
    student_bank: list[Tensor]
    teacher_bank: list[Tensor]
    student_z: Tensor | None = None
    teacher_z: Tensor | None = None


def crd_side(
    e: list[Tensor], bank: list[Tensor], chosen: Sequence[Sequence[int]], tau: float, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`L(side)` and Z; in each row of `chosen` the positive is the first."""
    n, negatives = len(bank), len(chosen[0]) - 1
    likeness = [[torch.exp(dot(bank[j], e_i) / tau) for j in row] for e_i, row in zip(e, chosen, strict=True)]
    if z is None:
        z = n * sum(sum(row) for row in likeness).detach() / (len(e) * (1 + negatives))  # type: ignore[union-attr]
    total = torch.zeros((), dtype=e[0].dtype)
    noise = negatives / n
    for row in likeness:
        a = [value / z for value in row]
        total = total - torch.log(a[0] / (a[0] + noise + 1e-7))
        for value in a[1:]:
            total = total - torch.log(noise / (value + noise + 1e-7))
    return total / len(e), z


def crd(
    pair: CrdPair,
    f_s: Tensor,
    f_t: Tensor,
    index: Sequence[int],
    chosen: Sequence[Sequence[int]],
    tau: float,
    momentum: float,
) -> Tensor:
    """Both sides' loss; the pair's Z and banks are brought up to date."""
    e_s, e_t = [embedded(*pair.student, row) for row in f_s], [embedded(*pair.teacher, row) for row in f_t]
    student, pair.student_z = crd_side(e_s, pair.teacher_bank, chosen, tau, pair.student_z)
    teacher, pair.teacher_z = crd_side(e_t, pair.student_bank, chosen, tau, pair.teacher_z)
    for bank, e in ((pair.student_bank, e_s), (pair.teacher_bank, e_t)):
        before = list(bank)
        for i, row in zip(index, e, strict=True):
            mixed = (momentum * before[i] + (1 - momentum) * row).detach()
            bank[i] = mixed / torch.sqrt(dot(mixed, mixed))
    return student + teacher


def nt_xent(
    anchors: Tensor,
    images: Sequence[int],
    references: Tensor,
    reference_images: Sequence[int],
    itself: Sequence[int],
    tau: float,
) -> Tensor:
    """The mean over positive pairs (i, j) of `-ln( exp(e_i r_j / tau) / (exp(e_i r_j / tau) + sum_k ...) )`.

    `itself[i]` is the place of anchor i among the references, which is no pair.
    """
    losses = []
    for i, (anchor, image) in enumerate(zip(anchors, images, strict=True)):
        scores = [torch.exp(dot(anchor, row) / tau) for row in references]
        negatives = [s for s, other in zip(scores, reference_images, strict=True) if other != image]
        for j, other in enumerate(reference_images):
            if other == image and j != itself[i]:
                losses.append(-torch.log(scores[j] / (scores[j] + sum(negatives))))
    return sum(losses) / len(losses)  # type: ignore[return-value]
