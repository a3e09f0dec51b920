"""CRD: against the loops, its published values, what it draws, and what it remembers."""

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference_distillation as reference
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, ensemble, network, pixels, rng
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.distillation.crd import CRD, noise_contrast
from fl_cmi.distillation.distiller import Distiller, Lesson
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.loss import Answers
from fl_cmi.distillation.negatives import Deck, distinct
from fl_cmi.distillation.sum import Sum
from fl_cmi.types import ConfigError

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def pool_of(labels: Sequence[int] | Tensor, capacity: int = 65_536) -> Pool:
    """A pool of one-pixel images with these labels."""
    pool = Pool(capacity)
    add(pool, labels)
    return pool


def add(pool: Pool, labels: Sequence[int] | Tensor) -> None:
    y = torch.as_tensor(labels)
    pool.add(torch.zeros(len(y), 1, 1, 1), y, torch.zeros(len(y), CLASSES))


def features(batch: int, width: int, seed: int) -> Tensor:
    return torch.randn(batch, width, dtype=torch.float64, generator=rng(seed))


def answers_of(f_s: Tensor, f_t: Sequence[Tensor], index: Sequence[int] | Tensor, pool: Pool) -> Answers:
    nothing, slots = torch.zeros(len(f_s), CLASSES), torch.as_tensor(index)
    return Answers(nothing, nothing, f_s, f_t, slots, pool.targets[slots], pool)


def begun(made: CRD, answers: Answers, seed: int = 5) -> CRD:
    list(made.begin(answers, rng(seed)))
    return made


# The loss


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """What every batch was compared with."""
    found: list[list[list[int]]] = []
    deal = Deck.deal

    def spy(self: Deck, *arguments: Any) -> Tensor:
        chosen = deal(self, *arguments)
        found.append(chosen.tolist())
        return chosen

    monkeypatch.setattr(Deck, "deal", spy)
    return found


def pair_of(made: CRD, number: int) -> reference.CrdPair:
    student, teacher = made.sides[number]
    return reference.CrdPair(
        (student.layer.weight, student.layer.bias),
        (teacher.layer.weight, teacher.layer.bias),
        list(student.bank),
        list(teacher.bank),
    )


