"""The generator of CMI: latents to images."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.types import ConfigError, Shape

__all__ = ["Generator"]


class Generator(nn.Module):
    """Latents z to images in [0, 1], growing a map of a quarter of the side twice by two.

    `Linear(n_z -> 2w s s)`, view (2w, s, s), BN; [nearest x2, conv3x3 2w -> 2w, BN, LeakyReLU .2]; [nearest
    x2, conv3x3 2w -> w, BN, LeakyReLU .2]; conv3x3 w -> channels with bias, sigmoid; s = ceil(side / 4). No
    activation follows the first BN and no normalization the last convolution. Where a side is no multiple of
    4 the surplus of at most three rows and columns is cropped at the bottom and the right.

    Keep it in train mode: its batch norm is meant to use the statistics of the batch at hand.

    References:
        G. Fang et al., *Contrastive Model Inversion for Data-Free Knowledge Distillation*, IJCAI 2021, arXiv
        2105.08584, as in the released code.

    Args:
        shape: Channels, height and width of an image.
        num_latents: n_z, numbers per latent.
        width: w, channels before the last convolution.
    """

    def __init__(self, shape: Shape, *, num_latents: int = 256, width: int = 64) -> None:
        super().__init__()
        for key, value in (("num_latents", num_latents), ("width", width)):
            if not (isinstance(value, int) and value >= 1):
                raise ConfigError(f"synthesizer.inversion.source.generator.{key}", value, "an integer >= 1")
        channels, *self.sides = shape
        self.num_latents = num_latents
        self.start = (2 * width, *(-(-side // 4) for side in self.sides))
        self.project = nn.Linear(num_latents, self.start[0] * self.start[1] * self.start[2])
        self.grow = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.paint = nn.Conv2d(width, channels, 3, padding=1)

    @torch.no_grad()
    def reset(self, rng: torch.Generator) -> None:
        """Start afresh: weights ~ N(0, .02), of BN ~ N(1, .02), biases 0, running statistics new.

        Args:
            rng: A CPU generator; weights are drawn from it in module order and copied to wherever the model
                lives.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
            if isinstance(module, nn.BatchNorm2d | nn.Conv2d | nn.Linear):
                center = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
                module.weight.copy_(torch.empty(module.weight.shape).normal_(center, 0.02, generator=rng))
                if module.bias is not None:
                    module.bias.zero_()

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch channels height width"]:
        """Images in [0, 1] of latents (B, n_z)."""
        h = self.project(z).view(-1, *self.start)
        if self.paint.weight.is_contiguous(memory_format=torch.channels_last):
            h = h.contiguous(memory_format=torch.channels_last)
        x: Tensor = self.paint(self.grow(h)).sigmoid()
        return x[:, :, : self.sides[0], : self.sides[1]]
