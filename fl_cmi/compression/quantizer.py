"""Uniform affine quantization: pure functions of a tensor, its range and a number of bits.

Levels are `low + k scale`, `k = 0 .. 2^b - 1`. Everything is simulated in floating point.
"""

from math import inf
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["channel_range", "codes", "fake_quantize", "from_codes", "step_size", "with_exact_zero"]

Bound = Float[Tensor, "..."]
"""One end of a range: a scalar, or a tensor that broadcasts against the values."""


def step_size(low: Bound, high: Bound, bits: int) -> Bound:
    """`scale = (high - low) / (2^b - 1)`; 1 where the range is a single point, all of whose values are then `low`."""
    return torch.where(high > low, (high - low) / (2**bits - 1), 1.0)


def fake_quantize(
    x: Float[Tensor, "*shape"], low: Bound, high: Bound, bits: int, everywhere: bool = False
) -> Float[Tensor, "*shape"]:
    """`q(x) = round(clip((x - low) / scale, 0, 2^b - 1)) scale + low`, straight through.

    The gradient with respect to x is 1 inside the range, its ends included, and 0 outside; the range gets none.
    Halves are rounded to even. `q(q(x)) = q(x)`, and q is monotone.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274; Bengio et al. 2013, arXiv 1308.3432, for the
        straight-through estimator.

    Args:
        x: Values.
        low: Least level.
        high: Greatest level, >= low.
        bits: b >= 1.
        everywhere: Whether the gradient is 1 outside as well: for weights whose range is made of them. An exact zero
            shifts it by up to half a step, and the weights beyond its end, which make it, would never move again.
    """
    value: Tensor = _StraightThrough.apply(x, low.detach(), high.detach(), bits, everywhere)
    return value


class _StraightThrough(torch.autograd.Function):
    """In place after the clipping, and one tensor is kept for the gradient: autograd would keep and pass many more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, bits: int, everywhere: bool) -> Tensor:
        ctx.everywhere = everywhere
        ctx.numbers = low.ndim == 0 and x.device.type == "cpu"  # elsewhere asking for a number takes long
        clipped = x.clamp(low.item(), high.item()) if ctx.numbers else x.clamp(low, high)
        if not everywhere:
            ctx.save_for_backward(*((x, low, high) if ctx.numbers else (clipped == x,)))
        scale = step_size(low, high, bits)
        return clipped.sub_(low).div_(scale).round_().mul_(scale).add_(low)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.everywhere:
            return grad, None, None, None, None
        if not ctx.numbers:
            (inside,) = ctx.saved_tensors
            return torch.where(inside, grad, 0.0), None, None, None, None
        # The same bits as by a mask, in a tenth of the time. This kernel's ends are outside, ours are inside.
        x, low, high = (value.to(grad.dtype) for value in ctx.saved_tensors)
        below, above = (
            end.nextafter(torch.full_like(end, to)).item() for end, to in ((low, -inf), (high, inf))
        )
        return torch.ops.aten.hardtanh_backward(grad, x, below, above), None, None, None, None


def with_exact_zero(low: Bound, high: Bound, bits: int) -> tuple[Bound, Bound]:
    """The range, widened to contain 0 and shifted by less than a step so that 0 is one of the levels.

    Without it the zeros behind a ReLU come out as small constants.

    Returns:
        `-z scale` and `(2^b - 1 - z) scale`, with `z = round(-low / scale)`.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = step_size(low, high, bits)
    zero = (-low / scale).round()
    alone = high == low  # only where both are 0
    return -zero * scale, torch.where(alone, high, (2**bits - 1 - zero) * scale)


def channel_range(weight: Float[Tensor, "channels ..."]) -> tuple[Bound, Bound]:
    """Least and greatest weight of each output channel (dimension 0), shaped to broadcast against `weight`."""
    flat = weight.detach().flatten(1)
    shape = (-1, *(1,) * (weight.ndim - 1))
    return flat.amin(dim=1).view(shape), flat.amax(dim=1).view(shape)


def codes(x: Float[Tensor, "*shape"], low: Bound, high: Bound, bits: int) -> UInt8[Tensor, "*shape"]:
    """The numbers k of the levels that `fake_quantize` takes x to.

    Args:
        x: Values.
        low: Least level.
        high: Greatest level.
        bits: b in 1..8.
    """
    clipped = torch.minimum(torch.maximum(x.detach(), low), high)
    return ((clipped - low) / step_size(low, high, bits)).round().to(torch.uint8)


def from_codes(k: UInt8[Tensor, "*shape"], low: Bound, high: Bound, bits: int) -> Float[Tensor, "*shape"]:
    """`k scale + low`: to the last bit what `fake_quantize` gave."""
    return k.to(low.dtype) * step_size(low, high, bits) + low
