"""Test metrics."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fl_cmi.types import Images

__all__ = ["accuracy", "predict"]


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor], images: Images, device: torch.device, batch_size: int = 1000
) -> Tensor:
    """Logits (N, C) of a model, or of any function of images, on the CPU; its train/eval mode is put back."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        batches = torch.arange(len(images)).split(batch_size)
        return torch.cat([model(images.pixels(batch).to(device)).cpu() for batch in batches])
    finally:
        if isinstance(model, nn.Module):
            model.train(training)


def accuracy(logits: Tensor, images: Images) -> float:
    """Share of images whose label has the highest logit, in [0, 1]."""
    return (logits.argmax(dim=1) == images.y).double().mean().item()
