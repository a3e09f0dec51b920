"""The smoothness term: an image should hardly change when it is blurred."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Smoothness", "gaussian_kernel"]


class Smoothness(Term):
    """`L_smooth = mean (x - G * x)^2`: distance of the pixels in [0, 1] from their 5 x 5 Gaussian blur.

    Zero padding (paper mode) darkens the border and so pulls it to black; `reflect` pads with the image itself.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274; padding of the authors' code.

    Args:
        weight: Factor of the term, >= 0.
        sigma: Standard deviation of the blur in pixels, > 0: 1 for CIFAR-10 and ImageNet, .375 for CIFAR-100.
        padding: `zeros` or `reflect`.
    """

    def __init__(
        self, weight: float = 1.0, sigma: float = 1.0, padding: Literal["zeros", "reflect"] = "zeros"
    ) -> None:
        super().__init__(weight)
        if not sigma > 0:
            raise ConfigError("synthesizer...smooth.sigma", sigma, "a number of pixels > 0")
        if padding not in ("zeros", "reflect"):
            raise ConfigError("synthesizer...smooth.padding", padding, "zeros or reflect")
        self.sigma, self.padding = sigma, padding

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean squared difference."""
        x = seen.x.flatten(0, 1)[:, None]
        mode = "constant" if self.padding == "zeros" else "reflect"
        blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode=mode), gaussian_kernel(self.sigma).to(x)[None, None])
        return F.mse_loss(x, blurred)


def gaussian_kernel(sigma: float) -> Float[Tensor, "5 5"]:
    """`G_ij ~ exp(-(i^2 + j^2) / (2 sigma^2))` for i, j in -2..2, summing to 1; float64."""
    g = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=torch.float64) / sigma) ** 2)
    kernel = torch.outer(g, g)
    return kernel / kernel.sum()
