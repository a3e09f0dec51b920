"""The generator of DFAD and RDSKD: standardized images, which are pixels only after the data set's own scaling."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.generator import Generator, ImageGenerator
from fl_cmi.models.initialize import initialize
from fl_cmi.types import Shape, Task

__all__ = ["TanhGenerator"]


class TanhGenerator(ImageGenerator):
    """`u = BN(tanh(canvas(z)))`, the BN without weight and bias; pixels `x = mean + std u`.

    The layers up to the last convolution are those of CMI's `Generator`, which descends from this one. The last batch
    norm gives every channel of the batch mean 0 and variance 1: u lives in *normalized* space, and the papers feed it
    to the networks as it is. Here every model normalizes pixels itself, so u is put into pixels by the inverse of that
    step, with the data set's mean and std: `(x - mean) / std = u` reaches the first convolution, exactly as in the
    papers. The price is the papers' own: u knows no black and no white, so some pixels leave [0, 1] (on MNIST, where
    the mean is .13 and the std .31, all with u < -.42). `clip` cuts these to [0, 1], after which nothing pulls at them.

    Weights start from PyTorch's own distributions.

    References:
        G. Fang et al., *Data-Free Adversarial Distillation*, arXiv 1912.11006 (generator A of the released code). P.
        Han et al., *Robustness and Diversity Seeking Data-Free Knowledge Distillation*, ICASSP 2021, arXiv 2011.03749,
        whose code passes .8 where the batch norm takes its eps: `eps=0.8` keeps that slip.

    Args:
        shape: Channels, height and width of an image.
        num_latents: n_z, numbers per latent.
        width: w, channels before the last convolution.
        eps: Added to the variance by the two batch norms behind a hidden convolution, > 0.
        clip: Whether pixels are cut to [0, 1]; False is the papers'.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        num_latents: int = 256,
        width: int = 64,
        eps: float = 1e-5,
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.num_latents, self.clip = num_latents, clip
        self.body = Generator(shape, num_latents=num_latents, width=width, eps=eps)
        self.standardize = nn.BatchNorm2d(shape[0], affine=False)

    def reset(self, rng: torch.Generator) -> None:
        """Start afresh, from PyTorch's own distributions."""
        initialize(self, rng)

    def forward(self, z: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch channels height width"]:
        """Standardized images u."""
        u: Tensor = self.standardize(self.body.canvas(z).tanh())
        return u

    def images(
        self, z: Float[Tensor, "batch latents"], task: Task
    ) -> Float[Tensor, "batch channels height width"]:
        """`mean + std u`, cut to [0, 1] where wanted."""
        u: Tensor = self(z)
        mean, std = (u.new_tensor(v)[:, None, None] for v in (task.mean, task.std))
        x = mean + std * u
        return x.clamp(0, 1) if self.clip else x
