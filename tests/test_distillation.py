"""Distillation: what the student is asked to reproduce, and how it is taught."""

from functools import partial
from typing import Any

import pytest
import reference
import torch
from tiny import CLASSES, ensemble, network, pixels, rng
from torch import Tensor, nn

from fl_cmi.augment import CropFlip
from fl_cmi.bank import Pool, PoolBatch
from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.distillation.distiller import Distiller, blend
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.targets import Fresh, Sharpened
from fl_cmi.training import cosine
from fl_cmi.types import ConfigError

SGD = partial(torch.optim.SGD, lr=0.1)
WHOLE = (0.0, 1.0)


def batch_of(number: int = 6, seed: int = 0) -> PoolBatch:
    labels = (2 * torch.randn(number, CLASSES, generator=rng(seed))).log_softmax(dim=1)
    y = torch.randint(CLASSES, (number,), generator=rng(seed + 1))
    return PoolBatch(pixels(number, seed), y, labels, torch.full((number,), -1), torch.arange(number))


def pool_of(number: int = 24, seed: int = 0) -> Pool:
    pool, batch = Pool(), batch_of(number, seed)
    pool.add(batch.x, batch.y, batch.labels)
    return pool


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# Targets


def aims_of(batch: PoolBatch) -> Tensor:
    return torch.nn.functional.one_hot(batch.y, CLASSES).float()


def sharpened(batch: PoolBatch, sharpen: float, mix: float) -> Tensor:
    return Sharpened(sharpen, mix)(ensemble(), batch.x, batch.labels, aims_of(batch))


def test_fresh_targets_are_the_ensembles_logits_for_what_the_student_sees() -> None:
    team, batch = ensemble(), batch_of()
    seen = CropFlip(2)(batch.x, rng(1)).requires_grad_()
    found = Fresh()(team, seen, batch.labels, aims_of(batch))
    torch.testing.assert_close(found, team(seen).detach())
    assert not torch.equal(found, team(batch.x))
    assert not found.requires_grad


@pytest.mark.parametrize(("sharpen", "mix"), [(1.0, 0.0), (4.0, 0.5), (2.0, 0.25), (0.5, 1.0)])
def test_sharpened_targets_equal_the_loops(sharpen: float, mix: float) -> None:
    batch = batch_of()
    expected = [
        reference.sharpened_target(row, label, sharpen, mix)
        for row, label in zip(batch.labels.double().tolist(), batch.y.tolist(), strict=True)
    ]
    found = sharpened(batch, sharpen, mix).exp()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6))


def test_targets_unsharpened_and_unmixed_are_the_labels_themselves() -> None:
    batch = batch_of()
    torch.testing.assert_close(sharpened(batch, 1.0, 0.0), batch.labels)


def test_targets_fully_mixed_are_the_aims() -> None:
    batch = batch_of()
    found = sharpened(batch, 4.0, 1.0)
    torch.testing.assert_close(found.exp(), aims_of(batch), rtol=0.0, atol=1e-6)
    assert found.isfinite().all()


def test_blended_aims_stay_in_proportion() -> None:
    aims = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    found = Sharpened(4.0, 1.0)(ensemble(), pixels(1), None, aims)
    torch.testing.assert_close(found.exp(), aims, rtol=0.0, atol=1e-6)


def test_sharpening_makes_sure_and_keeps_the_order() -> None:
    batch = batch_of()
    plain, sharp = (sharpened(batch, s, 0.0).exp() for s in (1.0, 4.0))
    assert (sharp.max(dim=1).values > plain.max(dim=1).values).all()
    assert torch.equal(sharp.argsort(dim=1), plain.argsort(dim=1))


def test_targets_without_labels_ask_the_ensemble_about_what_the_student_sees() -> None:
    team, batch = ensemble(), batch_of()
    found = Sharpened(1.0, 0.0)(team, batch.x, None, aims_of(batch))
    torch.testing.assert_close(found, team.label(batch.x))
    assert not torch.allclose(found, batch.labels)


def test_labels_in_the_cache_cost_no_teacher_pass() -> None:
    team, batch, passes = ensemble(), batch_of(), []
    handles = [model.register_forward_hook(lambda *_: passes.append(1)) for model in team.models]
    aims = aims_of(batch)
    Sharpened()(team, batch.x, batch.labels, aims)
    assert not passes
    Sharpened()(team, batch.x, None, aims)
    assert len(passes) == 3
    Fresh()(team, batch.x, batch.labels, aims)
    assert len(passes) == 6
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"sharpen": 0}, "sharpen=0"), ({"mix": 1.1}, "mix=1.1"), ({"mix": -1}, "mix=-1")],
)
def test_targets_out_of_range_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sharpened(**arguments)


# Mixup


def test_blending_equals_the_loop() -> None:
    batch = batch_of(5)
    x, aims = blend(batch.x, aims_of(batch), rng(3))
    draws = rng(3)
    other, share = torch.randperm(5, generator=draws).tolist(), torch.rand(5, 1, generator=draws)
    for i in range(5):
        weight = share[i].item()
        expected = weight * batch.x[i] + (1 - weight) * batch.x[other[i]]
        torch.testing.assert_close(x[i], expected)
        for c in range(CLASSES):
            aim = weight * (batch.y[i] == c) + (1 - weight) * (batch.y[other[i]] == c)
            assert aims[i, c].item() == pytest.approx(aim.item(), abs=1e-6)
    torch.testing.assert_close(aims.sum(dim=1), torch.ones(5))


