"""Low-bit networks on disk: weights as packed integers, all else as it is, in one safetensors file."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_cmi.compression.calibration import layers
from fl_cmi.compression.quantizer import codes, from_codes
from fl_cmi.compression.simulated import Quantized, quantized_layers
from fl_cmi.files import whole
from fl_cmi.types import ConfigError, State

__all__ = ["load", "pack", "save", "size", "unpack", "Size"]

FORMAT = "fl_cmi low-bit 1"
"""The header's one entry, because safetensors writes several in any order: bits of weight and input by layer."""


def pack(k: UInt8[Tensor, "..."], bits: int) -> UInt8[Tensor, " bytes"]:
    """Numbers below `2^bits`, row by row, at `bits` bits each, most significant first; the last byte ends in zeros."""
    each = np.unpackbits(k.cpu().numpy().reshape(-1, 1), axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(each.reshape(-1)))


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """The numbers that `pack` was given."""
    number = int(np.prod(shape))
    each = np.unpackbits(packed.numpy())[: number * bits].reshape(number, bits)
    full = np.concatenate([np.zeros((number, 8 - bits), dtype=np.uint8), each], axis=1)
    return torch.from_numpy(np.packbits(full, axis=1).reshape(shape))


@dataclass(frozen=True)
class Size:
    """What a model takes, in bits of its numbers, without a file's header.

    Args:
        weights: Bits of the weights of convolutions and linear layers.
        rest: Bits of ranges, biases and batch norm.
    """

    weights: int
    rest: int

    @property
    def num_bytes(self) -> int:
        """All of it, in bytes, rounded up."""
        return -(-(self.weights + self.rest) // 8)


def size(model: nn.Module) -> Size:
    """Bits x parameters; a model without quantized layers counts as it is stored, at 32 bits."""
    total = sum(value.numel() * value.element_size() * 8 for value in model.state_dict().values())
    quantized = quantized_layers(model).values()
    if not quantized:
        weights = sum(layer.weight.numel() * 32 for layer in layers(model).values())
        return Size(weights, total - weights)
    full = sum(layer.layer.weight.numel() * 32 for layer in quantized)
    weights = sum(layer.layer.weight.numel() * (layer.weight_bits or 32) for layer in quantized)
    # Of each output channel the file has two ends of its range.
    ranges = sum(2 * 32 * len(layer.layer.weight) for layer in quantized)
    return Size(weights, total - full + ranges)


def save(model: nn.Module, path: Path) -> None:
    """Write a low-bit network of `LowBit`.

    Each quantized layer has `<layer>.codes` (packed), `<layer>.weight_low` and `<layer>.weight_high` (the levels' ends
    by channel), `<layer>.low` and `<layer>.high` (of the input), and its bias; shapes and bits are in the header.
    """
    quantized = quantized_layers(model)
    assert quantized, "no layer is quantized"
    state: State = {}
    bits_of: dict[str, tuple[int, int]] = {}
    for name, value in model.state_dict().items():
        if name.removesuffix(".layer.weight") not in quantized:
            state[name.replace(".layer.bias", ".bias")] = value.detach().cpu().contiguous()
    for name, layer in quantized.items():
        bits = layer.weight_bits
        assert bits is not None, "saved before it is loaded"
        low, high = (end.cpu() for end in layer.weight_range())
        weight = layer.layer.weight.detach().cpu()
        state[f"{name}.codes"] = pack(codes(weight, low, high, bits), bits)
        state[f"{name}.weight_low"], state[f"{name}.weight_high"] = low.flatten(), high.flatten()
        bits_of[name] = bits, layer.activation_bits
    with whole(path) as draft:
        save_file(state, draft, metadata={FORMAT: json.dumps(bits_of)})


def load(path: Path, model: nn.Module) -> nn.Module:
    """The saved low-bit network: a copy of `model`, which gives the architecture, with its weights on their levels.

    Raises:
        ConfigError: The file is no low-bit network, or one of another architecture.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError("checkpoint", path, f"a readable .safetensors file ({error})") from error
    made = copy.deepcopy(model)
    bits_of = json.loads(header.get(FORMAT, "{}"))
    if set(bits_of) != set(layers(made)):
        raise ConfigError("checkpoint", path, f"low-bit weights of a {type(model).__name__}")
    for name, layer in layers(made).items():
        weight_bits, activation_bits = bits_of[name]
        shape = (-1, *(1,) * (layer.weight.ndim - 1))
        low, high = (state.pop(f"{name}.weight_{end}").view(shape) for end in ("low", "high"))
        levels = unpack(state.pop(f"{name}.codes"), weight_bits, tuple(layer.weight.shape))
        state[f"{name}.layer.weight"] = from_codes(levels, low, high, weight_bits)
        if layer.bias is not None:
            state[f"{name}.layer.bias"] = state.pop(f"{name}.bias")
        made.set_submodule(
            name, Quantized(layer, 0.0, 1.0, None, activation_bits, False).train(layer.training)
        )
    made.load_state_dict(state)
    return made
