"""Batched augmentation on tensors: every sample its own draw, differentiable, no per-image Python."""

import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.types import ConfigError

__all__ = ["Augment", "CropFlip", "Identity", "ResizedCropFlip"]

Batch = Float[Tensor, "batch channels height width"]


class Augment(Protocol):
    """Maps a batch in [0, 1] to a randomly changed one of the same shape."""

    def __call__(self, x: Batch, rng: torch.Generator) -> Batch:
        """The changed batch."""
        ...


class Identity:
    """No augmentation."""

    def __call__(self, x: Batch, rng: torch.Generator) -> Batch:
        """Return `x` itself."""
        return x


class CropFlip:
    """Shift by up to `padding` pixels in each direction, zeros coming in, then flip left-right.

    The same as zero padding followed by a random crop of the old size.

    Args:
        padding: Largest shift in pixels, >= 0.
        flip: Probability of a flip, in [0, 1].
    """

    def __init__(self, padding: int = 4, flip: float = 0.5) -> None:
        if padding < 0:
            raise ConfigError("augment.padding", padding, "a number of pixels >= 0")
        if not 0 <= flip <= 1:
            raise ConfigError("augment.flip", flip, "a probability in [0, 1]")
        self.padding, self.flip = padding, flip

    def __call__(self, x: Batch, rng: torch.Generator) -> Batch:
        """One shift and one flip decision per sample."""
        batch, channels, height, width = x.shape
        pad = self.padding
        top = torch.randint(2 * pad + 1, (batch, 1), generator=rng)
        left = torch.randint(2 * pad + 1, (batch, 1), generator=rng)
        flipped = torch.rand(batch, 1, generator=rng) < self.flip
        columns = torch.arange(width)
        columns = torch.where(flipped, columns.flip(0), columns)
        rows = top + torch.arange(height)
        # Crop and flip are one gather over the flattened, padded pixels.
        index = rows[:, :, None] * (width + 2 * pad) + (left + columns)[:, None, :]
        index = index.to(x.device).view(batch, 1, height * width).expand(-1, channels, -1)
        padded = F.pad(x, (pad, pad, pad, pad)).flatten(2)
        return padded.gather(2, index).view(batch, channels, height, width)


class ResizedCropFlip:
    """Cut a random rectangle, stretch it to the full size (bilinear, corners aligned), then flip left-right.

    As torchvision's RandomResizedCrop: area = scale * H * W, log-uniform aspect ratio, ten attempts to fit, else the
    whole image.

    Args:
        scale: Range of the rectangle's share of the area, within (0, 1].
        ratio: Range of its width over its height.
        flip: Probability of a flip, in [0, 1].
    """

    attempts = 10

    def __init__(
        self,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError("augment.scale", scale, "shares of the area in ascending order, within (0, 1]")
        if not 0 < ratio[0] <= ratio[1]:
            raise ConfigError("augment.ratio", ratio, "positive ratios in ascending order")
        if not 0 <= flip <= 1:
            raise ConfigError("augment.flip", flip, "a probability in [0, 1]")
        self.scale, self.ratio, self.flip = (scale[0], scale[1]), (ratio[0], ratio[1]), flip

    def boxes(self, batch: int, height: int, width: int, rng: torch.Generator) -> Float[Tensor, "batch 4"]:
        """Rectangles (top, left, height, width) in whole pixels, one per sample."""
        shape = (batch, self.attempts)
        area = height * width * torch.empty(shape).uniform_(*self.scale, generator=rng)
        ratio = (
            torch.empty(shape).uniform_(math.log(self.ratio[0]), math.log(self.ratio[1]), generator=rng).exp()
        )
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.float().argmax(dim=1, keepdim=True)
        any_fits = fits.any(dim=1)
        w = torch.where(any_fits, w.gather(1, first)[:, 0], float(width))
        h = torch.where(any_fits, h.gather(1, first)[:, 0], float(height))
        top = (torch.rand(batch, generator=rng) * (height - h + 1)).floor()
        left = (torch.rand(batch, generator=rng) * (width - w + 1)).floor()
        return torch.stack([top, left, h, w], dim=1)

    def __call__(self, x: Batch, rng: torch.Generator) -> Batch:
        """One rectangle and one flip decision per sample."""
        batch, _, height, width = x.shape
        top, left, h, w = self.boxes(batch, height, width, rng).unbind(dim=1)
        sign = torch.where(torch.rand(batch, generator=rng) < self.flip, -1.0, 1.0)
        theta = torch.zeros(batch, 2, 3)
        # In grid_sample's aligned coordinates -1 and 1 are the centers of the first and the last pixel.
        theta[:, 0, 0] = sign * (w - 1) / max(width - 1, 1)
        theta[:, 0, 2] = (2 * left + w - 1) / max(width - 1, 1) - 1
        theta[:, 1, 1] = (h - 1) / max(height - 1, 1)
        theta[:, 1, 2] = (2 * top + h - 1) / max(height - 1, 1) - 1
        grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=True)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)