def test_stretching_equals_the_loop() -> None:
    batch = batch_of(5)
    x, aims = blend(batch.x, aims_of(batch), rng(3), keep_variance=True)
    plain, unmoved = blend(batch.x, aims_of(batch), rng(3))
    assert torch.equal(aims, unmoved), "labels follow the share, however far the image is stretched"
    draws = rng(3)
    torch.randperm(5, generator=draws)
    share = torch.rand(5, generator=draws).tolist()
    for channel in range(x.shape[1]):
        mean = batch.x[:, channel].double().mean().item()
        for i, weight in enumerate(share):
            far = (plain[i, channel].double() - mean) / (weight**2 + (1 - weight) ** 2) ** 0.5
            expected = (mean + far).clamp(0, 1).float()
            torch.testing.assert_close(x[i, channel], expected, rtol=0.0, atol=1e-6)
    assert x.min() >= 0 and x.max() <= 1


def test_stretched_blends_vary_as_images_do() -> None:
    """Plain ones keep E[l^2 + (1 - l)^2] of the variance: 2/3 for uniform factors, 3/4 for arcsine ones."""
    x = 0.5 + 0.05 * torch.randn(20_000, 1, 1, 1, generator=rng(1))  # far from the ends: nothing is clipped
    for arcsine, kept in ((False, 2 / 3), (True, 3 / 4)):
        plain, _ = blend(x, None, rng(2), arcsine)
        stretched, _ = blend(x, None, rng(2), arcsine, keep_variance=True)
        assert (plain.var() / x.var()).item() == pytest.approx(kept, rel=0.03)
        assert (stretched.var() / x.var()).item() == pytest.approx(1.0, rel=0.03)
        assert stretched.mean().item() == pytest.approx(x.mean().item(), abs=0.002)


def test_a_lesson_stretches_its_blends() -> None:
    def seen(**options: Any) -> Tensor:
        shown: list[Tensor] = []

        def watch(x: Tensor, rng: torch.Generator) -> Tensor:
            shown.append(x)
            return x

        distiller = Distiller(SGD, batch_size=8, mixup=1.0, augment=watch, **options)
        distiller.begin(network(9))(ensemble(), pool_of(), 1, WHOLE, rng())
        return shown[0]

    assert seen(keep_variance=True).var() > 1.1 * seen().var()


@pytest.mark.parametrize("mixup", [0.0, 0.5, 1.0])
def test_mixed_batches_alone_lose_their_cached_labels(mixup: float) -> None:
    calls: list[tuple[bool, bool]] = []

    class Spy(Sharpened):
        def __call__(self, ensemble: Any, seen: Tensor, labels: Tensor | None, aims: Tensor) -> Tensor:
            calls.append((labels is None, bool((aims.max(dim=1).values < 1).any())))
            return super().__call__(ensemble, seen, labels, aims)

    distiller = Distiller(SGD, batch_size=8, targets=Spy(), mixup=mixup)
    distiller.begin(network(9))(ensemble(), pool_of(), 40, WHOLE, rng())
    assert all(unlabelled == mixed for unlabelled, mixed in calls)
    mixed = sum(unlabelled for unlabelled, _ in calls)
    assert mixed == 40 * mixup if mixup in (0.0, 1.0) else 10 <= mixed <= 30


# Lessons


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_loss_equals_the_loops(temperature: float) -> None:
    """A rate of 0 and two steps: the loss is the mean over two known batches of the pool."""
    team, student, pool = ensemble(), network(9), pool_of()
    distiller = Distiller(partial(torch.optim.SGD, lr=0.0), loss=KL(temperature), batch_size=5)
    found = distiller.begin(student)(team, pool, 2, WHOLE, rng(1))
    draws, expected = rng(1), 0.0
    for _ in range(2):
        x = pool.draw(5, draws).x
        with torch.no_grad():
            target, own = team(x).double(), student.train()(x).double()
        expected += reference.kl_divergence(target, own, temperature).item() / 2
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_teacher_sees_the_augmented_image_that_the_student_sees() -> None:
    seen: list[Tensor] = []
    student, team = network(9), ensemble()
    handles = [
        m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in (student, team.models[0])
    ]
    Distiller(SGD, batch_size=4, augment=CropFlip(3)).begin(student)(team, pool_of(), 1, WHOLE, rng())
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_a_lesson_leaves_the_ensemble_and_the_pool_alone() -> None:
    team, pool = ensemble(), pool_of()
    before, images = state_of(team), pool.pixels.clone()
    Distiller(SGD, batch_size=8).begin(student := network(9))(team, pool, 5, WHOLE, rng())
    assert equal(state_of(team), before)
    assert torch.equal(pool.pixels, images)
    assert all(p.grad is None and not p.requires_grad for p in team.parameters())
    assert not any(module.training for module in team.modules())
    assert not equal(state_of(student), state_of(network(9)))


