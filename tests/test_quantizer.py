"""Uniform affine quantization against loops over single numbers, and its identities."""

import pytest
import reference_compression as reference
import torch
from tiny import rng
from torch import Tensor

from fl_cmi.compression.quantizer import (
    channel_range,
    codes,
    fake_quantize,
    from_codes,
    with_exact_zero,
)

LOW, HIGH = torch.tensor(-0.7, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)


def values(number: int = 200, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(number, dtype=torch.float64, generator=rng(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_the_papers_formula(bits: int) -> None:
    x = values()
    expected = torch.tensor([reference.quantize(v, LOW.item(), HIGH.item(), bits) for v in x.tolist()])
    assert torch.allclose(fake_quantize(x, LOW, HIGH, bits).float(), expected, atol=1e-6)
    assert not torch.allclose(fake_quantize(x, LOW, HIGH, bits).float(), x.float(), atol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_have_a_range_per_channel(bits: int) -> None:
    weight = values(24).view(2, 3, 2, 2) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1)
    by_channel = fake_quantize(weight, *channel_range(weight), bits)
    assert torch.allclose(by_channel, reference.per_channel(weight, bits), atol=1e-6)
    by_tensor = fake_quantize(weight, weight.min(), weight.max(), bits)
    error = [(found - weight)[0].abs().mean() for found in (by_channel, by_tensor)]
    assert error[0] < error[1] / 3, "the small channel keeps its resolution"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_there_are_two_to_the_b_levels_and_they_stay(bits: int) -> None:
    x = torch.linspace(-2, 2, 3001)
    low, high = torch.tensor(-1.0), torch.tensor(0.9)
    once = fake_quantize(x, low, high, bits)
    assert len(once.unique()) == 2**bits
    assert torch.equal(fake_quantize(once, low, high, bits), once), "idempotent, to the last bit"
    assert (once.diff() >= 0).all(), "monotone"
    assert (once - x.clamp(-1, 0.9)).abs().max() <= 1.9 / (2**bits - 1) / 2 + 1e-6


def test_eight_bits_keep_values_on_the_grid() -> None:
    x = torch.arange(256.0)
    assert torch.equal(fake_quantize(x, torch.tensor(0.0), torch.tensor(255.0), 8), x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("low", "high"), [(-0.73, 1.31), (0.2, 0.9), (-3.0, -1.0), (0.0, 0.0), (-1e-3, 5.0)])
def test_zero_is_a_level_where_asked(low: float, high: float, bits: int) -> None:
    ends = with_exact_zero(torch.tensor(low), torch.tensor(high), bits)
    assert fake_quantize(torch.zeros(3), *ends, bits).tolist() == [0.0, 0.0, 0.0]
    step = (max(high, 0) - min(low, 0)) / (2**bits - 1)
    assert abs(ends[0].item() - min(low, 0)) <= step / 2 + 1e-6
    assert abs(ends[1].item() - max(high, 0)) <= step / 2 + 1e-6
    again = with_exact_zero(*ends, bits)
    assert torch.allclose(torch.stack(again), torch.stack(ends), atol=1e-6)


def test_in_paper_mode_zero_is_no_level() -> None:
    assert fake_quantize(torch.zeros(1), torch.tensor(-0.7), torch.tensor(1.3), 2).abs() > 0.03


def test_a_range_of_one_point_is_kept() -> None:
    weight = torch.tensor([[0.3, 0.3], [0.0, 0.0], [0.0, 1.0]])
    assert torch.equal(fake_quantize(weight, *channel_range(weight), 2), weight)


def test_gradients_go_straight_through_inside_and_stop_outside() -> None:
    x = torch.tensor([-2.0, -0.7, -0.1, 0.4, 1.3, 1.31], dtype=torch.float64, requires_grad=True)
    slope = torch.arange(1.0, 7.0, dtype=torch.float64)
    (slope * fake_quantize(x, LOW, HIGH, 3)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 0.0]


def test_weights_make_their_range_and_get_all_gradients() -> None:
    weight = torch.tensor([[-1.0, 0.3, 0.4, 0.9]], requires_grad=True)
    low, high = with_exact_zero(*channel_range(weight), 2)
    assert ((weight < low) | (weight > high)).any(), "an exact zero has moved the range"
    slope = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    out = fake_quantize(weight, low, high, 2, everywhere=True)
    assert torch.equal(out, fake_quantize(weight, low, high, 2))
    (slope * out).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_range_is_as_quick_as_numbers_and_as_right_as_many_ranges(dtype: torch.dtype) -> None:
    """Scalars have kernels of their own; values at both ends and their neighbours get the bits of the general way."""
    low, high = torch.tensor(-0.7, dtype=dtype), torch.tensor(1.3, dtype=dtype)
    ends = [end.nextafter(torch.full_like(end, to)) for end in (low, high) for to in (-9.0, 9.0)]
    x = torch.cat([torch.stack([low, high, *ends]), values(3 * 4 * 5 * 5 - 6).to(dtype)]).view(3, 4, 5, 5)
    x = x.contiguous(memory_format=torch.channels_last)
    slope = values(x.numel(), seed=1).to(dtype).view(x.shape)
    found = []
    for shape in ((), (1, 1, 1, 1)):
        given = x.clone().requires_grad_()
        out = fake_quantize(given, low.view(shape), high.view(shape), 4)
        (slope * out).sum().backward()
        assert given.grad is not None
        found.append((out, given.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert 0 < (found[0][1] == 0).double().mean() < 1


def test_the_gradient_is_that_of_clipping() -> None:
    """What the estimator passes on is the true gradient of the same function without rounding."""
    x = values(12).requires_grad_()
    clip = [torch.minimum(torch.maximum(x, LOW), HIGH).square().sum(), x]
    (expected,) = torch.autograd.grad(clip[0], x)
    outer = torch.minimum(torch.maximum(x, LOW), HIGH).detach()
    (found,) = torch.autograd.grad((2 * outer * fake_quantize(x, LOW, HIGH, 4)).sum(), x)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_give_the_same_values(bits: int) -> None:
    x = values(300, seed=3).float()
    low, high = torch.tensor(-0.7), torch.tensor(1.3)
    k = codes(x, low, high, bits)
    assert int(k.max()) == 2**bits - 1
    assert int(k.min()) == 0
    assert torch.equal(from_codes(k, low, high, bits), fake_quantize(x, low, high, bits))
