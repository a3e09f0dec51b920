"""Distillation losses on logits: against the loops, and what a lesson does for a loss."""

import math
from functools import partial
from typing import Any

import pytest
import reference
import reference_distillation
import torch
from tiny import CLASSES, ensemble, generator, inversion, network, pixels, rng
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.distillation.crd import CRD
from fl_cmi.distillation.cross_entropy import CrossEntropy, SoftCrossEntropy
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.js import JS
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.l1 import L1, LogL1
from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.distillation.schedules import Alternate, GeneratorFirst
from fl_cmi.distillation.sum import Sum
from fl_cmi.distillation.targets import Fresh, Sharpened, Targets
from fl_cmi.losses import entropy, kl_divergence
from fl_cmi.synthesis.source import TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.training import cosine, step_decay
from fl_cmi.types import ConfigError

TIGHT = {"rtol": 1e-6, "atol": 1e-6}
SGD = partial(torch.optim.SGD, lr=0.1)
WHOLE = (0.0, 1.0)
LOSSES: dict[str, DistillLoss] = {
    "kl": KL(4.0),
    "kl_mean": KL(1.0, "mean"),
    "l1": L1(),
    "l1_sum": L1("sum_classes"),
    "l1_centered": L1(centered=True),
    "log_l1": LogL1(),
    "js": JS(),
    "ce": CrossEntropy(),
    "soft_ce": SoftCrossEntropy(),
    "sum": Sum({"kl": KL(2.0), "l1": L1()}, {"l1": 0.3}),
}


