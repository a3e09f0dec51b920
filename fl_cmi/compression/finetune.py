"""Self-distillation: the small model learns from the one it was made of."""

from contextlib import nullcontext

import torch
from torch import nn

from fl_cmi.bank import Draws
from fl_cmi.compression.simulated import fixed_statistics
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.ensemble import Ensemble

__all__ = ["fine_tune"]


def fine_tune(
    small: nn.Module,
    teacher: Ensemble,
    draws: Draws,
    distiller: Distiller,
    steps: int,
    freeze_batch_norm: bool,
    rng: torch.Generator,
) -> float:
    """Teach `small`, in place, what the teacher answers; the ranges of its activations stay as calibrated.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274.

    Args:
        small: A low-bit network with the teacher's own weights.
        teacher: The model in floating point, as an ensemble of one.
        draws: Images.
        distiller: Loss, optimizer, rates, mixup.
        steps: Steps, >= 0.
        freeze_batch_norm: Whether batch norm keeps its running statistics; what the distiller says of them is void.
        rng: Images, augmentation, mixup.

    Returns:
        The mean loss.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    small.requires_grad_(True)  # the teacher, of which it is a copy, needs no gradients
    lesson = distiller.begin(small)
    with fixed_statistics(small) if freeze_batch_norm else nullcontext():
        loss = lesson(teacher, draws, steps, (0.0, 1.0), rng)
    if not freeze_batch_norm:
        lesson.settle(draws, rng)
    small.eval()
    return loss
