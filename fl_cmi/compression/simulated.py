"""Low-bit networks, simulated: they compute with the levels in floating point, which tells accuracy but not speed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from fl_cmi.compression.quantizer import channel_range, fake_quantize, with_exact_zero

__all__ = ["Quantized", "fixed_statistics", "quantized_layers"]


class Quantized(nn.Module):
    """A layer whose input and weights are quantized: `layer(q(x); q(W), b)`; the bias is not.

    The input has one range, which is fixed; the weights have one per output channel, that of the weights as they
    stand, so that it follows them in training. Gradients pass straight through: to the input inside its range, to
    all weights.

    Args:
        layer: Convolution or linear layer; trained as it is, in floating point.
        low: Least input.
        high: Greatest input.
        weight_bits: Of the weights; None: they are on their levels already.
        activation_bits: Of the input.
        exact_zero: Whether 0 is one of the levels.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        low: float,
        high: float,
        weight_bits: int | None,
        activation_bits: int,
        exact_zero: bool,
    ) -> None:
        super().__init__()
        self.layer, self.weight_bits, self.activation_bits = layer, weight_bits, activation_bits
        self.exact_zero = exact_zero
        ends = torch.tensor(low), torch.tensor(high)
        if exact_zero:
            ends = with_exact_zero(*ends, activation_bits)
        self.register_buffer("low", ends[0].to(layer.weight.device))
        self.register_buffer("high", ends[1].to(layer.weight.device))

    def weight_range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest level of each output channel."""
        assert self.weight_bits is not None
        low, high = channel_range(self.layer.weight)
        return with_exact_zero(low, high, self.weight_bits) if self.exact_zero else (low, high)

    def weight(self) -> Float[Tensor, "channels ..."]:
        """The weights on their levels."""
        weight = self.layer.weight
        return (
            weight
            if self.weight_bits is None
            else fake_quantize(weight, *self.weight_range(), self.weight_bits, everywhere=True)
        )

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The layer's output."""
        seen = fake_quantize(x, self.low, self.high, self.activation_bits)
        out: Tensor = functional_call(self.layer, {"weight": self.weight()}, (seen,))
        return out


def quantized_layers(model: nn.Module) -> dict[str, Quantized]:
    """The quantized layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}


class _Fixed(nn.Module):
    """A batch norm that normalizes by its running statistics whatever the mode; scale and shift can be trained."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def train(self, mode: bool = True) -> "_Fixed":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        out: Tensor = self.norm(x)
        return out


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm keeps its running statistics and uses them, in train mode too.

    On images unlike the data, Gaussian noise above all, they would drift to the statistics of these.
    """
    norms = {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name, norm in norms.items():
        model.set_submodule(name, _Fixed(norm).train(norm.training))
    try:
        yield
    finally:
        for name, norm in norms.items():
            model.set_submodule(name, norm)
