"""A small convolutional network with batch norm: quick on a CPU, and with statistics to invert."""

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError, Shape

__all__ = ["ConvNet"]

MIN_SIDE = 4


class ConvNet(nn.Module):
    """Blocks conv3x3 - BN - ReLU of width w, 2w, 4w, 4w, ...; global average pool; linear classifier.

    After each block but the last a 2x2 max-pool halves the map where its smaller side is at least 6. The last of
    three blocks sees 4x4 of an 8x8 image, 7x7 of 28x28, 8x8 of 32x32 and 16x16 of 64x64. A number behind the pool has
    looked at 18x18 pixels with three blocks and at 38x38 with four: inverted images of 28x28 show whole objects with
    four blocks, and their parts in any arrangement with three.

    Args:
        shape: Channels, height and width of an image; sides of at least 4.
        num_classes: C.
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation of the pixels, one per channel.
        width: w, channels of the first block.
        blocks: Number of blocks, at least 1.

    Raises:
        ConfigError: If the images are too small.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        width: int = 32,
        blocks: int = 3,
    ) -> None:
        super().__init__()
        channels, *sides = shape
        side = min(sides)
        if side < MIN_SIDE:
            raise ConfigError(
                "model", "ConvNet", f"images of at least {MIN_SIDE}x{MIN_SIDE}, not {sides[0]}x{sides[1]}"
            )
        for key, value in (("width", width), ("blocks", blocks)):
            if not (isinstance(value, int) and value >= 1):
                raise ConfigError(f"model.{key}", value, "an integer >= 1")
        widths = [channels, *(width * min(2**block, 4) for block in range(blocks))]
        self.normalize = Normalize(mean, std)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in widths[1:])
        self.pools = nn.ModuleList()
        for block in range(blocks):
            pool = block < blocks - 1 and side >= 6
            self.pools.append(nn.MaxPool2d(2) if pool else nn.Identity())
            side = side // 2 if pool else side
        self.num_features = widths[-1]
        self.classifier = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """What the classifier sees, (B, width of the last block), of images in [0, 1]."""
        x = self.normalize(x)
        for conv, norm, pool in zip(self.convs, self.norms, self.pools, strict=True):
            x = pool(F.relu(norm(conv(x)), inplace=True))
        return x.mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits (B, C) of images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