def logits(seed: int, batch: int = 5, classes: int = 4, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(batch, classes, dtype=torch.float64, generator=rng(seed))


def answers(target: Tensor, student: Tensor) -> Answers:
    return Answers(target, student, y=torch.arange(len(student)) % student.shape[1])


def value(loss: DistillLoss, target: Tensor, student: Tensor) -> Tensor:
    return loss(answers(target, student), rng())


# Against the loops


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("reduction", ["sum_classes", "mean"])
def test_kl_equals_the_loops(temperature: float, reduction: Any) -> None:
    target, student = logits(1), logits(2)
    expected = reference.kl_divergence(target, student, temperature) / (4 if reduction == "mean" else 1)
    torch.testing.assert_close(value(KL(temperature, reduction), target, student), expected, **TIGHT)


def test_kl_is_the_pure_function_bit_for_bit() -> None:
    target, student = logits(1).float(), logits(2).float()
    assert torch.equal(value(KL(), target, student), kl_divergence(target, student, 20.0))


@pytest.mark.parametrize("reduction", ["mean", "sum_classes"])
@pytest.mark.parametrize("centered", [False, True])
def test_l1_equals_the_loops(reduction: Any, centered: bool) -> None:
    target, student = logits(1), logits(2)
    expected = reference_distillation.l1(target, student, reduction, centered)
    torch.testing.assert_close(value(L1(reduction, centered), target, student), expected, **TIGHT)


@pytest.mark.parametrize("centered", [False, True])
def test_log_l1_equals_the_loops(centered: bool) -> None:
    target, student = logits(1), logits(2)
    expected = torch.log(reference_distillation.l1(target, student, "mean", centered) + 1)
    torch.testing.assert_close(value(LogL1(centered), target, student), expected, **TIGHT)


@pytest.mark.parametrize(("temperature", "floor"), [(3.0, 0.01), (1.0, 0.2)])
def test_js_equals_the_loops(temperature: float, floor: float) -> None:
    target, student = logits(1), logits(2)
    expected = reference_distillation.jensen_shannon(target, student, temperature, floor)
    torch.testing.assert_close(value(JS(temperature, floor), target, student), expected, **TIGHT)


def test_cross_entropies_equal_the_loops() -> None:
    target, student = logits(1), logits(2)
    hard = reference.cross_entropy(student, torch.arange(5) % 4)
    torch.testing.assert_close(value(CrossEntropy(), target, student), hard, **TIGHT)
    probabilities = torch.stack([torch.stack(reference.softmax(row)) for row in target])
    soft = reference.soft_cross_entropy(probabilities, student)
    torch.testing.assert_close(value(SoftCrossEntropy(), target, student), soft, **TIGHT)
    torch.testing.assert_close(value(SoftCrossEntropy("mean"), target, student), soft / 4, **TIGHT)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    target, student = logits(1, scale=1.0), logits(2, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: value(LOSSES[name], target, s), (student,))


# Identities


@pytest.mark.parametrize("name", [name for name in LOSSES if "ce" not in name or name == "l1_centered"])
def test_who_says_the_same_loses_nothing(name: str) -> None:
    target = logits(1)
    assert value(LOSSES[name], target, target.clone()).item() == pytest.approx(0, abs=1e-12)
    assert value(LOSSES[name], target, logits(2)) > 0


def test_the_loss_does_not_shift_with_the_level_unless_it_is_of_logits() -> None:
    target, student = logits(1), logits(2)
    for loss in (KL(4.0), L1(centered=True), L1("sum_classes", centered=True), LogL1(centered=True), JS()):
        shifted = value(loss, target.log_softmax(dim=1), student + 5)
        torch.testing.assert_close(shifted, value(loss, target, student))
    assert value(L1(), target, student + 50) > 10 * value(L1(), target, student)


def test_reductions_differ_by_the_number_of_classes() -> None:
    target, student = logits(1), logits(2)
    torch.testing.assert_close(value(L1("sum_classes"), target, student), 4 * value(L1(), target, student))


def test_js_is_symmetric_and_clamped() -> None:
    target, student = logits(1), logits(2)
    torch.testing.assert_close(value(JS(), target, student), value(JS(), student, target))
    sure = torch.tensor([[50.0, 0.0]], dtype=torch.float64)
    p, q = 0.99, 0.01
    expected = 2 * 0.5 * (-0.5 * math.log(p / 0.5) - 0.5 * math.log(q / 0.5))
    assert value(JS(), sure, sure.flip(dims=[1])).item() == pytest.approx(expected)


def test_soft_cross_entropy_has_the_gradient_of_kl() -> None:
    target, student = logits(1), logits(2).requires_grad_()
    soft, kl = value(SoftCrossEntropy(), target, student), value(KL(1.0), target, student)
    torch.testing.assert_close(soft, kl + entropy(target.softmax(dim=1)).mean())
    one, other = (torch.autograd.grad(loss, student)[0] for loss in (soft, kl))
    torch.testing.assert_close(one, other)


# Sums


def test_a_sum_is_the_weighted_sum_and_one_where_no_weight_is_given() -> None:
    target, student = logits(1), logits(2)
    total = Sum({"a": KL(4.0), "b": L1(), "c": JS()}, {"b": 0.3, "c": 2})
    expected = value(KL(4.0), target, student)
    expected = expected + 0.3 * value(L1(), target, student) + 2 * value(JS(), target, student)
    torch.testing.assert_close(value(total, target, student), expected, **TIGHT)
    assert str(total) == "KL + 0.3 L1 + 2 JS"


def test_what_weighs_nothing_is_not_asked() -> None:
    total = Sum({"kl": KL(), "crd": CRD(), "ce": CrossEntropy()}, {"crd": 0, "ce": 0})
    assert list(total.losses) == ["kl"]
    assert not total.needs_features
    assert not total.needs_pool
    wanting = Sum({"kl": KL(), "crd": CRD(), "ce": CrossEntropy()}, {"crd": 0})
    assert wanting.needs_pool
    assert not wanting.needs_features
    assert Sum({"kl": KL(), "crd": CRD()}).needs_features


class Owning(DistillLoss):
    """A parameter that scales the student's logits, and nothing else."""

    def __init__(self, start: float) -> None:
        self.scale = nn.Parameter(torch.tensor([start], dtype=torch.float64))
        self.begun = 0

    def begin(self, answers: Answers, rng: torch.Generator) -> list[nn.Parameter]:
        self.begun += 1
        return [self.scale]

    def __call__(self, answers: Answers, rng: torch.Generator) -> Tensor:
        return (self.scale * answers.student - answers.target).square().mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale.detach().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scale = nn.Parameter(state["scale"].clone())


def test_a_sum_owns_what_its_losses_own() -> None:
    total = Sum({"one": Owning(1.0), "kl": KL(), "two": Owning(2.0)})
    found = total.begin(answers(logits(1), logits(2)), rng())
    assert [p.item() for p in found] == [1.0, 2.0]
    assert {name: float(v) for name, v in total.state_dict().items()} == {"one.scale": 1.0, "two.scale": 2.0}
    again = Sum({"one": Owning(0.0), "kl": KL(), "two": Owning(0.0)})
    again.load_state_dict(total.state_dict())
    assert again.state_dict() == total.state_dict()
    with pytest.raises(AssertionError):
        Sum({"one": Owning(0.0)}).load_state_dict(total.state_dict())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"l2": 1.0}, "distiller.loss.weights.l2=1.0: only kl, l1"),
        ({"l1": -1}, "distiller.loss.weights.l1=-1"),
        ({"kl": 0, "l1": 0}, "at least one weight"),
    ],
)
def test_weights_out_of_range_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sum({"kl": KL(), "l1": L1()}, weights)


