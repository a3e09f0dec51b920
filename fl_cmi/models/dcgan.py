"""DCGAN's generator, which DFAD uses on larger images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.generator import ImageGenerator, checked_sizes
from fl_cmi.models.initialize import initialize_normal
from fl_cmi.precision import full
from fl_cmi.types import Shape, Task

__all__ = ["DcganGenerator"]


class DcganGenerator(ImageGenerator):
    """Latents to maps of at most 4x4, then doubled by strided transposed convolutions up to the image's side.

    `Linear(n_z -> c_0 s s)`, view, BN, ReLU; n - 1 times [transposed conv4x4 stride 2 c_i -> c_i / 2, BN, ReLU];
    transposed conv4x4 stride 2 w -> channels with bias, tanh; n = ceil(log2(side / 4)), at least 1, c_0 = 2^(n-1) w, s
    = ceil(side / 2^n). Surplus rows and columns are cropped at the bottom and the right. Pixels are (1 + tanh) / 2,
    the inverse of the normalization by .5 and .5 that goes with this generator.

    References:
        A. Radford, L. Metz, S. Chintala, *Unsupervised Representation Learning with Deep Convolutional Generative
        Adversarial Networks*, ICLR 2016, arXiv 1511.06434, section 3; generator B of DFAD, arXiv 1912.11006.

    Args:
        shape: Channels, height and width of an image.
        num_latents: n_z, numbers per latent.
        width: w, channels before the last convolution.
    """

    def __init__(self, shape: Shape, *, num_latents: int = 256, width: int = 64) -> None:
        super().__init__()
        checked_sizes(num_latents=num_latents, width=width)
        channels, *self.sides = shape
        doublings = max(1, math.ceil(math.log2(max(self.sides) / 4)))
        first = width * 2 ** (doublings - 1)
        self.num_latents = num_latents
        self.start = (first, *(-(-side // 2**doublings) for side in self.sides))
        self.project = nn.Linear(num_latents, first * self.start[1] * self.start[2])
        layers: list[nn.Module] = [nn.BatchNorm2d(first), nn.ReLU(inplace=True)]
        for i in range(doublings - 1):
            before, after = first // 2**i, first // 2 ** (i + 1)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.grow = nn.Sequential(*layers)
        self.paint = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def reset(self, rng: torch.Generator) -> None:
        """Start afresh: weights ~ N(0, .02), of BN ~ N(1, .02), biases 0, running statistics new."""
        initialize_normal(self, rng)

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch channels height width"]:
        """Images in (-1, 1) of latents (B, n_z)."""
        # A tanh in 8 bits would be 1, and without gradient, for whatever is nearly white.
        x = full(self.paint(self.grow(self.project(z).view(-1, *self.start)))).tanh()
        return x[:, :, : self.sides[0], : self.sides[1]]

    def images(
        self, z: Float[Tensor, "batch latents"], task: Task
    ) -> Float[Tensor, "batch channels height width"]:
        """`(1 + tanh) / 2`, in (0, 1)."""
        x: Tensor = self(z)
        return (1 + x) / 2
