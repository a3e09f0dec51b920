"""The terms that train a generator: against the loops, by an identity each, their gradients and what they remember."""

import math
from dataclasses import replace
from typing import Any

import pytest
import reference
import reference_generator as by_loops
import torch
from tiny import SHAPE, TASK, ensemble, inversion, look_of, network, pixels, rng, rows
from torch import Tensor, nn

from fl_cmi.distillation.l1 import L1, LogL1
from fl_cmi.distillation.loss import Answers
from fl_cmi.models.lenet import LeNet
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.activation import Activation
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.balance import ClassBalance
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.batch_norm_memory import BatchNormMemory
from fl_cmi.synthesis.terms.delayed import Delayed
from fl_cmi.synthesis.terms.exp_increment import ExpIncrement
from fl_cmi.synthesis.terms.hard_one_hot import HardOneHot
from fl_cmi.synthesis.terms.mode_seeking import ModeSeeking
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look, Term, look
from fl_cmi.types import ConfigError

TIGHT = {"rtol": 0.0, "atol": 1e-6}
Y = torch.tensor([0, 1, 2, 3, 0, 2])


def made_up() -> Look:
    """Six samples; student and teacher agree on some and disagree on others."""
    teacher, student = 2 * rows(6, seed=1), rows(6, seed=2)
    student[0], student[3] = teacher[0] * 0.5, teacher[3] * 0.5
    return look_of(Y, teacher, student)


