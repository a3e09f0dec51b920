"""Generators, latents to images: what every one of them is, and those with a sigmoid (CMI, DataFree)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.initialize import initialize_normal
from fl_cmi.models.upsampled_conv import UpsampledConv
from fl_cmi.precision import full
from fl_cmi.types import ConfigError, Shape, Task

__all__ = ["Generator", "ImageGenerator", "checked_sizes"]


class ImageGenerator(nn.Module):
    """A network from latents to images of any side, sized by their shape: the base of all generators."""

    num_latents: int
    """Numbers per latent, n_z."""

    def reset(self, rng: torch.Generator) -> None:
        """Start afresh, with weights drawn from a CPU generator."""
        raise NotImplementedError

    def images(
        self, z: Float[Tensor, "batch latents"], task: Task
    ) -> Float[Tensor, "batch channels height width"]:
        """What the network makes of z (B, n_z), in pixels, as the models take them."""
        raise NotImplementedError


def checked_sizes(**sizes: int) -> None:
    """Raise ConfigError, naming the generator's argument, for a size that is no integer >= 1."""
    for key, value in sizes.items():
        if not (isinstance(value, int) and value >= 1):
            raise ConfigError(f"synthesizer.inversion.source.generator.{key}", value, "an integer >= 1")


class Generator(ImageGenerator):
    """Latents z to images in [0, 1], growing a map of a quarter of the side twice by two.

    `Linear(n_z -> mw s s)`, view (mw, s, s), BN; [nearest x2, conv3x3 mw -> 2w, BN, LeakyReLU .2]; [nearest
    x2, conv3x3 2w -> w, BN, LeakyReLU .2]; conv3x3 w -> channels with bias, sigmoid; s = ceil(side / 4). No
    activation follows the first BN and no normalization the last convolution. Where a side is no multiple of
    4 the surplus of at most three rows and columns is cropped at the bottom and the right.

    CMI's generator has m = 2; m = 4 is the `LargeGenerator` that DataFree trains in DAFL, ZSKT, DFAD and DFQ.

    Keep it in train mode: its batch norm is meant to use the statistics of the batch at hand.

    References:
        G. Fang et al., *Contrastive Model Inversion for Data-Free Knowledge Distillation*, IJCAI 2021, arXiv
        2105.08584, as in the released code.

    Args:
        shape: Channels, height and width of an image.
        num_latents: n_z, numbers per latent.
        width: w, channels before the last convolution.
        stem: m, channels of the first map in multiples of w.
        eps: Added to the variance by the batch norms behind a convolution, > 0.
    """

    def __init__(
        self, shape: Shape, *, num_latents: int = 256, width: int = 64, stem: int = 2, eps: float = 1e-5
    ) -> None:
        super().__init__()
        checked_sizes(num_latents=num_latents, width=width, stem=stem)
        if not eps > 0:
            raise ConfigError("synthesizer.inversion.source.generator.eps", eps, "a number > 0")
        channels, *self.sides = shape
        self.num_latents = num_latents
        self.start = (stem * width, *(-(-side // 4) for side in self.sides))
        self.project = nn.Linear(num_latents, self.start[0] * self.start[1] * self.start[2])
        self.grow = nn.Sequential(
            nn.BatchNorm2d(stem * width),
            UpsampledConv(stem * width, 2 * width),
            nn.BatchNorm2d(2 * width, eps),
            nn.LeakyReLU(0.2, inplace=True),
            UpsampledConv(2 * width, width),
            nn.BatchNorm2d(width, eps),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.paint = nn.Conv2d(width, channels, 3, padding=1)

    def reset(self, rng: torch.Generator) -> None:
        """Start afresh: weights ~ N(0, .02), of BN ~ N(1, .02), biases 0, running statistics new.

        Args:
            rng: A CPU generator; weights are drawn from it in module order and copied to wherever the model
                lives.
        """
        initialize_normal(self, rng)

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch channels height width"]:
        """Images in [0, 1] of latents (B, n_z)."""
        return self.canvas(z).sigmoid()

    def canvas(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch channels height width"]:
        """What the last convolution paints, before the sigmoid: any real number."""
        h = self.project(z).view(-1, *self.start)
        if self.paint.weight.is_contiguous(memory_format=torch.channels_last):
            h = h.contiguous(memory_format=torch.channels_last)
        # A sigmoid in 8 bits would be 1, and without gradient, for whatever is nearly white.
        x = full(self.paint(self.grow(h)))
        return x[:, :, : self.sides[0], : self.sides[1]]

    def images(
        self, z: Float[Tensor, "batch latents"], task: Task
    ) -> Float[Tensor, "batch channels height width"]:
        """As `forward`: the sigmoid's range is that of pixels."""
        x: Tensor = self(z)
        return x
