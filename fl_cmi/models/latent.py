"""FedGen's generator: labels to features, not to images."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.types import ConfigError

__all__ = ["LatentGenerator"]


class LatentGenerator(nn.Module):
    """`z = Linear(ReLU(BN(Linear([eps, onehot(y)]))))`: what a classifier's last layer sees of class y.

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, as in the released code.

    Args:
        num_classes: C.
        num_features: Width of z.
        width: Of the hidden layer: 256, for CelebA 128.
        num_noise: Width of eps.
        noise: `uniform` on [0, 1), as in the code, or `normal`, as in the paper.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        width: int = 256,
        num_noise: int = 32,
        noise: Literal["uniform", "normal"] = "uniform",
    ) -> None:
        super().__init__()
        for key, value in (("width", width), ("num_noise", num_noise)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"strategy.client.generator.{key}", value, "an integer >= 1")
        if noise not in ("uniform", "normal"):
            raise ConfigError("strategy.client.generator.noise", noise, "uniform or normal")
        self.num_classes, self.num_noise, self.noise = num_classes, num_noise, noise
        self.hidden = nn.Linear(num_noise + num_classes, width)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, num_features)

    def draw(self, number: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "batch noise"]:
        """Noise for so many labels, drawn on the CPU."""
        eps = torch.empty(number, self.num_noise)
        eps = eps.uniform_(generator=rng) if self.noise == "uniform" else eps.normal_(generator=rng)
        return eps.to(device)

    def forward(
        self, eps: Float[Tensor, "batch noise"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch features"]:
        """Features of the labels y."""
        label = F.one_hot(y, self.num_classes).to(eps.dtype)
        z: Tensor = self.out(F.relu(self.norm(self.hidden(torch.cat([eps, label], dim=1)))))
        return z
