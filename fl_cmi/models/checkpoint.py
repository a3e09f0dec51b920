"""Weights from a file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fl_cmi.types import ConfigError

__all__ = ["load_weights"]

TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""As safetensors call them."""


def load_weights(model: nn.Module, path: str, key: str) -> None:
    """Load safetensors into `model`, all of its tensors and no others.

    The file may come from anywhere: it holds no code; names, shapes and types are compared before any tensor is read,
    so that no more is allocated than the model takes, and every number has to be finite.

    Args:
        model: Of the architecture that the file was saved from.
        path: The file.
        key: The config key that named the file, for the errors.

    Raises:
        ConfigError: The file is missing, is no safetensors file, or does not fit `model`, which is left as it was.
    """
    file = Path(path).expanduser()
    expected = model.state_dict()
    try:
        if not file.is_file():
            raise ConfigError(key, path, "an existing .safetensors file")
        with safe_open(file, "pt") as weights:
            fault = misfit(expected, {name: described(weights, name) for name in weights.keys()})  # noqa: SIM118
            state = {} if fault else {name: weights.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(key, path, f"a readable .safetensors file ({reason})") from error
    fault = fault or next(
        (f"{name} is not finite" for name, t in state.items() if not t.isfinite().all()), None
    )
    if fault:
        raise ConfigError(key, path, f"weights of a {type(model).__name__} of this size, but {fault}")
    model.load_state_dict(state)


def described(weights: safe_open, name: str) -> tuple[tuple[int, ...], torch.dtype | str]:
    """Shape and type of a tensor that has not been read; the name of a type that is not known."""
    part = weights.get_slice(name)
    return tuple(part.get_shape()), TYPES.get(part.get_dtype(), part.get_dtype())


def misfit(
    expected: dict[str, Tensor], found: dict[str, tuple[tuple[int, ...], torch.dtype | str]]
) -> str | None:
    """What is wrong with the first tensor, by name, that is not as expected."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not among its tensors"
        shape, dtype = found[name]
        if shape != tuple(expected[name].shape):
            return f"{name} has the shape {shape}, not {tuple(expected[name].shape)}"
        if dtype != expected[name].dtype:
            return f"{name} is {dtype}, not {expected[name].dtype}"
    return None
