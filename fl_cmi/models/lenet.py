"""LeNet-5: the classic without batch norm."""

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError, Shape

__all__ = ["LeNet"]

MIN_SIDE = 8


class LeNet(nn.Module):
    """conv5x5(6) - pool - conv5x5(16) - pool - linear(120) - linear(84) - linear(C), ReLU and 2x2 max-pool.

    Sized by the data: the first convolution pads by 2 where the smaller side is under 32 (so 28x28 is the
    32x32 of the paper) and the second where what it gets is under 14, which leaves maps of 2x2 for 8x8
    images, 5x5 for 28x28 and 32x32, and 13x13 for 64x64. ReLU and max-pooling stand for the paper's tanh and
    trainable subsampling, as is usual.

    References:
        Y. LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, Proceedings of the IEEE
        86(11), 1998, figure 2.

    Args:
        shape: Channels, height and width of an image; sides of at least 8.
        num_classes: C.
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation of the pixels, one per channel.

    Raises:
        ConfigError: If the images are too small.
    """

    def __init__(self, shape: Shape, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        channels, *sides = shape
        if min(sides) < MIN_SIDE:
            raise ConfigError(
                "model", "LeNet", f"images of at least {MIN_SIDE}x{MIN_SIDE}, not {sides[0]}x{sides[1]}"
            )
        padding = (2 if min(sides) < 32 else 0, 0)
        after_first = [(side + 2 * padding[0] - 4) // 2 for side in sides]
        padding = (padding[0], 2 if min(after_first) < 14 else 0)
        height, width = ((side + 2 * padding[1] - 4) // 2 for side in after_first)
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding[0])
        self.conv2 = nn.Conv2d(6, 16, 5, padding=padding[1])
        self.linear1 = nn.Linear(16 * height * width, 120)
        self.linear2 = nn.Linear(120, 84)
        self.num_features = 84
        self.classifier = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """What the classifier sees, (B, 84), of images in [0, 1]."""
        x = self.normalize(x)
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = F.relu(self.linear1(x.flatten(1)), inplace=True)
        return F.relu(self.linear2(x), inplace=True)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits (B, C) of images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
