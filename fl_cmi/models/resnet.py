"""Residual networks for small images."""

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError, Shape

__all__ = ["ResNet"]

MIN_SIDE = 8

IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks per stage of the ImageNet networks made of basic blocks, by depth."""


class ResNet(nn.Module):
    """A residual network of basic blocks with a 3x3 stem, of one of two families.

    * `depth` 18 or 34: four stages of 64, 128, 256 and 512 channels, 1x1 convolutions with BN where a
    shortcut changes
      shape. The ImageNet network with the stem for small images: stride 1 and no max-pool.
    * `depth` 6n + 2 (8, 14, 20, ...): three stages of n blocks with 16, 32 and 64 channels; shortcuts without
      parameters, which skip every second pixel and pad with zero channels (option A), as in section 4.2.

    References:
        K. He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, arXiv 1512.03385.

    Args:
        shape: Channels, height and width of an image; sides of at least 8.
        num_classes: C.
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation of the pixels, one per channel.
        depth: Layers with weights on the longest path.

    Raises:
        ConfigError: If there is no network of this depth or the images are too small.
    """

    def __init__(
        self, shape: Shape, num_classes: int, mean: Sequence[float], std: Sequence[float], *, depth: int = 18
    ) -> None:
        super().__init__()
        channels, *sides = shape
        if min(sides) < MIN_SIDE:
            raise ConfigError(
                "model", "ResNet", f"images of at least {MIN_SIDE}x{MIN_SIDE}, not {sides[0]}x{sides[1]}"
            )
        if depth not in IMAGENET_BLOCKS and not (isinstance(depth, int) and depth >= 8 and depth % 6 == 2):
            raise ConfigError("model.depth", depth, "18, 34, or 6n+2 (8, 14, 20, ...)")
        project = depth in IMAGENET_BLOCKS
        width = 64 if project else 16
        num_blocks = IMAGENET_BLOCKS.get(depth, (depth // 6,) * 3)
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks = []
        before = width
        for stage, num in enumerate(num_blocks):
            after = width * 2**stage
            for block in range(num):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_BasicBlock(before, after, stride, project))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.num_features = before
        self.classifier = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """What the classifier sees, (B, 512) or (B, 64), of images in [0, 1]."""
        x = F.relu(self.norm(self.stem(self.normalize(x))), inplace=True)
        maps: Tensor = self.blocks(x)
        return maps.mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits (B, C) of images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class _BasicBlock(nn.Module):
    """`ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x))))))`."""

    def __init__(self, before: int, after: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after and project:
            conv = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))
        elif before != after:
            self.shortcut = _SkipAndPad(stride, after - before)

    def forward(
        self, x: Float[Tensor, "batch before height width"]
    ) -> Float[Tensor, "batch after new_height new_width"]:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class _SkipAndPad(nn.Module):
    """Option A: every `stride`-th pixel, and `num_new` channels of zeros after the others."""

    def __init__(self, stride: int, num_new: int) -> None:
        super().__init__()
        self.stride, self.num_new = stride, num_new

    def forward(
        self, x: Float[Tensor, "batch before height width"]
    ) -> Float[Tensor, "batch after new_height new_width"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_new))
