"""Products by oneDNN against torch's own, in float64."""

import pytest
import torch
from torch import nn

from fl_cmi.products import Linear, product
from fl_cmi.rng import stream


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=stream(seed, "test"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (130, 256, 33), (0, 4, 3)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_the_sum_of_products(shape: tuple[int, int, int], turned: bool) -> None:
    m, width, n = shape
    a, b = rows(m, width), rows(n, width, seed=1)
    if turned:  # in memory column after column
        a, b = a.T.contiguous().T, b.T.contiguous().T
    expected = a.double() @ b.double().T
    torch.testing.assert_close(product(a, b).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(a.double(), b.double()), expected)


def test_the_linear_map_is_torchs_with_the_same_gradients() -> None:
    ours, plain = Linear(6, 4), nn.Linear(6, 4).double()
    plain.load_state_dict(ours.state_dict())
    x, to_y = rows(5, 6).requires_grad_(), rows(5, 4, seed=1)
    wide = x.detach().double().requires_grad_()
    y, expected = ours(x), plain(wide)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    y.backward(to_y)
    expected.backward(to_y.double())
    assert x.grad is not None and wide.grad is not None
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-6)
    for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-5, atol=1e-6)


def test_the_linear_maps_gradient_is_its_derivative() -> None:
    layer = Linear(3, 2).double()
    x = rows(4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_weights_alone_have_gradients_where_the_rows_have_none() -> None:
    layer = Linear(3, 2)
    layer(rows(4, 3)).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, rows(4, 3).sum(dim=0).expand(2, 3))


def test_under_autocast_it_is_torchs_own() -> None:
    layer = Linear(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(rows(4, 3)).dtype == torch.bfloat16
