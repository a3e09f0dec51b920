"""Batched augmentation on tensors: every sample its own draw, differentiable, no per-image Python."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.types import ConfigError

__all__ = ["Augment", "Chain", "CropFlip", "Cutout", "Identity", "ResizedCropFlip", "RollFlip", "SomeOf"]

Batch = Float[Tensor, "batch channels height width"]


class Augment(Protocol):
    """Maps a batch in [0, 1] to a randomly changed one of the same shape, or to several such, one after the other."""

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


class RollFlip:
    """Roll the whole batch by up to `roll` pixels in each direction, then perhaps flip it left-right.

    What leaves on one side comes in on the other. One shift and one flip decision for all images: the view of
    DeepInversion (Yin et al. 2020, arXiv 1912.08795).

    Args:
        roll: Largest shift in pixels, >= 0.
        flip: Probability of a left-right flip, in [0, 1].
    """

    def __init__(self, roll: int = 4, flip: float = 0.5) -> None:
        check_integer("synthesizer.inversion.global_view.roll", roll, least=0)
        if not 0 <= flip <= 1:
            raise ConfigError("synthesizer.inversion.global_view.flip", flip, "a probability in [0, 1]")
        self.roll, self.flip = roll, flip

    def __call__(self, x: Batch, rng: torch.Generator) -> Batch:
        """Roll and flip the batch as one."""
        down, right = torch.randint(-self.roll, self.roll + 1, (2,), generator=rng).tolist()
        flipped = torch.rand((), generator=rng).item() < self.flip
        rolled = x.roll((down, right), dims=(2, 3))
        return rolled.flip(3) if flipped else rolled


class Cutout:
    """Black out 1 to `holes` squares, each centered anywhere in the image and cut off at its border.

        number ~ U{1..holes},  side ~ U{1..floor(share min(H, W))}

    Devries and Taylor 2017, arXiv 1708.04552, with numbers and sides drawn as in The Knowledge Within.

    Args:
        holes: Most squares in an image, >= 1.
        share: Largest side of a square, as a share of the image's shorter side, in (0, 1].
    """

    def __init__(self, holes: int = 4, share: float = 1 / 3) -> None:
        check_integer("augment.holes", holes, least=1)
        if not 0 < share <= 1:
            raise ConfigError("augment.share", share, "a share of the image's side in (0, 1]")
        self.holes, self.share = holes, share

    def __call__(self, x: Batch, rng: torch.Generator) -> Batch:
        """Number, sides and places drawn for each sample."""
        batch, _, height, width = x.shape
        shape = (batch, self.holes, 1)
        number = torch.randint(1, self.holes + 1, (batch, 1, 1), generator=rng)
        side = torch.randint(1, max(int(self.share * min(height, width)), 1) + 1, shape, generator=rng)
        top = torch.randint(height, shape, generator=rng) - side // 2
        left = torch.randint(width, shape, generator=rng) - side // 2
        side = torch.where(torch.arange(self.holes)[:, None] < number, side, 0)
        rows, columns = torch.arange(height), torch.arange(width)
        in_rows = (top <= rows) & (rows < top + side)
        in_columns = (left <= columns) & (columns < left + side)
        hole = (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1, keepdim=True)
        return x.masked_fill(hole.to(x.device), 0.0)


class Chain:
    """All of the given augmentations, one after the other.

    Args:
        steps: In their order, at least one.
    """

    def __init__(self, steps: Sequence[Augment]) -> None:
        if not steps:
            raise ConfigError("augment.steps", list(steps), "at least one augmentation")
        self.steps = tuple(steps)

    def __call__(self, x: Batch, rng: torch.Generator) -> Float[Tensor, "_ channels height width"]:
        """The batch after the last step."""
        for step in self.steps:
            x = step(x, rng)
        return x


class SomeOf:
    """Several copies of the batch, each changed by a few of the given views, one after the other.

        for each copy:  n ~ U{0..most};  n different views, in random order

    The choice holds for the copy, what the views draw for each sample. The view of The Knowledge Within (Haroush et al.
    2020, arXiv 1912.01274): 4 copies, each changed by 0 to 2 of flip, resized crop and cutout. The flip of the authors'
    code turns channels and height; ours turns the width.

    Args:
        views: What a copy may be changed by, at least one.
        most: Most views for one copy, in 0..len(views).
        copies: Number of copies, >= 1.
    """

    def __init__(self, views: Sequence[Augment], most: int = 2, copies: int = 4) -> None:
        where = "synthesizer.inversion.global_view"
        if not views:
            raise ConfigError(f"{where}.views", list(views), "at least one view")
        check_integer(f"{where}.copies", copies, least=1)
        check_integer(f"{where}.most", most, least=0)
        if most > len(views):
            raise ConfigError(f"{where}.most", most, f"at most {len(views)}, the number of views")
        self.views, self.most, self.copies = tuple(views), most, copies

    def __call__(self, x: Batch, rng: torch.Generator) -> Float[Tensor, "_ channels height width"]:
        """All copies, the first one's samples first."""
        return torch.cat([self.copy(x, rng) for _ in range(self.copies)])

    def copy(self, x: Batch, rng: torch.Generator) -> Batch:
        """One copy."""
        number = int(torch.randint(self.most + 1, (), generator=rng))
        for index in torch.randperm(len(self.views), generator=rng)[:number].tolist():
            x = self.views[index](x, rng)
        return x


def check_integer(key: str, value: object, least: int) -> None:
    """Raise ConfigError for a value that is no integer, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(key, value, f"an integer >= {least}")
