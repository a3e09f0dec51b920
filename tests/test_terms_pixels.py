"""The terms of DeepInversion and of The Knowledge Within: against the loops, and at known values."""

import math
from typing import Any

import pytest
import reference_pixels
import torch
from tiny import SHAPE, TASK, ensemble, inversion, look_of, network, pixels, rng, rows
from torch import Tensor, nn

from fl_cmi.batchnorm import batch_norm_layers, observe
from fl_cmi.losses import js_divergence
from fl_cmi.models.lenet import LeNet
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.batch_norm_kl import BatchNormKL, floored
from fl_cmi.synthesis.terms.class_logit import ClassLogit
from fl_cmi.synthesis.terms.competition import Competition
from fl_cmi.synthesis.terms.image_norm import ImageNorm
from fl_cmi.synthesis.terms.smoothness import Smoothness, gaussian_kernel
from fl_cmi.synthesis.terms.term import Look, Term, look
from fl_cmi.synthesis.terms.total_variation import TotalVariation
from fl_cmi.types import ConfigError, Task

RGB = Task((2, 4, 5), 3, (0.3, 0.6), (0.2, 0.5))
"""Two channels of unequal statistics, so that a mix-up shows."""


def shown(x: Tensor) -> Look:
    """A look at images alone."""
    logits = rows(len(x), seed=3, width=3)
    return Look(x, torch.zeros(len(x), dtype=torch.int64), logits[None], logits, [], [], None, RGB)


def batch(seed: int = 0, number: int = 3) -> Tensor:
    return pixels(number, seed, RGB.shape).double()


def assert_gradient(term: Term) -> None:
    x = batch(seed=5, number=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term(shown(x)), [x])


@pytest.mark.parametrize("diagonals", [True, False])
def test_total_variation_equals_the_loops(diagonals: bool) -> None:
    x, term = batch(), TotalVariation(diagonals=diagonals)
    expected = reference_pixels.total_variation(reference_pixels.normalized(x, RGB.mean, RGB.std), diagonals)
    torch.testing.assert_close(term(shown(x)), expected, rtol=0.0, atol=1e-6)
    assert_gradient(term)


def test_total_variation_of_flat_images_is_zero_and_of_a_ramp_is_its_slope() -> None:
    assert TotalVariation()(shown(torch.full((2, *RGB.shape), 0.4))) == 0
    ramp = torch.arange(5.0).expand(2, *RGB.shape) / 10
    # A tenth a pixel to the right and on both diagonals, none downwards; over the channels' mean of 1/std.
    slope = 0.1 * (1 / 0.2 + 1 / 0.5) / 2
    torch.testing.assert_close(TotalVariation()(shown(ramp)), torch.tensor(3 * slope))
    torch.testing.assert_close(TotalVariation(diagonals=False)(shown(ramp)), torch.tensor(slope))


def test_image_norm_equals_the_loops() -> None:
    x = batch()
    expected = reference_pixels.norm(reference_pixels.normalized(x, RGB.mean, RGB.std))
    torch.testing.assert_close(ImageNorm(1.0)(shown(x)), expected, rtol=0.0, atol=1e-6)
    assert_gradient(ImageNorm(1.0))


def test_image_norm_is_zero_at_the_mean_image() -> None:
    x = torch.tensor(RGB.mean)[:, None, None].expand(2, *RGB.shape).clone().requires_grad_()
    value = ImageNorm(1.0)(shown(x))
    assert value == 0
    value.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("sigma", [1.0, 0.375])
def test_smoothness_equals_the_loops(padding: Any, sigma: float) -> None:
    x, term = batch(), Smoothness(sigma=sigma, padding=padding)
    expected = reference_pixels.smoothness(x, sigma, padding == "reflect")
    torch.testing.assert_close(term(shown(x)), expected, rtol=0.0, atol=1e-6)
    assert_gradient(term)


def test_smoothness_of_a_flat_image_is_that_of_its_border() -> None:
    flat = torch.full((1, 1, 9, 9), 0.5)
    assert Smoothness(padding="reflect")(shown_gray(flat)) < 1e-12
    assert Smoothness()(shown_gray(flat)) > 1e-3
    assert gaussian_kernel(1.0).sum().item() == pytest.approx(1.0)
    assert gaussian_kernel(1.0)[2, 2] / gaussian_kernel(1.0)[2, 3] == pytest.approx(math.exp(0.5))


def shown_gray(x: Tensor) -> Look:
    return look_of(torch.zeros(len(x), dtype=torch.int64), rows(len(x), seed=1), x=x)


def layers_of(model: nn.Module, x: Tensor) -> list[reference_pixels.Layer]:
    """What the loops need: the normalized image, then each batch-norm layer's input."""
    with observe(model) as seen:
        model(x)
    image = reference_pixels.normalized(x, TASK.mean, TASK.std)
    layers: list[reference_pixels.Layer] = [(image, [0.0], [1.0])]
    for bn, f in seen.items():
        assert bn.running_mean is not None
        assert bn.running_var is not None
        layers.append((f, bn.running_mean.tolist(), bn.running_var.tolist()))
    return layers


