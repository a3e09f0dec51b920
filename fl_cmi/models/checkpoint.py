"""Weights from a file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fl_cmi.types import ConfigError

__all__ = ["load_weights"]


def load_weights(model: nn.Module, path: str, key: str) -> None:
    """Load safetensors into `model`, all of its tensors and no others.

    Args:
        model: Of the architecture that the file was saved from.
        path: The file.
        key: The config key that named the file, for the errors.

    Raises:
        ConfigError: The file is missing, is no safetensors file, or does not fit `model`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(key, path, "an existing .safetensors file")
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            key, path, f"a readable .safetensors file ({' '.join(str(error).split())})"
        ) from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        if name not in found:
            fault = f"{name} is missing"
        elif name not in expected:
            fault = f"{name} is not among its tensors"
        else:
            fault = f"{name} has the shape {found[name]}, not {expected[name]}"
        raise ConfigError(key, path, f"weights of a {type(model).__name__} of this size, but {fault}")
    model.load_state_dict(state)
