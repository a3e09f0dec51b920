"""What FedGen's generator learns from the clients' heads: pure functions.

Shape letters: K client heads, B batch, C classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["mean_logits_teacher", "released_teacher", "weighted_teacher"]


def released_teacher(
    logits_KBC: Float[Tensor, "clients batch classes"],
    y: Int[Tensor, " batch"],
    weights_CK: Float[Tensor, "classes clients"],
) -> Float[Tensor, ""]:
    """`sum_k ( 1/B sum_b W[y_b, k] ) ( 1/B sum_b CE(h_k(z_b), y_b) )`, what the released code computes.

    It multiplies the losses, a row, by the weights, a column, and takes the mean of the B x B products: a head's say is
    the same for all labels of the batch, its mean weight. `weighted_teacher` is what was meant.

    Args:
        logits_KBC: What each client's head says of the features.
        y: Labels of the features.
        weights_CK: W, rows summing to 1.
    """
    return (weights_CK[y].T.mean(dim=1) * losses(logits_KBC, y).mean(dim=1)).sum()


def weighted_teacher(
    logits_KBC: Float[Tensor, "clients batch classes"],
    y: Int[Tensor, " batch"],
    weights_CK: Float[Tensor, "classes clients"],
) -> Float[Tensor, ""]:
    """`sum_k 1/B sum_b W[y_b, k] CE(h_k(z_b), y_b)`: who owns many images of a label has much to say about it.

    Args:
        logits_KBC: What each client's head says of the features.
        y: Labels of the features.
        weights_CK: W, rows summing to 1.
    """
    return (weights_CK[y].T * losses(logits_KBC, y)).mean(dim=1).sum()


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


def losses(
    logits_KBC: Float[Tensor, "clients batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, "clients batch"]:
    """`CE(h_k(z_b), y_b)`."""
    return -F.log_softmax(logits_KBC, dim=2)[:, torch.arange(len(y), device=y.device), y]