@pytest.mark.parametrize("direction", ["batch_ref", "ref_batch", "sym", "mse"])
def test_batch_norm_kl_equals_the_loops_with_the_input_as_a_layer(direction: Any) -> None:
    team, x = ensemble().double(), pixels(4).double()
    found = BatchNormKL(direction=direction)(look(team, None, x, torch.zeros(4, dtype=torch.int64), TASK))
    clients = [layers_of(model, x) for model in team.models]
    assert [len(layers) for layers in clients] == [4, 4, 4]
    expected = reference_pixels.batch_norm_kl(clients, direction)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)
    without = reference_pixels.batch_norm_kl([layers[1:] for layers in clients], direction)
    assert (found - without).abs() > 1e-3, "the input layer makes no difference here"


@pytest.mark.parametrize("direction", ["batch_ref", "ref_batch", "sym", "mse"])
def test_gradient_of_batch_norm_kl_equals_finite_differences(direction: Any) -> None:
    team, y = ensemble(counts=((1, 1, 1, 1),)).double(), torch.zeros(2, dtype=torch.int64)
    # A pixel of every fourth row and column is enough, and far quicker than all.
    x, seed = pixels(2).double(), rows(2, seed=4, width=4).view(2, 1, 2, 2).requires_grad_()

    def loss(change: Tensor) -> Tensor:
        image = x + 0.05 * nn.functional.interpolate(change, size=8)
        return BatchNormKL(direction=direction)(look(team, None, image, y, TASK))

    assert torch.autograd.gradcheck(loss, [seed])


def one_layer(direction: Any, deviation: float, reference_deviation: float = 1.0) -> float:
    """The term of one channel whose batch has mean 0 and this deviation, the reference mean 0 and that one."""
    bn = nn.BatchNorm2d(1)
    assert bn.running_var is not None
    bn.running_var.fill_(reference_deviation**2)
    signs = torch.tensor([-1.0, 1.0]).repeat(8)[:, None, None, None]
    f = (deviation * signs).expand(-1, 1, 2, 2)
    # At mean -1 and +1 times the task's deviation the input layer is at its reference and adds nothing.
    x = (TASK.mean[0] + TASK.std[0] * signs).expand(-1, *SHAPE)
    y, logits = torch.zeros(16, dtype=torch.int64), rows(16, seed=0)
    seen = Look(x, y, logits[None], logits, [{bn: f}], [], None, TASK)
    # Two layers, one of them at 0: twice the mean is the layer's own.
    return 2 * BatchNormKL(direction=direction)(seen).item()


@pytest.mark.parametrize(
    ("direction", "deviation", "value"),
    [
        # ln 10 - 1/2 + .01/2 and -ln 10 - 1/2 + 50 (The Knowledge Within, at a tenth and at ten times).
        ("batch_ref", 0.1, 1.8076),
        ("ref_batch", 0.1, 47.1974),
        ("batch_ref", 10.0, 47.1974),
        ("ref_batch", 10.0, 1.8076),
        ("sym", 0.1, 24.5025),
        ("mse", 0.1, 0.81),
        ("mse", 10.0, 81.0),
    ],
)
def test_the_directions_differ_as_the_paper_s_formula_says(
    direction: Any, deviation: float, value: float
) -> None:
    assert one_layer(direction, deviation) == pytest.approx(value, rel=1e-4)
    # A KL and its reverse are invariant to the common scale.
    if direction != "mse":
        assert one_layer(direction, deviation * 3, 3.0) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("direction", ["batch_ref", "ref_batch", "sym", "mse"])
def test_equal_statistics_give_zero_and_a_zero_gradient(direction: Any) -> None:
    assert abs(one_layer(direction, 1.0)) < 1e-6
    team, x = ensemble().double(), pixels(6).double()
    x = (x - x.mean()) / x.std(correction=0) * TASK.std[0] + TASK.mean[0]
    with torch.no_grad():
        for model in team.models:
            for bn in batch_norm_layers(model):
                # What later layers see follows from the statistics of this one: one pass for each.
                with observe(model) as seen:
                    model(x)
                f = seen[bn]
                assert bn.running_mean is not None
                assert bn.running_var is not None
                bn.running_mean.copy_(f.mean(dim=(0, 2, 3)))
                bn.running_var.copy_(f.var(dim=(0, 2, 3), correction=0))
    x.requires_grad_()
    term = BatchNormKL(direction=direction)
    value = term(look(team, None, x, torch.zeros(6, dtype=torch.int64), TASK))
    value.backward()
    assert abs(value.item()) < 1e-9
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-6


def test_dead_channels_are_floored_and_keep_their_gradient() -> None:
    var = torch.tensor([1e-9, 0.0, 1e-5, 0.3], requires_grad=True)
    out = floored(var)
    torch.testing.assert_close(out, torch.tensor([1e-5, 1e-5, 1e-5, 0.3]))
    out.sum().backward()
    assert var.grad is not None
    assert torch.equal(var.grad, torch.ones(4))
    assert one_layer("ref_batch", 0.0) == pytest.approx(0.5 * math.log(1e-5) - 0.5 + 0.5 / 1e-5, rel=1e-4)
    assert one_layer("batch_ref", 1e-6, 1e-7) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("term", [BatchNormKL()], ids=["bn_kl"])