class Told(Term):
    """A term of the values it is told, one a call, whose gradient is that of the logits' sum."""

    def __init__(self, values: list[float], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.values, self.finished = list(values), 0

    def __call__(self, seen: Look) -> Tensor:
        pull = seen.teacher.sum()
        return pull - pull.detach() + self.values.pop(0)

    def finish(self) -> None:
        self.finished += 1


# --- one-hot


def test_onehot_of_the_argmax_is_the_cross_entropy_of_the_likeliest_class() -> None:
    seen = made_up()
    likeliest = torch.tensor([row.index(max(row)) for row in seen.teacher.tolist()])
    assert (likeliest != Y).any()
    found = OneHot(label="argmax")(seen)
    torch.testing.assert_close(found, reference.cross_entropy(seen.teacher, likeliest), **TIGHT)
    assert found < OneHot()(seen)
    assert found <= math.log(4)
    assert torch.autograd.gradcheck(
        lambda t: OneHot(label="argmax")(look_of(Y, t)), [seen.teacher.requires_grad_()]
    )


# --- hard samples


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_hard_onehot_equals_the_loops(power: float) -> None:
    seen = made_up()
    expected = by_loops.hard_cross_entropy(seen.teacher, Y, power)
    torch.testing.assert_close(HardOneHot(power=power)(seen), expected, **TIGHT)


def test_hard_onehot_of_power_zero_is_the_plain_term_and_sure_images_count_for_nothing() -> None:
    seen = made_up()
    torch.testing.assert_close(HardOneHot(power=0.0)(seen), OneHot()(seen))
    sure = torch.tensor([[40.0, 0, 0, 0]], dtype=torch.float64)
    assert 0 <= HardOneHot()(look_of(torch.tensor([0]), sure)) < 1e-30


def test_the_weights_of_hard_samples_have_no_gradient() -> None:
    teacher = rows(6, seed=3).requires_grad_()
    (found,) = torch.autograd.grad(HardOneHot()(look_of(Y, teacher)), teacher)
    (expected,) = torch.autograd.grad(by_loops.hard_cross_entropy(teacher, Y, 1.0), teacher)
    torch.testing.assert_close(found, expected, **TIGHT)


# --- class balance


def test_class_balance_equals_the_loops() -> None:
    seen = made_up()
    torch.testing.assert_close(ClassBalance()(seen), by_loops.class_balance(seen.teacher), **TIGHT)
    assert torch.autograd.gradcheck(lambda t: ClassBalance()(look_of(Y, t)), [seen.teacher.requires_grad_()])


def test_class_balance_lies_between_minus_log_classes_and_zero() -> None:
    """Least where the classes are even over the batch, though each image is sure; 0 where all show one class."""
    even = look_of(torch.zeros(4, dtype=torch.int64), 50 * torch.eye(4, dtype=torch.float64))
    assert ClassBalance()(even).item() == pytest.approx(-math.log(4), abs=1e-9)
    one = torch.zeros(6, 4, dtype=torch.float64)
    one[:, 2] = 50.0
    assert ClassBalance()(look_of(Y, one)).item() == pytest.approx(0.0, abs=1e-9)
    for seed in range(20):
        assert -math.log(4) <= ClassBalance()(look_of(Y, 5 * rows(6, seed))) <= 0


@pytest.mark.parametrize("far", [-200.0, -1e6, -math.inf])
def test_a_class_that_no_image_shows_gives_no_nan(far: float) -> None:
    """`exp(-200)` underflows in single precision: 0 log 0 counts as 0."""
    teacher = torch.tensor([[1.0, 2.0, far], [2.0, 0.5, far]], requires_grad=True)
    found = ClassBalance()(look_of(torch.tensor([0, 1]), teacher))
    two = by_loops.class_balance(teacher[:, :2].double())
    torch.testing.assert_close(found.double(), two, **TIGHT)
    found.backward()
    assert teacher.grad is not None
    assert teacher.grad.isfinite().all()


# --- activation


def test_activation_equals_the_loops_on_features_of_different_width() -> None:
    features = [rows(6, seed=4, width=3).requires_grad_(), rows(6, seed=5, width=5).requires_grad_()]
    teacher = rows(6, seed=1)

    def term(*found: Tensor) -> Tensor:
        return Activation()(look_of(Y, teacher, features=found))

    torch.testing.assert_close(term(*features), by_loops.activation(features), **TIGHT)
    assert torch.autograd.gradcheck(term, features)
    torch.testing.assert_close(term(*(3 * f for f in features)), 3 * term(*features))


# --- disagreement


@pytest.mark.parametrize("mask", ["agree", "disagree", "none"])
@pytest.mark.parametrize("divergence", ["l1", "log_l1"])
def test_l1_disagreement_equals_the_loops(mask: Any, divergence: Any) -> None:
    seen = made_up()
    assert seen.student is not None
    l1 = by_loops.mean_difference(seen.teacher, seen.student, mask)
    expected = -l1 if divergence == "l1" else -torch.log(l1 + 1)
    found = Adversarial(mask=mask, divergence=divergence)(seen)
    torch.testing.assert_close(found, expected, **TIGHT)
    assert found < 0
    assert torch.autograd.gradcheck(
        lambda t, s: Adversarial(mask=mask, divergence=divergence)(look_of(Y, t, s)),
        [seen.teacher.requires_grad_(), seen.student.requires_grad_()],
    )


def test_disagreement_by_kl_has_a_temperature() -> None:
    seen = made_up()
    assert seen.student is not None
    expected = -reference.kl_divergence(seen.teacher, seen.student, 3.0)
    torch.testing.assert_close(Adversarial(mask="none", temperature=3.0)(seen), expected, **TIGHT)


@pytest.mark.parametrize("divergence", ["l1", "log_l1"])
@pytest.mark.parametrize("centered", [False, True])
def test_the_generator_gains_what_the_student_loses(divergence: Any, centered: bool) -> None:
    """`L_G = -L_S`; centered, no level of either side is seen."""
    seen = made_up()
    assert seen.student is not None
    loss = L1(centered=centered) if divergence == "l1" else LogL1(centered)
    term = Adversarial(mask="none", divergence=divergence, centered=centered)
    answers = Answers(seen.teacher, seen.student)
    torch.testing.assert_close(term(seen), -loss(answers, rng()), **TIGHT)
    lifted = look_of(Y, seen.teacher + 3.0, seen.student - rows(6, seed=3)[:, :1])
    assert torch.isclose(term(lifted), term(seen)).item() is centered


def test_the_generator_of_dfad_gains_what_its_student_loses() -> None:
    """`L_G = -L_S` on one batch, networks included."""
    team, student, x = ensemble(), network(9).eval(), pixels(6)
    seen = look(team, student, x, Y, TASK)
    student_loss = (student(x) - team(x)).abs().mean()
    torch.testing.assert_close(Adversarial(mask="none", divergence="l1")(seen), -student_loss)
    exact = by_loops.mean_difference(team(x).double(), student(x).double(), "none")
    torch.testing.assert_close(student_loss.double(), exact, **TIGHT)


# --- exponentially penalized increments


def test_exp_increment_follows_the_loops_and_its_reference_moves_at_index_one_only() -> None:
    values = [2.0, 1.5, 1.7, 0.3, 0.4, 0.2, 0.5, 0.1, 3.0, 2.0]
    term, references, found = ExpIncrement(Told(values), every=4), [], []
    for _ in values:
        found.append(term(made_up()).item())
        references.append(term.reference)
    expected = by_loops.exp_increments(values, 4)
    assert references == pytest.approx([ref for ref, _ in expected])
    assert references == [0.0, 1.5, 1.5, 1.5, 1.5, 0.2, 0.2, 0.2, 0.2, 2.0]
    assert found == pytest.approx([value for _, value in expected], abs=1e-6)
    assert found[0] == pytest.approx(math.exp(2.0))
    # The step that gives the reference is still measured by the one before.
    assert [found[k] for k in (1, 2, 5, 9)] == pytest.approx([math.exp(v) for v in (1.5, 0.2, -1.3, 1.8)])


def test_the_gradient_of_exp_increment_is_weighed_by_its_value() -> None:
    teacher = rows(6, seed=1).requires_grad_()
    term = ExpIncrement(OneHot(label="argmax"), every=10**9)
    for _ in range(2):  # past index 1, the reference stays
        term(look_of(Y, rows(6, seed=7)))
    assert torch.autograd.gradcheck(lambda t: term(look_of(Y, t)), [teacher])
    assert term.reference > 0
    plain = OneHot(label="argmax")(look_of(Y, teacher))
    (expected,) = torch.autograd.grad(torch.exp(plain - term.reference), teacher)
    (found,) = torch.autograd.grad(term(look_of(Y, teacher)), teacher)
    torch.testing.assert_close(found, expected)


def test_the_exponent_is_clamped_only_where_asked() -> None:
    assert ExpIncrement(Told([9.0]))(made_up()).item() == pytest.approx(math.exp(9.0))
    assert ExpIncrement(Told([9.0]), max_exponent=5.0)(made_up()).item() == pytest.approx(math.exp(5.0))
    assert ExpIncrement(Told([4.0]), max_exponent=5.0)(made_up()).item() == pytest.approx(math.exp(4.0))


def test_wrappers_hand_on_weight_needs_and_the_end_of_the_batch() -> None:
    lenet = ensemble(make=lambda k: LeNet(SHAPE, 4, (0.5,), (0.25,)))
    for wrap in (ExpIncrement, Delayed):
        inner = Told([], weight=0.7)
        outer = wrap(inner)
        assert outer.weight == 0.7
        outer.finish()
        assert inner.finished == 1
        with pytest.raises(ConfigError, match="no batch norm"):
            wrap(BatchNorm()).check(lenet)
    assert ExpIncrement(Adversarial()).student
    assert not ExpIncrement(OneHot()).student


# --- mode seeking


@pytest.mark.parametrize("norm", ["frobenius", "rms"])
def test_mode_seeking_equals_the_loops(norm: Any) -> None:
    x, teacher = pixels(6).double(), rows(6, seed=1)
    found = ModeSeeking(norm=norm)(look_of(Y, teacher, x=x))
    normalized = (x - 0.5) / 0.25
    torch.testing.assert_close(found, by_loops.mode_seeking(normalized, teacher, norm), **TIGHT)
    assert torch.autograd.gradcheck(
        lambda t, images: ModeSeeking(norm=norm)(look_of(Y, t, x=images)),
        [teacher.requires_grad_(), x[..., :2, :2].clone().requires_grad_()],
    )


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32)])
def test_mode_seeking_falls_with_the_size_of_the_images_unless_rms(shape: tuple[int, int, int]) -> None:
    """Unit variance, halves of different sure classes: sqrt(2) a pair over sqrt(2 C H W)."""
    x = 0.5 + 0.25 * torch.randn(40, *shape, generator=rng())
    teacher = 50 * torch.eye(10)[torch.arange(40) // 4]
    seen = look_of(torch.zeros(40, dtype=torch.int64), teacher, x=x)
    size = shape[0] * shape[1] * shape[2]
    assert ModeSeeking()(seen).item() == pytest.approx(size**-0.5, rel=0.02)
    assert ModeSeeking(norm="rms")(seen).item() == pytest.approx(10**-0.5, rel=0.02)


def test_mode_seeking_is_finite_where_predictions_coincide() -> None:
    x, teacher = pixels(4).requires_grad_(), torch.ones(4, 3, requires_grad=True)
    found = ModeSeeking()(look_of(torch.zeros(4, dtype=torch.int64), teacher, x=x))
    assert found == 0
    for gradient in torch.autograd.grad(found, (x, teacher)):
        assert gradient.isfinite().all()


def test_mode_seeking_needs_two_halves() -> None:
    with pytest.raises(ConfigError, match="batch_size=5: an even number"):
        ModeSeeking()(look_of(Y[:5], rows(5, seed=1)))


# --- batch norm with memory


def layer_and_inputs(batches: int = 3) -> tuple[list[nn.BatchNorm2d], list[list[Tensor]]]:
    """Two layers of two teachers, and what each sees in every batch."""
    layers = []
    for k in range(2):
        layer = nn.BatchNorm2d(3).double()
        layer.running_mean, layer.running_var = rows(1, k, 3)[0], rows(1, k + 2, 3)[0].abs()
        layers.append(layer)
    inputs = [[rows(4, 10 * b + k, 12).view(4, 3, 2, 2) * (b + 1) for k in range(2)] for b in range(batches)]
    return layers, inputs


def seen_by(layers: list[nn.BatchNorm2d], inputs: list[Tensor]) -> Look:
    seen = [{layer: f} for layer, f in zip(layers, inputs, strict=True)]
    return replace(look_of(Y[:4], rows(4, seed=1)), seen=seen)


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_batch_norm_memory_equals_the_loops(over: Any) -> None:
    layers, inputs = layer_and_inputs()
    term = BatchNormMemory(momentum=0.9, over_clients=over)
    memory: list[tuple[list[float], list[float]] | None] = [None, None]
    for batch in inputs:
        term(seen_by(layers, [2 * f for f in batch]))  # an earlier step of the batch leaves no trace
        found = term(seen_by(layers, batch))
        distances = []
        for k, f in enumerate(batch):
            running = layers[k].running_var, layers[k].running_mean
            distances.append(by_loops.remembered_distance(running, f, memory[k], 0.9))  # type: ignore[arg-type]
            new = [[float(v) for v in values] for values in by_loops.statistics(f)]
            old = memory[k]
            if old is not None:
                new = [
                    [0.9 * a + 0.1 * b for a, b in zip(*pair, strict=True)]
                    for pair in zip(old, new, strict=True)
                ]
            memory[k] = new[0], new[1]
        expected = sum(distances) / (2 if over == "mean" else 1)
        torch.testing.assert_close(found, expected, **TIGHT)
        term.finish()


def test_batch_norm_memory_begins_as_the_plain_term_and_stays_it_without_momentum() -> None:
    layers, inputs = layer_and_inputs()
    remembering, forgetful = BatchNormMemory(momentum=0.9), BatchNormMemory(momentum=0.0)
    for number, batch in enumerate(inputs):
        seen = seen_by(layers, batch)
        plain = BatchNorm()(seen)
        torch.testing.assert_close(forgetful(seen), plain)
        assert torch.isclose(remembering(seen), plain) == (number == 0)
        forgetful.finish()
        remembering.finish()


def test_the_gradient_of_batch_norm_memory_equals_finite_differences() -> None:
    layers, inputs = layer_and_inputs()
    term = BatchNormMemory()
    term(seen_by(layers, inputs[0]))
    term.finish()
    f, g = (tensor.clone().requires_grad_() for tensor in inputs[1])
    assert torch.autograd.gradcheck(lambda *found: term(seen_by(layers, list(found))), [f, g])


def test_a_new_teacher_has_no_memory_and_the_old_one_is_forgotten() -> None:
    layers, inputs = layer_and_inputs()
    term = BatchNormMemory()
    term(seen_by(layers, inputs[0]))
    term.finish()
    others, _ = layer_and_inputs()
    seen = seen_by(others, inputs[1])
    torch.testing.assert_close(term(seen), BatchNorm()(seen))
    term.finish()
    assert set(term.memory) == set(others)


def test_batch_norm_memory_needs_batch_norm() -> None:
    lenet = ensemble(make=lambda k: LeNet(SHAPE, 4, (0.5,), (0.25,)))
    with pytest.raises(ConfigError, match="bn.weight=10.0.*no batch norm"):
        Joint(inversion(terms={"bn": BatchNormMemory()})).check(lenet)


# --- a delayed term


def test_a_delayed_term_sets_in_at_its_batch_and_asks_the_student_no_earlier() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = network(9), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.model(x)
            return out

    student = Counting()
    made = inversion(steps=2, terms={"oh": OneHot(), "adv": Delayed(Adversarial(mask="none"), from_batch=3)})
    values, calls = [], []
    for batch in range(4):
        values.append(made(ensemble(), student, Y % 4, TASK, rng(batch)).losses["adv"])
        calls.append(student.calls)
    assert values[:2] == [0.0, 0.0]
    assert max(values[2:]) < 0
    assert calls == [0, 0, 2, 4]


# --- values out of range


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: OneHot(label="true"), "oh.label=true"),  # type: ignore[arg-type]
        (lambda: HardOneHot(power=-1.0), "oh.power=-1.0"),
        (lambda: Adversarial(divergence="l2"), "adv.divergence=l2"),  # type: ignore[arg-type]
        (lambda: Adversarial(temperature=0.0), "adv.temperature=0.0"),
        (lambda: ModeSeeking(norm="max"), "ds.norm=max"),  # type: ignore[arg-type]
        (lambda: ExpIncrement(OneHot(), every=1), "every=1"),
        (lambda: Delayed(OneHot(), from_batch=0), "from_batch=0"),
        (lambda: BatchNormMemory(momentum=1.0), "bn.momentum=1.0"),
        (lambda: BatchNormMemory(over_clients="max"), "bn.over_clients=max"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_named(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()
