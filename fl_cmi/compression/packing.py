"""Low-bit networks on disk: weights as packed integers, all else as it is, in one safetensors file."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_cmi.compression.calibration import layers
from fl_cmi.compression.quantizer import codes, from_codes
from fl_cmi.compression.simulated import Quantized, quantized_layers
from fl_cmi.files import check_header, whole
from fl_cmi.types import ConfigError, State

__all__ = ["load", "num_bytes", "pack", "save", "unpack"]

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


def num_bytes(model: nn.Module) -> int:
    """Bits x parameters of a low-bit network: weights, ranges, biases and batch norm, without a file's header."""
    total = sum(value.numel() * value.element_size() * 8 for value in model.state_dict().values())
    for layer in quantized_layers(model).values():
        weight, bits = layer.layer.weight, layer.weight_bits
        assert bits is not None, "counted before it is loaded"
        # Of each output channel the file has two ends of its range.
        total += weight.numel() * (bits - 32) + 2 * 32 * len(weight)
    return -(-total // 8)


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
    """The saved low-bit network, in eval mode: a copy of `model`, the architecture, with its weights on their levels.

    Raises:
        ConfigError: The file is no low-bit network, a damaged one, or one of another architecture.
    """
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            header, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError("checkpoint", path, f"a readable .safetensors file ({error})") from error
    try:
        return rebuilt(model, header, state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        name = type(model).__name__
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConfigError(
            "checkpoint", path, f"low-bit weights of a {name} of this size, but {reason}"
        ) from error


def rebuilt(model: nn.Module, header: Mapping[str, str], state: State) -> nn.Module:
    """A copy of `model` with the weights of a file.

    Raises:
        ValueError: They are damaged, or do not fit; other exceptions of JSON and PyTorch as well.
    """
    made = copy.deepcopy(model)
    bits_of = json.loads(header.get(FORMAT, "{}"))
    if set(bits_of) != set(layers(made)):
        raise ValueError("its quantized layers are others")
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite")
    for name, layer in layers(made).items():
        state[f"{name}.layer.weight"], activation_bits = weight_of(name, layer, bits_of[name], state)
        if layer.bias is not None:
            state[f"{name}.layer.bias"] = state.pop(f"{name}.bias")
        made.set_submodule(name, Quantized(layer, 0.0, 1.0, None, activation_bits, False))
    made.load_state_dict(state)
    return made.eval()


def weight_of(name: str, layer: nn.Conv2d | nn.Linear, bits: Any, state: State) -> tuple[Tensor, int]:
    """A layer's weight, whose parts are taken out of `state`, and the bits of its input."""
    if not isinstance(bits, list) or len(bits) != 2 or any(b not in range(1, 9) for b in bits):
        raise ValueError(f"{name} has {bits} for bits of weight and input")
    shape = tuple(layer.weight.shape)
    packed, low, high = (state.pop(f"{name}.{part}") for part in ("codes", "weight_low", "weight_high"))
    if packed.dtype != torch.uint8 or packed.shape != (-(-math.prod(shape) * bits[0] // 8),):
        raise ValueError(f"{name}.codes are not {math.prod(shape):,} numbers of {bits[0]} bits")
    if {low.shape, high.shape} != {shape[:1]} or {low.dtype, high.dtype} != {torch.float32}:
        raise ValueError(f"{name} has no range for each of its {shape[0]} channels")
    each = (-1, *(1,) * (len(shape) - 1))
    return from_codes(unpack(packed, bits[0], shape), low.view(each), high.view(each), bits[0]), bits[1]