def test_terms_of_batch_norm_need_it_in_every_teacher(term: Term) -> None:
    lenet = LeNet(SHAPE, 4, (0.5,), (0.25,))
    team = ensemble(make=lambda k: lenet if k == 1 else network(k))
    with pytest.raises(ConfigError, match=r"bn_kl.weight=1.0.*client 10's model \(LeNet\)"):
        Joint(inversion(terms={"bn_kl": term})).check(team)
    others = {"tv": TotalVariation(), "i": ClassLogit(), "s": Smoothness(), "c": Competition()}
    made = inversion(terms={"bn_kl": BatchNormKL(0.0), **others})
    made.check(team)
    found = made(team, network(9), torch.tensor([0, 1, 3]), TASK, rng())
    assert set(found.losses) == {*others, "total"}


@pytest.mark.parametrize("form", ["exp", "logit", "cross_entropy"])
@pytest.mark.parametrize("scale", [4e-4, 0.7])
def test_class_logit_equals_the_loops(form: Any, scale: float) -> None:
    teacher, y = rows(5, seed=1).requires_grad_(), torch.tensor([0, 1, 2, 3, 0])
    term = ClassLogit(scale=scale, form=form)
    expected = reference_pixels.class_logit(teacher, y.tolist(), scale, form)
    torch.testing.assert_close(term(look_of(y, teacher)), expected, rtol=0.0, atol=1e-6)
    assert torch.autograd.gradcheck(lambda t: term(look_of(y, t)), [teacher])


def test_class_logit_is_one_at_zero_logits_and_follows_the_exponential() -> None:
    y, logits = torch.tensor([0, 1, 2]), torch.zeros(3, 4, dtype=torch.float64)
    assert ClassLogit()(look_of(y, logits)) == 1.0
    logits[range(3), [0, 1, 2]] = torch.tensor([1000.0, 2000.0, 3000.0], dtype=torch.float64)
    assert ClassLogit()(look_of(y, logits)).item() == pytest.approx(math.exp(-0.8))
    # Logits of other classes count for nothing.
    assert ClassLogit()(look_of(y, logits + torch.eye(4)[3])).item() == pytest.approx(math.exp(-0.8))


@pytest.mark.parametrize("temperature", [3.0, 0.5])
def test_competition_equals_the_loops(temperature: float) -> None:
    teacher, student = 2 * rows(5, seed=1), 2 * rows(5, seed=2)
    y = torch.zeros(5, dtype=torch.int64)
    if temperature < 1:
        assert (teacher / temperature).softmax(dim=1).min() < 0.01, "the clamp is not reached"
    found = Competition(temperature=temperature)(look_of(y, teacher, student))
    expected = -reference_pixels.jensen_shannon(teacher, student, temperature)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)
    assert found < 0


def test_gradient_of_competition_equals_finite_differences_on_both_sides() -> None:
    y = torch.zeros(3, dtype=torch.int64)
    pair = [rows(3, seed=1).requires_grad_(), rows(3, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda t, s: Competition()(look_of(y, t, s)), pair)


def test_jensen_shannon_is_zero_for_equals_symmetric_and_bounded() -> None:
    one, other = rows(6, seed=1), rows(6, seed=2)
    assert js_divergence(one, one).abs() < 1e-12
    torch.testing.assert_close(js_divergence(one, other), js_divergence(other, one))
    # Sure of different classes: .99 and .01 against .01 and .99 meet at .5, so -ln 2 - ln(.99 * .01) / 2.
    sure = torch.tensor([[1e3, -1e3]])
    most = -math.log(2) - 0.5 * math.log(0.99 * 0.01)
    assert js_divergence(sure, -sure).item() == pytest.approx(most, rel=1e-5)
    # M is clamped after it is taken: of .005 and .035 it is .02, and not .0225.
    low, high = (torch.tensor([[p, 1 - p]], dtype=torch.float64).log() for p in (0.005, 0.035))
    parts = (0.02, 0.01, 0.035), (0.98, 0.99, 0.965)  # M, P, Q of either class
    expected = sum(m * math.log(m / math.sqrt(p * q)) for m, p, q in parts)
    assert js_divergence(low, high, temperature=1.0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Smoothness(sigma=0.0), "smooth.sigma=0.0"),
        (lambda: Smoothness(padding="same"), "smooth.padding=same"),  # type: ignore[arg-type]
        (lambda: BatchNormKL(direction="both"), "bn_kl.direction=both"),  # type: ignore[arg-type]
        (lambda: ClassLogit(scale=0.0), "inception.scale=0.0"),
        (lambda: ClassLogit(form="log"), "inception.form=log"),  # type: ignore[arg-type]
        (lambda: Competition(temperature=0.0), "competition.temperature=0.0"),
    ],
)
def test_values_out_of_range_are_named(make: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()
