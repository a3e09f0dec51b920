"""How exactly the server's networks compute: in float32, or with products in bfloat16.

Only networks are concerned, the contrast's head and its similarities included. What they answer is float32 again, and
so is all that is made of it: losses, batch-norm statistics, gradients of weights, optimizers and what is kept.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fl_cmi.types import ConfigError

__all__ = ["PRECISIONS", "Precision", "exact", "fast", "full", "precision_called"]


class Precision(Protocol):
    """Carries out a forward pass."""

    def __call__(self, device: torch.device, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """What the network, which is on this device, makes of these inputs, in float32."""
        ...


def exact(device: torch.device, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """As the network is."""
    return network(*inputs)


def fast(device: torch.device, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """By autocast: convolutions and matrix products in bfloat16.

    Nothing is cached: rounding a network's weights costs little, and what was rounded before the optimizer's step or
    without gradient must not be used after it.
    """
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        return full(network(*inputs))


PRECISIONS: Mapping[str, Precision] = {"exact": exact, "fast": fast}


def full(x: Tensor) -> Tensor:
    """The numbers in float32 where they were computed in less."""
    return x.float() if x.dtype == torch.bfloat16 else x


def precision_called(name: Any, device: torch.device) -> Precision:
    """The precision that a user named: `exact` or `fast`.

    Raises:
        ConfigError: For any other name, and for `fast` where the device computes no bfloat16.
    """
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ConfigError("precision", name, " or ".join(PRECISIONS))
    if name == "fast" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ConfigError("precision", name, "exact, because this GPU computes no bfloat16")
    return PRECISIONS[name]
