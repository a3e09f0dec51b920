"""FedGen's classifier."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError, Shape

__all__ = ["FedGenNet"]

POOL = "M"


class FedGenNet(nn.Module):
    """Blocks conv3x3 (stride 2, padding 1, bias) - BN - ReLU, max-pools between them, Linear(flat, 32), Linear(32, C).

    There is no activation between the two linear layers. MNIST: 26,434 parameters.

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, as in the released code.

    Args:
        shape: Channels, height and width of an image.
        num_classes: C.
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation of the pixels, one per channel.
        layers: Channels of each block, or M for a max-pool 2x2: [6, 16] for MNIST and EMNIST, [16, M, 32, M, 64, M] for
            84x84 faces.
        num_features: Width between the linear layers.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        layers: Sequence[int | str] = (6, 16),
        num_features: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(num_features, int) or num_features < 1:
            raise ConfigError("model.num_features", num_features, "an integer >= 1")
        channels, height, width = shape
        self.normalize = Normalize(mean, std)
        blocks: list[nn.Module] = []
        for layer in layers:
            if layer == POOL:
                blocks.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            elif isinstance(layer, int) and layer >= 1:
                blocks += [nn.Conv2d(channels, layer, 3, 2, 1), nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
                channels, height, width = layer, (height + 1) // 2, (width + 1) // 2
            else:
                raise ConfigError("model.layers", list(layers), "a list of integers >= 1 and M")
        if min(height, width) < 1:
            raise ConfigError("model.layers", list(layers), f"fewer layers for {shape[1]}x{shape[2]} images")
        self.blocks = nn.Sequential(*blocks)
        self.num_features = num_features
        self.embed = nn.Linear(channels * height * width, num_features)
        self.classifier = nn.Linear(num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """What the classifier sees, (B, 32), of images in [0, 1]."""
        features: Tensor = self.embed(self.blocks(self.normalize(x)).flatten(1))
        return features

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits (B, C) of images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
