"""From features to unit vectors that student and teachers can be compared in."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from fl_cmi.models.initialize import initialize
from fl_cmi.types import State

__all__ = ["by_width", "embed", "projection", "restored"]


def projection(features: Float[Tensor, "batch features"], width: int, rng: torch.Generator) -> nn.Linear:
    """A linear layer with bias from such features to `width` numbers, beside them."""
    layer = skip_init(nn.Linear, features.shape[1], width)
    initialize(layer, rng)
    return layer.to(features)


def restored(state: State, name: str) -> nn.Linear:
    """The layer whose weight and bias `state` holds as `name.weight` and `name.bias`."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    layer = skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def embed(layer: nn.Linear, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch width"]:
    """`e = (W f + b) / ||W f + b||`."""
    return F.normalize(layer(features), dim=1)


def by_width(features: Sequence[Float[Tensor, "batch _"]]) -> list[Float[Tensor, "batch _"]]:
    """Features of one width side by side, widths in the order in which they first appear.

    One width stands for one architecture. Models that were trained apart share no axes, so that features are never
    averaged.
    """
    groups: dict[int, list[Tensor]] = {}
    for found in features:
        groups.setdefault(found.shape[1], []).append(found)
    return [torch.cat(same, dim=1) for same in groups.values()]
