"""Losses: against naive loops, by an identity each, and their gradients by finite differences."""

import math
from collections.abc import Callable

import pytest
import reference
import torch
from tiny import rng
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fl_cmi.losses import entropy, info_nce, kl_divergence, label_log_prior, soft_cross_entropy

TIGHT = {"rtol": 0.0, "atol": 1e-6}


def logits(batch: int = 5, classes: int = 4, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(batch, classes, dtype=torch.float64, generator=rng(seed))


def rows(number: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(number, width, dtype=torch.float64, generator=rng(seed)), dim=1)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("masked", [False, True])
def test_kl_equals_the_loops(temperature: float, masked: bool) -> None:
    target, student = logits(seed=1), logits(seed=2)
    mask = torch.tensor([1, 0, 0, 1, 1], dtype=torch.bool)
    found = kl_divergence(target, student, temperature, mask if masked else None)
    expected = reference.kl_divergence(
        target, student, temperature, mask.double().tolist() if masked else None
    )
    torch.testing.assert_close(found, expected, **TIGHT)


def test_kl_is_zero_on_itself_and_blind_to_a_shift() -> None:
    target = logits()
    shift = torch.arange(5.0, dtype=torch.float64)[:, None]
    assert kl_divergence(target, target + shift, 4.0).abs() < 1e-12


def test_kl_divides_by_the_batch_and_not_by_the_mask() -> None:
    target, student = logits(seed=1), logits(seed=2)
    one = torch.tensor([0.0, 0, 1, 0, 0], dtype=torch.float64)
    alone = kl_divergence(target[2:3], student[2:3])
    torch.testing.assert_close(kl_divergence(target, student, weight=one), alone / 5)


def test_kl_of_a_class_without_owner_is_finite_and_so_is_its_gradient() -> None:
    target, student = logits(seed=1), logits(seed=2)
    target[:, 3] = -math.inf
    target.requires_grad_()
    student.requires_grad_()
    found = kl_divergence(target, student)
    torch.testing.assert_close(found, reference.kl_divergence(target, student, 1.0), **TIGHT)
    for gradient in torch.autograd.grad(found, (target, student)):
        assert gradient.isfinite().all()


def test_kl_detaches_neither_side() -> None:
    target, student = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    for gradient in torch.autograd.grad(kl_divergence(target, student), (target, student)):
        assert gradient.abs().sum() > 0


def test_kl_does_not_hide_a_nan() -> None:
    assert kl_divergence(torch.full((1, 2), math.nan), torch.zeros(1, 2)).isnan()


def test_soft_cross_entropy_equals_the_loops_and_the_hard_one_on_one_hot_targets() -> None:
    student, q = logits(seed=2), logits(seed=1).softmax(dim=1)
    torch.testing.assert_close(
        soft_cross_entropy(q, student), reference.soft_cross_entropy(q, student), **TIGHT
    )
    y = torch.tensor([0, 3, 1, 2, 0])
    hard = soft_cross_entropy(F.one_hot(y, 4).double(), student)
    torch.testing.assert_close(hard, reference.cross_entropy(student, y), **TIGHT)


def test_soft_cross_entropy_is_kl_plus_entropy() -> None:
    target, student = logits(seed=1), logits(seed=2)
    q = target.softmax(dim=1)
    torch.testing.assert_close(
        soft_cross_entropy(q, student), kl_divergence(target, student) + entropy(q).mean()
    )


def test_entropy_equals_the_loops_and_bounds() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    expected = torch.tensor([reference.entropy(row) for row in p.tolist()], dtype=torch.float64)
    torch.testing.assert_close(entropy(p), expected, **TIGHT)
    assert entropy(torch.full((7,), 1 / 7, dtype=torch.float64)).item() == pytest.approx(math.log(7))


def test_info_nce_equals_the_loops() -> None:
    queries, keys = rows(3, 4, seed=1), rows(7, 4, seed=2)
    expected = torch.stack(reference.info_nce(queries, keys, 0.3))
    torch.testing.assert_close(info_nce(queries, keys, 0.3), expected, **TIGHT)


def test_info_nce_with_fixed_keys_is_the_same_with_the_same_gradient() -> None:
    queries, keys = rows(40, 8, seed=1).requires_grad_(), rows(70, 8, seed=2)
    fixed, free = info_nce(queries, keys, 0.1), info_nce(queries, keys.clone().requires_grad_(), 0.1)
    torch.testing.assert_close(fixed, free, rtol=0.0, atol=1e-12)
    weight = torch.rand(40, generator=rng(3), dtype=torch.float64)
    (one,), (other,) = (torch.autograd.grad(c @ weight, queries) for c in (fixed, free))
    torch.testing.assert_close(one, other, rtol=0.0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, keys, 0.5), (queries,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_info_nce_takes_any_number_of_queries(dtype: torch.dtype, tolerance: float) -> None:
    queries, keys = rows(300, 8, seed=1), rows(400, 8, seed=2)
    expected = info_nce(queries.requires_grad_(), keys.clone().requires_grad_(), 0.3)  # the plain form
    few = queries.detach().to(dtype).requires_grad_()
    found = info_nce(few, keys.to(dtype), 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    (one,), (other,) = (torch.autograd.grad(c.sum(), q) for c, q in ((found, few), (expected, queries)))
    torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_info_nce_of_identical_keys_is_the_log_of_their_number() -> None:
    keys = rows(1, 4, seed=0).expand(6, 4)
    torch.testing.assert_close(
        info_nce(rows(2, 4, seed=1), keys, 0.1), torch.full((2,), math.log(6.0)).double()
    )


@pytest.mark.parametrize("smoothing", [1.0, 0.5])
def test_label_log_prior_equals_the_loops_and_sums_to_one(smoothing: float) -> None:
    counts = [[9, 1, 0, 0], [0, 6, 0, 2]]
    found = label_log_prior(torch.tensor(counts), smoothing)
    expected = [reference.label_log_prior(row, smoothing) for row in counts]
    torch.testing.assert_close(found, torch.tensor(expected), **TIGHT)
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(2))
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (lambda t, s: kl_divergence(t, s, 2.0), [(3, 4), (3, 4)]),
        (
            lambda t, s: kl_divergence(t, s, 1.0, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)),
            [(3, 4), (3, 4)],
        ),
        (lambda t, s: soft_cross_entropy(t.softmax(dim=1), s), [(3, 4), (3, 4)]),
        (lambda t: entropy(t.softmax(dim=1)).sum(), [(3, 4)]),
        (lambda q, k: info_nce(q, k, 0.5), [(3, 4), (5, 4)]),
    ],
    ids=["kl", "masked_kl", "soft_cross_entropy", "entropy", "info_nce"],
)
def test_gradients_equal_finite_differences(
    loss: Callable[..., Tensor], shapes: list[tuple[int, int]]
) -> None:
    inputs = [logits(*shape, seed=i, scale=1.0).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_shapes_are_checked_at_run_time() -> None:
    with pytest.raises(Exception, match="batch classes"):
        kl_divergence(torch.zeros(3, 4), torch.zeros(2, 4))
