"""Classification: by the labels that images were made for, or by the teacher's probabilities."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.losses import soft_cross_entropy
from fl_cmi.types import ConfigError

__all__ = ["CrossEntropy", "SoftCrossEntropy"]


class CrossEntropy(DistillLoss):
    """`L = -1/B sum_i ln q_i,y_i` for the pool's own labels, q the softmax of the student's logits at T = 1.

    The label loss of distillation on real images (CRD's gamma); no data-free method uses it.
    """

    needs_pool = True

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The cross-entropy, in nats."""
        assert answers.y is not None, "checked by the schedule"
        return F.cross_entropy(answers.student, answers.y)


class SoftCrossEntropy(DistillLoss):
    """`L = -1/B sum_i sum_c p_ic ln q_ic`: KL at T = 1 and the entropy of the target, so KL's gradient.

    References:
        Zhang et al. 2022 (FedFTG), CVPR, the server's loss.

    Args:
        reduction: `sum_classes` divides by B; `mean` divides by C as well (FedFTG, with SGD at .1).
    """

    def __init__(self, reduction: Literal["sum_classes", "mean"] = "sum_classes") -> None:
        if reduction not in ("sum_classes", "mean"):
            raise ConfigError("distiller.loss...reduction", reduction, "sum_classes or mean")
        self.reduction = reduction

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The cross-entropy, in nats."""
        loss = soft_cross_entropy(answers.target.softmax(dim=1), answers.student)
        return loss / answers.target.shape[1] if self.reduction == "mean" else loss
