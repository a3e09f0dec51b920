"""Normalization as the first layer of every model, so that images are [0, 1] everywhere else."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """`(x - mean) / std` per channel.

    The constants belong to the data set, not to what was learned: they move with the model but are no part of
    its state.

    Args:
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation, one per channel, > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        assert len(mean) == len(std), "one mean and one std per channel"
        assert min(std) > 0, "a std must be positive"
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Normalize images in [0, 1]."""
        return (x - self.mean) / self.std