# In a lesson


def pool_of(number: int = 24) -> Pool:
    pool = Pool()
    labels = (2 * torch.randn(number, CLASSES, generator=rng(1))).log_softmax(dim=1)
    pool.add(pixels(number), torch.randint(CLASSES, (number,), generator=rng(2)), labels)
    return pool


class Spy(DistillLoss):
    """KL that keeps what it was shown."""

    def __init__(self, features: bool, pool: bool = False) -> None:
        self.needs_features, self.needs_pool = features, pool
        self.seen: list[Answers] = []

    def __deepcopy__(self, memo: Any) -> "Spy":
        return self

    def __call__(self, answers: Answers, rng: torch.Generator) -> Tensor:
        self.seen.append(answers)
        return kl_divergence(answers.target, answers.student)


@pytest.mark.parametrize(
    ("targets", "features", "passes"),
    [
        (Fresh(), False, 1),
        (Fresh(), True, 1),
        (Sharpened(), False, 0),
        (Sharpened(), True, 1),
    ],
)
def test_features_cost_a_teacher_pass_only_where_targets_have_cost_none(
    targets: Targets, features: bool, passes: int
) -> None:
    team, spy = ensemble(), Spy(features)
    Distiller(SGD, loss=spy, batch_size=6, targets=targets).begin(network(9))(
        team, pool_of(), 4, WHOLE, rng()
    )
    assert team.passes == 4 * 3 * passes
    assert all((shown.student_features is not None) is features for shown in spy.seen)
    assert all(len(shown.teacher_features) == 3 * features for shown in spy.seen)


@pytest.mark.parametrize("targets", [Fresh(), Sharpened()])
def test_features_are_what_the_classifiers_see_of_the_students_images(targets: Targets) -> None:
    team, student, spy, images = ensemble(), network(9), Spy(True), []
    handle = student.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    Distiller(SGD, loss=spy, batch_size=6, targets=targets).begin(student)(team, pool_of(), 1, WHOLE, rng())
    handle.remove()
    (shown,), (x,) = spy.seen, images
    for model, found in zip(team.models, shown.teacher_features, strict=True):
        torch.testing.assert_close(found, model.features(x))
        assert not found.requires_grad
    assert shown.student_features is not None
    assert shown.student_features.requires_grad
    assert not student.classifier._forward_pre_hooks


def test_a_loss_knows_the_images_of_a_pool_but_not_blends() -> None:
    spy, pool = Spy(False), pool_of()
    Distiller(SGD, loss=spy, batch_size=6, mixup=0.5).begin(network(9))(ensemble(), pool, 20, WHOLE, rng())
    known = [shown for shown in spy.seen if shown.pool is not None]
    assert 0 < len(known) < 20
    for shown in known:
        assert shown.pool is pool
        assert shown.index is not None
        assert shown.y is not None
        assert torch.equal(shown.y, pool.targets[shown.index])
    for shown in spy.seen:
        assert (shown.index is None) is (shown.y is None) is (shown.pool is None)


def test_a_lesson_trains_what_the_loss_owns_and_begins_it_once() -> None:
    loss = Owning(1.0)
    lesson = Distiller(SGD, cosine, loss, batch_size=6).begin(network(9))
    for share in ((0.0, 0.5), (0.5, 1.0)):
        lesson(ensemble(), pool_of(), 2, share, rng())
    assert isinstance(lesson.loss, Owning)
    assert lesson.loss.begun == 1
    assert lesson.loss.scale.item() != 1.0
    assert loss.scale.item() == 1.0, "the template stays as it is"
    rates = [group["lr"] for group in lesson.optimizer.param_groups]
    assert rates == pytest.approx([0.1 * cosine(0.75)] * 2)


