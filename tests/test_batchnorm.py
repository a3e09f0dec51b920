"""What batch-norm layers saw: order, hooks, and the distance of statistics."""

import pytest
import reference
import torch
from tiny import network, pixels, rng
from torch import Tensor, nn

from fl_cmi.batchnorm import (
    Seen,
    batch_norm_layers,
    batch_statistics,
    observe,
    pooled_inputs,
    statistics_distance,
)


def layer(width: int, seed: int) -> nn.BatchNorm2d:
    """A double-precision layer with made-up memories."""
    made = nn.BatchNorm2d(width).double()
    assert made.running_mean is not None
    assert made.running_var is not None
    made.running_mean.copy_(torch.randn(width, generator=rng(seed)))
    made.running_var.copy_(torch.rand(width, generator=rng(seed)) + 0.5)
    return made


def seen(seed: int = 0) -> Seen:
    shapes = [(4, 3, 2, 2), (4, 2, 3, 1)]
    return {
        layer(shape[1], seed + i): torch.randn(shape, dtype=torch.float64, generator=rng(seed + 10 + i))
        for i, shape in enumerate(shapes)
    }


def has_hooks(model: nn.Module) -> bool:
    return any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_distance_equals_the_loops() -> None:
    found = seen()
    expected = reference.statistics_distance(
        [(f, bn.running_mean, bn.running_var) for bn, f in found.items()]
    )
    torch.testing.assert_close(statistics_distance(found), expected, rtol=0.0, atol=1e-6)


def test_distance_is_zero_where_statistics_match() -> None:
    found = seen()
    for bn, f in found.items():
        bn.running_mean, bn.running_var = batch_statistics(f)
    assert statistics_distance(found).item() == 0.0


def test_gradient_is_finite_where_statistics_match() -> None:
    found = seen()
    for bn, f in found.items():
        bn.running_mean, bn.running_var = batch_statistics(f)
        f.requires_grad_()
    for gradient in torch.autograd.grad(statistics_distance(found), list(found.values())):
        assert gradient.isfinite().all()


def test_distance_uses_the_biased_variance() -> None:
    bn = nn.BatchNorm2d(1).double()
    assert bn.running_mean is not None
    bn.running_mean.zero_()
    f = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)  # variance 1 biased, 2 unbiased
    assert statistics_distance({bn: f}).item() == 0.0


def test_gradient_of_the_distance_equals_finite_differences() -> None:
    found = seen()
    layers = list(found)

    def distance(*inputs: Tensor) -> Tensor:
        return statistics_distance(dict(zip(layers, inputs, strict=True)))

    assert torch.autograd.gradcheck(distance, [f.requires_grad_() for f in found.values()])


def test_pooled_inputs_equal_the_loops() -> None:
    found = seen()
    expected = torch.tensor(reference.pooled(list(found.values())), dtype=torch.float64)
    torch.testing.assert_close(pooled_inputs(found), expected, rtol=0.0, atol=1e-6)
    assert pooled_inputs(found).shape == (4, 3 + 2)


class Backwards(nn.Module):
    """Registers its layers in the opposite order of their execution."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.BatchNorm2d(1)
        self.first = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(10 * self.first(x))


def test_inputs_come_in_the_order_of_execution() -> None:
    model = Backwards().eval()
    x = pixels(2)
    with observe(model) as found:
        model(x)
    assert list(found) == [model.first, model.second]
    assert batch_norm_layers(model) == [model.second, model.first]
    torch.testing.assert_close(found[model.first], x)


def test_every_layer_is_observed() -> None:
    model = network()
    with observe(model) as found:
        model(pixels(2))
    assert set(found) == set(batch_norm_layers(model))
    assert len(found) == 3


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    model = network()
    with observe(model):
        assert has_hooks(model)
    assert not has_hooks(model)
    with pytest.raises(ZeroDivisionError), observe(model):
        raise ZeroDivisionError
    assert not has_hooks(model)


def test_two_views_do_not_overwrite_each_other() -> None:
    model = network().eval()
    one, two = pixels(2, seed=1), pixels(2, seed=2)
    with observe(model) as first:
        model(one)
    kept = [f.clone() for f in first.values()]
    with observe(model) as second:
        model(two)
    for before, after in zip(kept, first.values(), strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(pooled_inputs(first), pooled_inputs(second))


def test_a_second_pass_in_one_block_is_an_error() -> None:
    model = network().eval()
    twice = nn.Sequential(model.norms[0], model.norms[0])
    with pytest.raises(RuntimeError, match="twice"), observe(model):
        twice(pixels(2, shape=(2, 4, 4)))


def test_gradients_reach_the_images_through_what_was_seen() -> None:
    model = network().eval()
    x = pixels(3).requires_grad_()
    with observe(model) as found:
        model(x)
    assert torch.autograd.grad(statistics_distance(found), x)[0].abs().sum() > 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_statistics_are_mean_and_biased_variance(memory_format: torch.memory_format) -> None:
    f = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = f.contiguous(memory_format=memory_format).requires_grad_()
    mean, var = batch_statistics(f)
    naive_var, naive_mean = torch.var_mean(f, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, naive_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var, naive_var, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(batch_statistics, (f,))


def test_the_variance_of_a_constant_is_zero_far_from_zero() -> None:
    assert batch_statistics(torch.full((8, 2, 4, 4), 1000.1))[1].max().item() == 0.0
