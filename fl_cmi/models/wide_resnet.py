"""Wide residual networks, WRN-d-k."""

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError, Shape

__all__ = ["WideResNet"]

MIN_SIDE = 8


class WideResNet(nn.Module):
    """Three groups of n = (d - 4) / 6 pre-activated blocks with 16k, 32k and 64k channels, without dropout.

    References:
        S. Zagoruyko and N. Komodakis, *Wide Residual Networks*, BMVC 2016, arXiv 1605.07146, table 1.

    Args:
        shape: Channels, height and width of an image; sides of at least 8.
        num_classes: C.
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation of the pixels, one per channel.
        depth: d, which is 6n + 4: 10, 16, 22, 28, 40, ...
        width: k, factor on the channels.

    Raises:
        ConfigError: If there is no network of this depth or width, or the images are too small.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        depth: int = 16,
        width: int = 1,
    ) -> None:
        super().__init__()
        channels, *sides = shape
        if min(sides) < MIN_SIDE:
            size = f"{sides[0]}x{sides[1]}"
            raise ConfigError("model", "WideResNet", f"images of at least {MIN_SIDE}x{MIN_SIDE}, not {size}")
        if not isinstance(depth, int) or depth < 10 or depth % 6 != 4:
            raise ConfigError("model.depth", depth, "6n+4 (10, 16, 22, 28, 34, 40, ...)")
        if not (isinstance(width, int) and width >= 1):
            raise ConfigError("model.width", width, "an integer >= 1")
        num_blocks = (depth - 4) // 6
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks = []
        before = 16
        for group in range(3):
            after = 16 * width * 2**group
            for block in range(num_blocks):
                stride = 2 if group > 0 and block == 0 else 1
                blocks.append(_PreActivatedBlock(before, after, stride))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(before)
        self.num_features = before
        self.classifier = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """What the classifier sees, (B, 64k), of images in [0, 1]."""
        x = self.blocks(self.stem(self.normalize(x)))
        return F.relu(self.norm(x), inplace=True).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits (B, C) of images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class _PreActivatedBlock(nn.Module):
    """`s + conv(ReLU(BN(conv(a))))`, `a = ReLU(BN(x))`; s is x, or conv1x1(a) where shapes differ."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.project: nn.Conv2d | None = None
        if before != after:
            self.project = nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(
        self, x: Float[Tensor, "batch before height width"]
    ) -> Float[Tensor, "batch after new_height new_width"]:
        activated = F.relu(self.norm1(x), inplace=True)
        out = F.relu(self.norm2(self.conv1(activated)), inplace=True)
        shortcut: Tensor = x if self.project is None else self.project(activated)
        residual: Tensor = self.conv2(out)
        return shortcut + residual
