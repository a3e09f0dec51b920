"""FedGen's losses of the generator: pure functions.

Shape letters: K client heads, B batch, C classes, D features, E noise.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["diversity", "label_weights", "mean_logits_teacher", "weighted_teacher"]


def diversity(eps: Float[Tensor, "batch noise"], z: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    """`exp( -1/B^2 sum_ij mean_d|z_id - z_jd| mean_e (eps_ie - eps_je)^2 )`, in (0, 1]: 1 where all z are the same.

    All pairs count, i = j included.

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, as in the released code.

    Args:
        eps: Noise that the features were made of.
        z: The features.
    """
    apart_BB = (z[:, None] - z[None]).abs().mean(dim=2)
    noise_BB = (eps[:, None] - eps[None]).square().mean(dim=2)
    return (-(apart_BB * noise_BB).mean()).exp()


def label_weights(counts_KC: Float[Tensor, "clients classes"]) -> Float[Tensor, "classes clients"]:
    """`W[c, k] = n_k(c) / sum_j n_j(c)`: a client's share of a class; 0 for classes that nobody has."""
    return (counts_KC / counts_KC.sum(dim=0).clamp(min=torch.finfo(counts_KC.dtype).tiny)).T


def weighted_teacher(
    logits_KBC: Float[Tensor, "clients batch classes"],
    y: Int[Tensor, " batch"],
    weights_CK: Float[Tensor, "classes clients"],
) -> Float[Tensor, ""]:
    """`sum_k 1/B sum_b W[y_b, k] CE(h_k(z_b), y_b)`, the released code's loss.

    Args:
        logits_KBC: What each client's head says of the features.
        y: Labels of the features.
        weights_CK: W, rows summing to 1.
    """
    loss_KB = -F.log_softmax(logits_KBC, dim=2)[:, torch.arange(len(y), device=y.device), y]
    return (weights_CK[y].T * loss_KB).mean(dim=1).sum()


def mean_logits_teacher(
    logits_KBC: Float[Tensor, "clients batch classes"],
    y: Int[Tensor, " batch"],
    weights_CK: Float[Tensor, "classes clients"],
) -> Float[Tensor, ""]:
    """`CE(softmax(1/K sum_k h_k(z)), y)`, the paper's equation 4.

    Args:
        logits_KBC: What each client's head says of the features.
        y: Labels of the features.
        weights_CK: Not used; all clients count the same.
    """
    return F.cross_entropy(logits_KBC.mean(dim=0), y)