def test_a_loss_that_is_not_finite_is_named_and_spoils_nothing() -> None:
    class Broken(DistillLoss):
        def __call__(self, answers: Answers, rng: torch.Generator) -> Tensor:
            return answers.student.sum() * math.nan

    def attempt(loss: DistillLoss) -> nn.Module:
        student = network(9)
        Distiller(SGD, loss=loss, batch_size=6).begin(student)(ensemble(), pool_of(), 3, WHOLE, rng())
        return student

    with pytest.raises(FloatingPointError, match="distillation step 0: Broken is not finite"):
        attempt(Broken())
    with pytest.raises(FloatingPointError, match=r"distillation step 0: second \(nan\) is not finite"):
        attempt(Sum({"first": KL(), "second": Broken()}))


def test_the_default_is_kl_at_20() -> None:
    loss = Distiller(SGD).loss
    assert isinstance(loss, KL)
    assert loss.temperature == 20.0


def trained() -> Joint:
    """A synthesizer that makes fresh images."""
    source = TrainedGenerator(generator, partial(torch.optim.Adam, lr=0.01))
    return Joint(inversion(terms={"oh": OneHot()}, source=source), batch_size=6)


@pytest.mark.parametrize("schedule", [Alternate(), GeneratorFirst()])
def test_schedules_on_fresh_images_refuse_losses_that_need_a_pool(schedule: Any) -> None:
    for loss in (CRD(), CrossEntropy(), Sum({"kl": KL(), "crd": CRD()})):
        with pytest.raises(ConfigError, match=f"distiller.loss={loss}".replace("+", "\\+")):
            schedule.check(trained(), Distiller(SGD, loss=loss))
    for loss in (KL(), L1(), LogL1(), JS(), SoftCrossEntropy(), Sum({"kl": KL(), "l1": L1()})):
        schedule.check(trained(), Distiller(SGD, loss=loss))


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (KL, {"temperature": 0}),
        (KL, {"temperature": -1}),
        (KL, {"reduction": "sum"}),
        (L1, {"reduction": "sum"}),
        (JS, {"temperature": 0}),
        (JS, {"floor": 0}),
        (JS, {"floor": 0.5}),
        (SoftCrossEntropy, {"reduction": "none"}),
    ],
)
def test_out_of_range_is_named(make: Any, arguments: dict[str, Any]) -> None:
    ((name, given),) = arguments.items()
    with pytest.raises(ConfigError, match=f"distiller.loss...{name}={given}"):
        make(**arguments)


# What goes with them


@pytest.mark.parametrize("floor", [1e-12, 1e-3])
def test_sharpened_targets_have_a_floor(floor: float) -> None:
    labels = torch.tensor([[0.0, -30.0, -2.0, -30.0]]).log_softmax(dim=1)
    aims = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    found = Sharpened(4.0, 0.5, floor)(ensemble(), pixels(1), labels, aims)
    assert found.min().item() == pytest.approx(math.log(floor), rel=1e-5)
    assert (found[0, [1, 3]] == found.min()).all()
    with pytest.raises(ConfigError, match="distiller.targets.floor=0"):
        Sharpened(floor=0)


def test_cosine_ends_at_its_floor_and_without_one_at_zero() -> None:
    for progress in (0.0, 0.25, 0.5, 0.9):
        plain = (1 + math.cos(math.pi * progress)) / 2
        assert cosine(progress) == plain
        assert cosine(progress, floor=0.1) == pytest.approx(0.1 + 0.9 * plain)
    assert cosine(1.0, floor=1e-3) == pytest.approx(1e-3)


def test_steps_decay_at_their_shares() -> None:
    rates = [
        step_decay(epoch / 240, at=[150 / 240, 180 / 240, 210 / 240]) for epoch in (0, 149, 150, 180, 239)
    ]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert step_decay(0.9, at=[0.8], factor=0.5) == 0.5
