"""The Knowledge Within's networks: 2 to 8 bits, simulated."""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.compression import packing
from fl_cmi.compression.calibration import Range, layers, measure_ranges
from fl_cmi.compression.compressor import Written
from fl_cmi.compression.simulated import Quantized
from fl_cmi.types import ConfigError

__all__ = ["LowBit"]


class LowBit:
    """W weight bits and A activation bits, others for the first and the last layer.

    Weights have a range per output channel, activations one per layer, by `measure_ranges`. Batch norm stays, in
    floating point and not folded, as do biases. The bits are simulated: the model is as slow as before, or slower.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274: W2A4, W4A4, W8A4 with ends of 4 bits and W4A8
        with ends of 8 (ResNet-44); W4A4 to W8A8 (WRN-28-10, ResNet-18).

    Args:
        w: Bits of weights, 2..8.
        a: Bits of activations, 2..8.
        ends: Bits of weights and activations of the first and the last layer, 2..8; None: as everywhere.
        exact_zero: Whether 0 is a level; false as in the authors' code (paper mode).
    """

    executed = False
    trainable = True

    def __init__(self, w: int = 8, a: int = 8, ends: int | None = 8, exact_zero: bool = True) -> None:
        for key, value in (("w", w), ("a", a), ("ends", ends)):
            if value is None and key == "ends":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8:
                raise ConfigError(f"compression.{key}", value, "an integer in 2..8")
        self.w, self.a, self.ends, self.exact_zero = w, a, ends, exact_zero

    def check(self, model: nn.Module) -> None:
        """There must be something to quantize."""
        if not layers(model):
            raise ConfigError("model", type(model).__name__, "a model with convolutions or linear layers")

    def bits(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """Bits of weights and of activations by layer."""
        self.check(model)
        names = list(layers(model))
        bits = dict.fromkeys(names, (self.w, self.a))
        if self.ends is not None:
            bits[names[0]] = bits[names[-1]] = self.ends, self.ends
        return bits

    def __call__(
        self, model: nn.Module, batches: Iterable[Float[Tensor, "_ channels height width"]]
    ) -> nn.Module:
        """Calibration alone is the post-training result."""
        return self.with_ranges(model, measure_ranges(model, batches)).eval()

    def with_ranges(self, model: nn.Module, ranges: Mapping[str, Range]) -> nn.Module:
        """A copy of `model` at low bits, with these ranges of the layers' inputs."""
        bits, made = self.bits(model), copy.deepcopy(model)
        for name, layer in layers(made).items():
            found = ranges[name]
            quantized = Quantized(layer, found.low, found.high, *bits[name], self.exact_zero)
            made.set_submodule(name, quantized.train(layer.training))
        return made

    def predictor(self, small: nn.Module) -> Callable[[Tensor], Tensor]:
        """The simulation itself."""
        return small

    def save(self, small: nn.Module, folder: Path) -> Written:
        """`compressed.safetensors` with packed weights."""
        path = folder / "compressed.safetensors"
        packing.save(small, path)
        return Written([path])

    def load(self, path: Path, model: nn.Module) -> nn.Module:
        """With its weights on their levels."""
        return packing.load(path, model)

    def describe(self, small: nn.Module) -> dict[str, Any]:
        """Bits, and what they come to."""
        taken = packing.num_bytes(small)
        return {"w": self.w, "a": self.a, "ends": self.ends, "bytes_of_numbers": taken}