@pytest.mark.parametrize("mode", [True, False])
def test_the_student_is_taught_in_train_mode_and_put_back(mode: bool) -> None:
    student, modes = network(9).train(mode), []
    handle = student.register_forward_hook(lambda module, *_: modes.append(module.training))
    Distiller(SGD, batch_size=8).begin(student)(ensemble(), pool_of(), 3, WHOLE, rng())
    handle.remove()
    assert modes == [True] * 3
    assert student.training is mode


def test_the_rate_goes_on_from_lesson_to_lesson() -> None:
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    lesson = Distiller(partial(Spy, lr=0.4), cosine, batch_size=4).begin(network(9))
    for share in ((0.0, 0.5), (0.5, 1.0)):
        lesson(ensemble(), pool_of(), 2, share, rng())
    assert rates == pytest.approx([0.4 * cosine(p) for p in (0.0, 0.25, 0.5, 0.75)])


def test_momentum_lives_on_from_lesson_to_lesson() -> None:
    student = network(9)
    lesson = Distiller(partial(torch.optim.SGD, lr=0.1, momentum=0.9), batch_size=4).begin(student)
    lesson(ensemble(), pool_of(), 1, WHOLE, rng())
    assert all("momentum_buffer" in lesson.optimizer.state[p] for p in student.parameters())


def test_teaching_brings_the_student_closer() -> None:
    team, student, pool = ensemble(), network(9), pool_of(64)
    lesson = Distiller(partial(torch.optim.Adam, lr=0.01), loss=KL(2.0), batch_size=32).begin(student)
    first = lesson(ensemble=team, draws=pool, steps=1, progress=WHOLE, rng=rng())
    lesson(team, pool, 60, WHOLE, rng(1))
    assert lesson(team, pool, 1, WHOLE, rng()) < 0.5 * first


def test_the_same_stream_teaches_the_same() -> None:
    def taught(seed: int) -> dict[str, Tensor]:
        student = network(9)
        Distiller(SGD, batch_size=8, augment=CropFlip(1)).begin(student)(
            ensemble(), pool_of(), 4, WHOLE, rng(seed)
        )
        return state_of(student)

    assert equal(taught(1), taught(1))
    assert not equal(taught(1), taught(2))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    lesson = Distiller(partial(torch.optim.SGD, lr=1e30), batch_size=8).begin(network(9))
    with pytest.raises(FloatingPointError, match="distillation step"):
        lesson(ensemble(), pool_of(), 20, WHOLE, rng())


def test_settled_batch_norm_has_the_statistics_of_images_as_they_are() -> None:
    seen: list[Tensor] = []

    class Watched(Pool):
        def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
            batch = super().draw(batch_size, rng)
            seen.append(batch.x)
            return batch

    watched = Watched()
    pool, batch = pool_of(), batch_of(24)
    watched.add(batch.x, batch.y, batch.labels)
    blended = partial(Distiller, SGD, batch_size=8, augment=CropFlip(1), mixup=1.0)
    student, plain = network(9), network(9)
    lesson = blended(recalibrate=20).begin(student)
    lesson(ensemble(), watched, 2, WHOLE, rng())
    before, _ = state_of(student), seen.clear()
    lesson.settle(watched, rng())
    assert [len(x) for x in seen] == [8, 8, 8], "whole batches, 20 images at least"

    first = batch_norm_layers(student.eval())[0]
    inputs: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        for x in seen:
            student(x)
    handle.remove()
    mean = torch.stack([f.double().mean(dim=(0, 2, 3)) for f in inputs]).mean(dim=0)
    var = torch.stack([f.double().transpose(0, 1).flatten(1).var(dim=1) for f in inputs]).mean(dim=0)
    torch.testing.assert_close(first.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[f"{name_of(student, first)}.running_var"].double(), var, rtol=0.05)

    unsettled = blended().begin(plain)
    unsettled(ensemble(), pool, 2, WHOLE, rng())
    unsettled.settle(pool, rng())
    assert equal(state_of(plain), before), "0 leaves all as it is, and nothing shifts the lesson"
    learnt = {name: value for name, value in state_of(student).items() if "running" not in name}
    assert equal({k: v for k, v in learnt.items() if "tracked" not in k}, before), "weights stay"


def name_of(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is part)


def test_without_batch_norm_there_is_nothing_to_settle() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(pixels(1).numel(), CLASSES))
    before = state_of(student)
    Distiller(SGD, batch_size=8, recalibrate=16).begin(student).settle(pool_of(), rng())
    assert equal(state_of(student), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "batch_size=1"),
        ({"batch_size": 2.5}, "2.5"),
        ({"mixup": -0.1}, "mixup=-0.1"),
        ({"mixup": 1.5}, "mixup=1.5"),
        ({"keep_variance": 1}, "keep_variance=1"),
        ({"recalibrate": -1}, "recalibrate=-1"),
        ({"recalibrate": 2.5}, "recalibrate=2.5"),
        ({"recalibrate": True}, "recalibrate=true"),
    ],
)
def test_distiller_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distiller(SGD, **arguments)
