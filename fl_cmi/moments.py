"""What a model's batch-norm layers see of a set of images at each place, in more detail than they remember.

A layer's input f (B, D, H, W) is taken as the layer whitens it, `z = (f - running_mean) / sqrt(running_var + eps)`.
Batch norm knows mean and variance of each channel over all places. A layer's moments tell the places apart:

    m_1dhw = 1/B sum_b z_bdhw    m_2dhw = 1/B sum_b z_bdhw^2

They are means over images, and the more of these, the less they say of one. But of the mean they tell all: from the
first layer's and its weights follow the mean image, and the mean products of pixels that a filter sees together.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fl_cmi.batchnorm import Seen, batch_norm_layers, observe
from fl_cmi.types import State

__all__ = ["MOMENTS", "has_moments", "layer_moments", "moments_distance", "moments_of", "remember"]

MOMENTS = "moments"
"""The record in which a client sends them, a tensor (2, D, H, W) for each layer by its name; and the buffer in which a
layer remembers them."""


class _Moments(torch.autograd.Function):
    """Means of the rows and of their squares, and `d/dx = (g_mean + 2 g_square x) / n`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return rows.mean(dim=0), rows.square().mean(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_mean: Tensor, to_square: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return torch.addcmul(to_mean / len(rows), rows, 2 * to_square / len(rows))


def layer_moments(
    layer: nn.BatchNorm2d, f: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "2 channels height width"]:
    """A layer's moments of its input; differentiable once.

    Taken of f and whitened afterwards, which saves two passes over all maps. Images are rows, as they lie with channels
    last, which takes a quarter of the time of maps.
    """
    assert layer.running_mean is not None and layer.running_var is not None
    shift = layer.running_mean[:, None, None]
    scale = (layer.running_var + layer.eps).rsqrt()[:, None, None]
    batch, channels, height, width = f.shape
    found = _Moments.apply(f.permute(0, 2, 3, 1).reshape(batch, -1))
    mean, square = (m.view(height, width, channels).permute(2, 0, 1) for m in found)
    return torch.stack(
        [(mean - shift) * scale, (square - 2 * shift * mean + shift.square()) * scale.square()]
    )


@torch.no_grad()
def moments_of(model: nn.Module, batches: Iterable[Float[Tensor, "_ channels height width"]]) -> State:
    """Moments of all images in `batches` by layer, in float32 on the CPU; summed in float64, each image counting once.

    Args:
        model: In eval mode while it looks; comes back in the mode it was in.
        batches: Images in [0, 1], on the model's device; at least one batch.
    """
    was_training, number = model.training, 0
    names = {layer: name for name, layer in model.named_modules()}
    sums: dict[str, Tensor] = {}
    model.eval()
    try:
        for x in batches:
            with observe(model) as seen:
                model(x)
            number += len(x)
            for layer, f in seen.items():
                total = layer_moments(layer, f).double() * len(x)
                sums[names[layer]] = sums.get(names[layer], torch.zeros_like(total)) + total
    finally:
        model.train(was_training)
    return {name: (total / number).float().cpu() for name, total in sums.items()}


def remember(model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """Let a model's batch-norm layers of these names remember moments, as buffers that are no part of its state.

    Raises:
        AttributeError: There is no such layer.
    """
    for name, value in moments.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
        layer.register_buffer(MOMENTS, value.to(layer.running_mean), persistent=False)


def has_moments(model: nn.Module) -> bool:
    """Whether a model has batch-norm layers, and all of them remember moments."""
    layers = batch_norm_layers(model)
    return bool(layers) and all(hasattr(layer, MOMENTS) for layer in layers)


def moments_distance(seen: Seen) -> Float[Tensor, ""]:
    """`L = sum_l ||moments_l - those remembered|| / sqrt(H_l W_l)`: 2-norms, of maps the root of the mean over places.

    Args:
        seen: Layer inputs from `observe`; of layers that remember moments.
    """
    off = {layer: (layer_moments(layer, f) - layer.get_buffer(MOMENTS)).double() for layer, f in seen.items()}
    # In double precision: squares of squares overflow where a bad client scales its model.
    distances = [d.norm() / (d.shape[2] * d.shape[3]) ** 0.5 for d in off.values()]
    return torch.stack(distances).sum().to(next(iter(seen.values())))