@pytest.mark.parametrize("positive", ["exact", "relax"])
@pytest.mark.parametrize("negatives", ["other_classes", "any"])
@pytest.mark.parametrize("gather", [False, True])
def test_crd_equals_the_loops(
    positive: Any, negatives: Any, gather: bool, dealt: list[list[list[int]]]
) -> None:
    """Three batches of teachers with features of two widths: loss, gradients, Z and banks."""
    pool = pool_of([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    made = CRD(4, 0.3, 0.6, 3, positive, negatives, gather)
    first = answers_of(features(3, 5, 0), [features(3, w, w) for w in (4, 6, 4)], [0, 1, 2], pool)
    begun(made, first)
    made.follow(pool, rng(6))
    pairs = [pair_of(made, number) for number in range(2)]
    for step, index in enumerate(([0, 1, 5], [4, 9, 4], [0, 2, 8])):
        f_s = features(3, 5, 10 + step).requires_grad_()
        f_t = [features(3, w, 20 + 10 * step + i).requires_grad_() for i, w in enumerate((4, 6, 4))]
        found = made(answers_of(f_s, f_t, index, pool), rng(7 + step))
        together = [torch.cat([f_t[0], f_t[2]], dim=1), f_t[1]]
        expected = [
            reference.crd(pair, f_s, f, index, dealt[step], 0.3, 0.6)
            for pair, f in zip(pairs, together, strict=True)
        ]
        loss = (expected[0] + expected[1]) / 2
        torch.testing.assert_close(found, loss, **TIGHT)
        inputs = [f_s, *f_t, *(p for pair in pairs for p in (*pair.student, *pair.teacher))]
        for one, other in zip(
            torch.autograd.grad(found, inputs), torch.autograd.grad(loss, inputs), strict=True
        ):
            torch.testing.assert_close(one, other, **TIGHT)
        for sides, pair in zip(made.sides, pairs, strict=True):
            banks, means = (pair.student_bank, pair.teacher_bank), (pair.student_z, pair.teacher_z)
            for side, bank, z in zip(sides, banks, means, strict=True):
                torch.testing.assert_close(side.bank, torch.stack(bank), **TIGHT)
                torch.testing.assert_close(10 * side.mean, z, **TIGHT)


def test_gradients_equal_finite_differences() -> None:
    pool = pool_of([0, 1, 2, 0, 1, 2])
    f_s, f_t = features(3, 4, 0).requires_grad_(), features(3, 5, 1).requires_grad_()
    made = begun(CRD(3, 0.5, width=3), answers_of(f_s, [f_t], [0, 1, 3], pool))
    made(answers_of(f_s, [f_t], [0, 1, 3], pool), rng(1))  # Z is set

    def loss(f_s: Tensor, f_t: Tensor) -> Tensor:
        # A copy, because the banks move with every call.
        again: CRD = copy.deepcopy(made)
        return again(answers_of(f_s, [f_t], [1, 2, 5], pool), rng(2))

    assert torch.autograd.gradcheck(loss, (f_s, f_t))
    assert torch.autograd.gradcheck(
        lambda a: noise_contrast(a.exp() / 9, 9), features(3, 4, 2).requires_grad_()
    )


def test_likeness_as_great_as_the_noise_costs_two_bits_a_negative() -> None:
    """With a = K / n everywhere each fraction is 1/2: the loss is (1 + K) ln 2, but for eps."""
    a = torch.full((5, 9), 8 / 1000, dtype=torch.float64)
    assert noise_contrast(a, 1000).item() == pytest.approx(9 * math.log(2), rel=1e-4)


def published(num_negatives: int, images: int = 20_000) -> tuple[float, CRD]:
    """The first loss on random features, at a batch of 64."""
    pool = pool_of(torch.randint(CLASSES, (images,), generator=rng(0)))
    f_s, f_t = torch.randn(64, 64, generator=rng(1)), torch.randn(64, 256, generator=rng(2))
    answers = answers_of(f_s, [f_t], torch.randperm(images, generator=rng(3))[:64], pool)
    made = begun(CRD(num_negatives), answers)
    return made(answers, rng(4)).item(), made


@pytest.mark.parametrize("num_negatives", [256, 1024, 4096])
def test_the_first_loss_and_z_are_as_the_theory_says(num_negatives: int) -> None:
    """Scores of random unit vectors are ~ N(0, 1 / (d tau^2)), so exp of them has the mean exp(1 / (2 d tau^2)).

    The positive then costs ln K + 1 / (2 d tau^2) and the negatives 1 together, on each side.
    """
    half_variance = 1 / (2 * 128 * 0.07**2)
    loss, made = published(num_negatives)
    assert loss == pytest.approx(2 * (math.log(num_negatives) + 1 + half_variance), rel=0.05)
    ((student, teacher),) = made.sides
    for side in (student, teacher):
        assert side.mean.item() == pytest.approx(math.exp(half_variance), rel=0.03)
        assert side.mean.item() == pytest.approx(2.22, rel=0.03)


@pytest.mark.parametrize("negatives", ["other_classes", "any"])
def test_trained_projections_tell_the_teachers_images_apart(negatives: Any) -> None:
    """Of 64 random teacher rows the nearest to the student's is that of the same image, where by chance it were one."""
    pool, index = pool_of(torch.arange(64) % 4), torch.arange(64)
    f_s, f_t = torch.randn(64, 32, generator=rng(0)), torch.randn(64, 48, generator=rng(1))
    made = CRD(16, width=16, negatives=negatives)
    parameters = made.begin(answers_of(f_s, [f_t], index, pool), rng(2))
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    hits = []
    for step in range(101):
        chosen = torch.randperm(64, generator=rng(step))[:32]
        loss = made(answers_of(f_s[chosen], [f_t[chosen]], chosen, pool), rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ((student, teacher),) = made.sides
        hits.append(int(((student.bank @ teacher.bank.T).argmax(dim=1) == index).sum()))
    assert hits[0] < 8
    assert hits[-1] > 60


def test_gathering_changes_nothing() -> None:
    pool = pool_of(torch.arange(40) % 4)
    made = [begun(CRD(8, width=6, gather=g), answers_of(*inputs(0), pool)) for g in (False, True)]
    for step in range(3):
        found, gradients = [], []
        for loss in made:
            f_s, f_t, index = inputs(step)
            f_s.requires_grad_()
            found.append(loss(answers_of(f_s, f_t, index, pool), rng(step)))
            gradients.append(torch.autograd.grad(found[-1], f_s)[0])
        torch.testing.assert_close(found[0], found[1], **TIGHT)
        torch.testing.assert_close(gradients[0], gradients[1], **TIGHT)
        for one, other in zip(made[0].sides[0], made[1].sides[0], strict=True):
            torch.testing.assert_close(one.bank, other.bank, **TIGHT)


def inputs(step: int, batch: int = 5) -> tuple[Tensor, list[Tensor], Tensor]:
    index = torch.randint(40, (batch,), generator=rng(100 + step))
    return features(batch, 4, 200 + step), [features(batch, 7, 300 + step)], index


# The banks


def test_rows_are_unit_vectors_once_they_have_been_seen_and_stay_put_otherwise() -> None:
    pool = pool_of(torch.arange(40) % 4)
    made = begun(CRD(8, width=32), answers_of(*inputs(0), pool))
    made.follow(pool, rng(1))
    before = [side.bank.clone() for side in made.sides[0]]
    for bank in before:
        assert bank.square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.1)
        assert bank.abs().max() <= math.sqrt(3 / 32)
    _, _, index = inputs(0)
    made(answers_of(*inputs(0), pool), rng(2))
    seen = torch.zeros(40, dtype=torch.bool)
    seen[index] = True
    for side, old in zip(made.sides[0], before, strict=True):
        torch.testing.assert_close(
            side.bank[seen].norm(dim=1), torch.ones(int(seen.sum()), dtype=torch.float64)
        )
        assert torch.equal(side.bank[~seen], old[~seen])
        assert not side.bank.requires_grad


def test_rows_of_momentum_zero_are_the_embeddings_and_the_last_view_counts() -> None:
    pool = pool_of([0, 1, 2, 3])
    f_s, f_t = features(3, 4, 0), features(3, 4, 1)
    made = begun(CRD(2, momentum=0.0, width=3), answers_of(f_s, [f_t], [2, 1, 2], pool))
    made(answers_of(f_s, [f_t], [2, 1, 2], pool), rng())
    for side, f in zip(made.sides[0], (f_s, f_t), strict=True):
        e = torch.nn.functional.normalize(side.layer(f), dim=1)
        torch.testing.assert_close(side.bank[[1, 2]], e[[1, 2]].detach())


def test_a_growing_pool_gets_new_rows_and_keeps_the_old_ones_and_z() -> None:
    pool = pool_of([0, 1, 0, 1])
    given = answers_of(features(2, 4, 0), [features(2, 5, 1)], [0, 1], pool)
    made = begun(CRD(width=6), given)
    made(given, rng(0))
    sides = made.sides[0]
    old, means = [side.bank.clone() for side in sides], [side.mean.clone() for side in sides]
    add(pool, [1, 2, 2])
    made.follow(pool, rng(1))
    for side, rows in zip(sides, old, strict=True):
        assert torch.equal(side.bank[:4], rows)
        assert side.bank.shape == (7, 6)
        assert (side.bank[4:].norm(dim=1) > 0).all()
    made(answers_of(features(2, 4, 2), [features(2, 5, 3)], [4, 6], pool), rng(2))
    assert [side.mean for side in sides] == means


def test_a_slot_that_is_overwritten_gets_new_rows_and_the_others_do_not() -> None:
    pool = pool_of([0, 1, 2, 0, 1], capacity=5)
    given = answers_of(features(5, 4, 0), [features(5, 5, 1)], range(5), pool)
    made = begun(CRD(width=6), given)
    made(given, rng(0))
    old = [side.bank.clone() for side in made.sides[0]]
    add(pool, [2, 2])
    assert pool.serials.tolist() == [5, 6, 2, 3, 4]
    made.follow(pool, rng(1))
    for side, rows in zip(made.sides[0], old, strict=True):
        assert (side.bank[:2] != rows[:2]).all()
        assert torch.equal(side.bank[2:], rows[2:])
    kept = made.deck
    assert made.follow(pool, rng(2)) is kept, "nothing new: nothing to do"
    assert kept.labels.tolist() == [2, 2, 2, 0, 1]


def test_another_turn_of_the_ring_is_noticed() -> None:
    """As many images as slots: every label and every slot as before, and still nothing is the same."""
    pool = pool_of([0, 1, 2], capacity=3)
    made = begun(CRD(width=6), answers_of(features(3, 4, 0), [features(3, 5, 1)], range(3), pool))
    made.follow(pool, rng(0))
    old = made.sides[0][0].bank.clone()
    add(pool, [0, 1, 2])
    made.follow(pool, rng(1))
    assert (made.sides[0][0].bank != old).all()


def test_a_pool_of_one_class_teaches_nothing_and_breaks_nothing() -> None:
    pool = pool_of([1, 1, 1])
    given = answers_of(features(2, 4, 0), [features(2, 5, 1)], [0, 2], pool)
    loss = begun(CRD(), given)(given, rng())
    assert loss.item() == pytest.approx(0, abs=1e-4), "no negatives; what is left is the 1e-7"


def test_resuming_reproduces_z_banks_and_losses(tmp_path: Path) -> None:
    pool = pool_of(torch.arange(40) % 4)
    made = begun(CRD(8, width=6), answers_of(*inputs(0), pool))
    for step in range(3):
        made(answers_of(*inputs(step), pool), rng(step))
    save_file(made.state_dict(), tmp_path / "crd.safetensors")
    again = CRD(8, width=6)
    again.load_state_dict(load_file(tmp_path / "crd.safetensors"))
    parameters = list(again.begin(answers_of(*inputs(3), pool), rng(99)))
    for one, other in zip(parameters, made.begin(answers_of(*inputs(3), pool), rng(98)), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(again.sides[0], made.sides[0], strict=True):
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.bank, other.bank)
    for step in range(3, 6):
        losses = [loss(answers_of(*inputs(step), pool), rng(step)) for loss in (made, again)]
        assert torch.equal(*losses)


def test_the_state_is_a_copy() -> None:
    pool = pool_of(torch.arange(40) % 4)
    made = begun(CRD(8, width=6), answers_of(*inputs(0), pool))
    made(answers_of(*inputs(0), pool), rng())
    state = made.state_dict()
    for value in state.values():
        value.zero_()
    assert all(side.bank.abs().sum() > 0 and side.mean > 0 for side in made.sides[0])


def test_a_resumed_slot_that_was_overwritten_meanwhile_gets_new_rows() -> None:
    pool = pool_of([0, 1, 2], capacity=3)
    given = answers_of(features(3, 4, 0), [features(3, 5, 1)], range(3), pool)
    made = begun(CRD(width=6), given)
    made(given, rng(0))
    again = CRD(width=6)
    again.load_state_dict(made.state_dict())
    begun(again, given)
    add(pool, [1])
    again.follow(pool, rng(1))
    changed = (again.sides[0][0].bank != made.sides[0][0].bank).any(dim=1)
    assert changed.tolist() == [True, False, False]


# What it draws


def skewed(images: int = 60) -> Tensor:
    """Half of the images are of class 0."""
    return torch.where(torch.arange(images) % 2 == 0, 0, torch.arange(images) % 3 + 1)


@pytest.mark.parametrize("number", [1, 5, 20, 29, 30, 1000])
def test_negatives_are_never_of_the_same_class_and_never_come_twice(number: int) -> None:
    labels = skewed()
    index = torch.arange(60)
    found = Deck(labels).deal(index, number, rng(1))
    assert found.shape == (60, 1 + min(number, 30)), "the images of class 0 have 30 others"
    assert torch.equal(found[:, 0], index)
    assert (labels[found[:, 1:]] != labels[:, None]).all()
    assert all(len(set(row)) == len(row) for row in found[:, 1:].tolist())


def test_any_negatives_are_any_other_images() -> None:
    labels = skewed(20)
    found = Deck(labels, negatives="any").deal(torch.arange(20), 1000, rng(1))
    assert found.shape == (20, 20)
    for row in found.tolist():
        assert sorted(row) == list(range(20)), "itself, and each of the others once"


def test_relaxed_positives_are_of_the_same_class_only_and_of_all_of_it() -> None:
    labels = skewed(20)
    deck = Deck(labels, positive="relax")
    found = deck.deal(torch.arange(20).repeat(200), 3, rng(1))
    positives = found[:, 0].view(200, 20)
    assert (labels[positives] == labels).all()
    for image in range(20):
        assert set(positives[:, image].tolist()) == set((labels == labels[image]).nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("limit", "number"), [(5, 2), (4, 2), (6, 2), (5, 4)])
def test_all_sets_are_equally_likely(limit: int, number: int) -> None:
    """Each frequency within five standard deviations, on both branches (ample and tight)."""
    draws, sets = 6000, math.comb(limit, number)
    found = distinct(torch.full((draws,), limit), number, rng(1)).sort(dim=1).values
    _, counts = torch.unique(found, dim=0, return_counts=True)
    assert len(counts) == sets
    p = 1 / sets
    assert (counts / draws - p).abs().max() < 5 * math.sqrt(p * (1 - p) / draws)


def test_limits_differ_by_row() -> None:
    limit = torch.tensor([3, 100, 4, 7, 50])
    found = distinct(limit, 3, rng(1))
    assert (found < limit[:, None]).all()
    assert (found >= 0).all()
    assert sorted(found[0].tolist()) == [0, 1, 2]


def test_negatives_follow_the_stream() -> None:
    labels, index = skewed(), torch.arange(8)
    first, again, other = (Deck(labels).deal(index, 9, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# In a lesson

SGD = partial(torch.optim.SGD, lr=0.1)
WHOLE = (0.0, 1.0)


def image_pool(number: int = 32, seed: int = 0) -> Pool:
    pool = Pool()
    y = torch.randint(CLASSES, (number,), generator=rng(seed))
    pool.add(pixels(number, seed), y, torch.randn(number, CLASSES, generator=rng(seed)).log_softmax(dim=1))
    return pool


def both(beta: float = 0.8) -> Sum:
    return Sum({"kl": KL(4.0), "crd": CRD(8, width=6)}, {"crd": beta})


def crd_of(lesson: Lesson) -> CRD:
    assert isinstance(lesson.loss, Sum)
    made = lesson.loss.losses["crd"]
    assert isinstance(made, CRD)
    return made


def test_a_lesson_trains_the_projections_with_the_student() -> None:
    distiller = Distiller(partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), loss=both(), batch_size=8)
    lesson = distiller.begin(network(9))
    pool = image_pool()
    lesson(ensemble(), pool, 1, WHOLE, rng())
    assert len(lesson.optimizer.param_groups) == 2
    assert [group["weight_decay"] for group in lesson.optimizer.param_groups] == [0.5, 0.5]
    ((student, teacher),) = crd_of(lesson).sides
    assert student.layer.in_features == 8, "4 w features of the student"
    assert teacher.layer.in_features == 24, "three teachers, side by side"
    before = [side.layer.weight.detach().clone() for side in (student, teacher)]
    lesson(ensemble(), pool, 1, WHOLE, rng(1))
    for side, weight in zip((student, teacher), before, strict=True):
        assert not torch.equal(side.layer.weight, weight)


def test_architectures_have_projections_and_banks_of_their_own() -> None:
    team = ensemble(make=lambda k: network(k, width=2 + k % 2))
    lesson = Distiller(SGD, loss=both(), batch_size=8).begin(network(9))
    lesson(team, image_pool(), 2, WHOLE, rng())
    sides = crd_of(lesson).sides
    assert [teacher.layer.in_features for _, teacher in sides] == [16, 12]
    assert [student.layer.in_features for student, _ in sides] == [8, 8]


def test_every_round_begins_with_banks_of_its_own() -> None:
    distiller = Distiller(SGD, loss=both(), batch_size=8)
    lesson = distiller.begin(network(9))
    lesson(ensemble(), image_pool(), 2, WHOLE, rng())
    assert crd_of(lesson).sides
    assert not crd_of(distiller.begin(network(9))).sides


def test_a_lesson_is_repeatable_and_the_loss_shifts_no_image() -> None:
    def taught(beta: float) -> tuple[list[Tensor], Tensor]:
        student, seen = network(9), []
        handle = student.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        Distiller(SGD, loss=both(beta), batch_size=8).begin(student)(
            ensemble(), image_pool(), 4, WHOLE, rng()
        )
        handle.remove()
        return seen, torch.cat([p.detach().flatten() for p in student.parameters()])

    (images, weights), (again, same), (without, others) = taught(0.8), taught(0.8), taught(0.0)
    assert torch.equal(weights, same)
    assert not torch.equal(weights, others)
    for x, y, z in zip(images, again, without, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, z)


def test_a_lesson_goes_on_over_a_pool_that_grows() -> None:
    pool = image_pool()
    lesson = Distiller(SGD, loss=both(), batch_size=8).begin(network(9))
    for number in range(3):
        assert math.isfinite(lesson(ensemble(), pool, 2, WHOLE, rng(number)))
        more = image_pool(seed=number + 1).get(torch.arange(32))
        assert more.y is not None
        assert more.labels is not None
        pool.add(more.x, more.y, more.labels)
    assert len(crd_of(lesson).sides[0][0].bank) == 96, "as it was at the last lesson"


# Mistakes


def test_blends_are_refused_because_they_have_no_slot() -> None:
    with pytest.raises(ConfigError, match="distiller.mixup=0.5.*KL \\+ 0.8 CRD"):
        Distiller(SGD, loss=both(), mixup=0.5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_negatives": 0},
        {"num_negatives": 2.5},
        {"width": 0},
        {"temperature": 0},
        {"momentum": 1},
        {"momentum": -0.1},
        {"positive": "same"},
        {"negatives": "all"},
    ],
)
def test_out_of_range_is_named(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        CRD(**arguments)
