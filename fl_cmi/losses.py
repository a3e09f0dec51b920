"""Losses on logits and embeddings: pure functions, reduced over the batch as each docstring says.

Shape letters: B batch, C classes, D embedding width, N negatives.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fl_cmi.precision import full
from fl_cmi.products import product

__all__ = [
    "entropy",
    "info_nce",
    "js_divergence",
    "kl_divergence",
    "label_log_prior",
    "pairwise_diversity",
    "soft_cross_entropy",
]


def kl_divergence(
    target: Float[Tensor, "batch classes"],
    student: Float[Tensor, "batch classes"],
    temperature: float = 1.0,
    weight: Float[Tensor, " batch"] | Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """`T^2 / B * sum_i w_i KL(softmax(t_i / T) || softmax(s_i / T))`, in nats.

    The divisor is the batch size and not the sum of weights, so a mask that excludes samples lowers the loss
    (Fang et al. 2021, masked KL). Neither side is detached.

    References:
        Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.

    Args:
        target: Teacher logits, or log-probabilities (softmax leaves them as they are at T = 1).
        student: Student logits.
        temperature: T > 0.
        weight: Weight or mask of each sample; None counts all as 1.
    """
    log_p = F.log_softmax(target / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    # A class that no client owns has log p = -inf; its share of the sum is p log p = 0, not NaN.
    share = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p.nan_to_num(neginf=0.0) - log_q))
    per_sample = share.sum(dim=1)
    if weight is not None:
        per_sample = per_sample * weight
    return temperature**2 * per_sample.mean()


def js_divergence(
    one: Float[Tensor, "batch classes"],
    other: Float[Tensor, "batch classes"],
    temperature: float = 3.0,
    floor: float = 0.01,
) -> Float[Tensor, ""]:
    """`1/B sum_i KL(M_i || P_i) / 2 + KL(M_i || Q_i) / 2` with `M = (P + Q) / 2`, in nats, without a factor T^2.

    `P, Q = softmax(logits / T)`; all three are then clamped to [floor, 1 - floor], each by itself: a class that both
    sides rule out counts for nothing, and has no gradient. Symmetric in its arguments, and 0 where they are equal; as M
    is no longer the middle where P or Q is clamped, a little below 0 is possible.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795, with the clamp of the released code.

    Args:
        one: Logits.
        other: Logits.
        temperature: T > 0.
        floor: Least probability, in (0, .5).
    """
    p, q = (F.softmax(logits / temperature, dim=1) for logits in (one, other))
    p, q, m = (each.clamp(floor, 1 - floor) for each in (p, q, 0.5 * (p + q)))
    return (m * (m.log() - 0.5 * (p.log() + q.log()))).sum(dim=1).mean()


def soft_cross_entropy(
    target: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """`-1/B sum_i sum_c q_ic log softmax(s_i)_c` for target probabilities q, in nats."""
    return -(target * F.log_softmax(student, dim=1)).sum(dim=1).mean()


def entropy(probabilities: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """`-sum_c p_c log p_c`, in nats, with 0 log 0 = 0."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)


def info_nce(
    queries: Float[Tensor, "batch width"], keys: Float[Tensor, "keys width"], temperature: float
) -> Float[Tensor, " batch"]:
    """`c_i = -log( exp(q_i k_i / T) / sum_j exp(q_i k_j / T) )` per query; the positive of query i is key i.

    References:
        van den Oord et al. 2018, arXiv 1807.03748, equation 4; Fang et al. 2021 (CMI).

    Args:
        queries: L2-normalized rows.
        keys: L2-normalized rows, at least as many as queries; the first are the positives.
        temperature: T > 0.
    """
    if queries.device.type == "cpu" and not keys.requires_grad:
        c: Tensor = _InfoNce.apply(queries, keys, temperature)
        return c
    positives = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(full((queries / temperature) @ keys.T), positives, reduction="none")


class _InfoNce(torch.autograd.Function):
    """`info_nce` without the matrix of all similarities, for keys without gradient: twice as fast on a CPU.

    `dc_i / dq_i = (sum_j p_ij k_j - k_i) / T` with `p_i = softmax(q_i k^T / T)`.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
        positives = keys[: len(queries)]
        similar = (queries * positives).sum(dim=1) / temperature
        if torch.is_autocast_enabled("cpu"):
            keys = keys.bfloat16()
            # Rounded as they are in `values`: else their rounding is all that is left of the difference.
            positives = keys[: len(queries)].float()
        values, log_sum = in_blocks(queries / temperature, keys, similar)
        ctx.save_for_backward((values - positives) / temperature)
        return log_sum - similar

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_c: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return to_c[:, None] * slope, None, None


def in_blocks(
    queries: Float[Tensor, "batch width"],
    keys: Float[Tensor, "keys width"],
    similar: Float[Tensor, " batch"],
    rows: int = 128,
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, " batch"]]:
    """`sum_j p_ij k_j` and `log sum_j exp(s_ij)`, with `s = q k^T` and `p_i = softmax(s_i)`.

    Products are in the keys' type, sums in the queries'.

    Args:
        queries: q.
        keys: k.
        similar: s_ii as precise as q: the positives, mostly the largest by far, and no loss gets below 0.
        rows: Queries at a time, whose s stays in the processor's cache.
    """
    values, log_sums, turned = list[Tensor](), list[Tensor](), keys.T.contiguous()
    for some, own in zip(queries.to(keys).split(rows), similar.split(rows), strict=True):
        s = product(some, keys).to(queries)
        s.diagonal(rows * len(values)).copy_(own)
        p = s.softmax(dim=1)
        values.append(product(p.to(keys), turned).to(queries))
        log_sums.append(s.amax(dim=1) - p.amax(dim=1).log())
    return torch.cat(values), torch.cat(log_sums)


def pairwise_diversity(
    made: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch latents"]
) -> Float[Tensor, ""]:
    """`exp( -1/B^2 sum_ij mean|x_i - x_j| * mean (z_i - z_j)^2 )`, all pairs, i = j included; in (0, 1].

    1 where all that was made is the same.

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, released code, on features; Zhang et al. 2022 (FedFTG), arXiv
        2203.09249, on images.

    Args:
        made: x, what a generator made.
        noise: z, what it was made of.
    """
    flat = made.flatten(1)
    apart_BB = torch.cdist(flat, flat, p=1.0) / flat.shape[1]
    # Not by cdist: its square root has an infinite slope at i = j.
    noise_BB = (noise[:, None] - noise[None]).square().mean(dim=2)
    return (-(apart_BB * noise_BB).mean()).exp()


def label_log_prior(
    class_counts: Int[Tensor, "*clients classes"], smoothing: float = 1.0
) -> Float[Tensor, "*clients classes"]:
    """`log( (n_c + s) / (N + s C) )`: a client's log label prior, finite for classes it has never seen.

    Added to the logits inside the training loss it yields a prior-corrected model (Menon et al. 2021, arXiv
    2007.07314, equation 9: logit-adjusted loss with tau = 1); subtracted from a trained model's logits it corrects
    afterwards (equation 8).
    """
    smoothed = class_counts.double() + smoothing
    return (smoothed / smoothed.sum(dim=-1, keepdim=True)).log().float()
