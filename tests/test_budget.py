"""A round that ends with the time, by a clock that moves when told."""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TASK, ensemble, generator, inversion, network
from torch import Tensor

from fl_cmi.augment import Identity
from fl_cmi.bank import Pool
from fl_cmi.distillation.budget import Budget
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.learnt_weights import LearntWeights
from fl_cmi.distillation.schedules import Alternate, GeneratorFirst, GrowPool
from fl_cmi.distillation.targets import Sharpened
from fl_cmi.distillation.transfer import Schedule, transfer
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.source import TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.types import ConfigError

BATCH, STEP = 4.0, 0.5
"""Seconds that a batch and a step of distillation take."""


class Clock:
    """Seconds that pass when something is done."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(
    folder: Path,
    schedule: Schedule,
    budget_s: float | None,
    batches: Sequence[float] = (BATCH,),
    learning: float | None = None,
    relabelling: float = 0.0,
) -> tuple[Clock, dict[str, float], Any, Any]:
    """A round; the clock at its end, metrics, log, and the shares that the learning rate was asked for.

    Args:
        folder: For the log.
        schedule: Of the round.
        budget_s: Of the round.
        batches: Seconds of the batches, in turn.
        learning: Seconds in which the ensemble's rule learns, if it does.
        relabelling: Seconds in which the pool gets new labels, where > 0 and where the rule has changed.
    """
    clock, shares, turn = Clock(), [], itertools.cycle(batches)

    class Slow(Joint):
        def __call__(self, *arguments: Any) -> Any:
            clock.now += next(turn)
            return super().__call__(*arguments)

    class SlowRule(LearntWeights):
        def learn(self, *arguments: Any) -> None:
            assert learning is not None
            clock.now += learning
            super().learn(*arguments)

    class SlowPool(Pool):
        def relabel_all(self, *arguments: Any) -> None:
            clock.now += relabelling if len(self) else 0.0
            super().relabel_all(*arguments)

    class SlowView(Identity):
        def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
            clock.now += STEP
            return x

    def rate(share: float) -> float:
        shares.append(share)
        return 1.0

    source = TrainedGenerator(generator, partial(torch.optim.Adam, lr=0.01))
    log = MetricsLog(folder / "metrics.jsonl")
    metrics = transfer(
        ensemble() if learning is None else ensemble(combine=SlowRule()),
        network(9),
        Slow(inversion(steps=1, terms={"oh": OneHot()}, source=source), batch_size=4),
        Distiller(
            partial(torch.optim.SGD, lr=0.1),
            rate,
            batch_size=4,
            targets=Sharpened() if relabelling else None,
            augment=SlowView(),
        ),
        SlowPool(),
        schedule,
        task=TASK,
        seed=0,
        server_round=1,
        progress=Progress(quiet=True),
        log=log,
        evaluate=lambda model: 0.5,
        budget_s=budget_s,
        clock=clock,
    )
    return clock, metrics, MetricsLog.read(log.path), shares


def test_a_pool_grows_until_there_is_time_for_a_lesson_only(tmp_path: Path) -> None:
    # An epoch takes 4 + 2 * .5 = 5 s. After 20 s another batch would leave no time for its lesson: two lessons follow.
    clock, metrics, log, shares = run(tmp_path, GrowPool(epochs=10**9, steps=2, evaluate_every=10**9), 22)
    assert clock.now == 1000 + 22
    assert metrics["images"] == 4 * 4
    assert [row["epoch"] for row in log if row["event"] == "evaluate"] == [6]
    # Lessons begin after 4, 9, 14, 19, 20 and 21 s; the time that counts are the 18 s from the first of them on.
    ends = [0, 0, (10 - 4) / 18, (15 - 4) / 18, (20 - 4) / 18, (21 - 4) / 18, 1]
    expected = [share for a, b in zip(ends, ends[1:], strict=False) for share in (a, (a + b) / 2)]
    assert shares == pytest.approx(expected)


def test_batches_of_one_epoch_leave_half_of_the_time_to_the_first_lesson(tmp_path: Path) -> None:
    clock, metrics, _, shares = run(tmp_path, GrowPool(epochs=3, batches=100, steps=2), 40)
    # 16 s, a lesson, from 17 to 37 s, a lesson, and another one, because 4 s more would be too many.
    assert metrics["images"] == (4 + 5) * 4
    assert clock.now == 1000 + 39
    assert len(shares) == 3 * 2


def test_a_lesson_ends_with_the_time(tmp_path: Path) -> None:
    clock, metrics, _, shares = run(tmp_path, GrowPool(epochs=10**9, steps=1000), 50)
    # Ten steps take 5 s: pieces begin after 4, 9, ... 49 s.
    assert metrics["images"] == 4
    assert clock.now == 1000 + 54
    assert len(shares) == 10 * 10
    assert shares == sorted(shares)
    assert shares[-1] > 0.9


def test_time_is_left_for_the_slowest_batch(tmp_path: Path) -> None:
    """Clients' models may be unequal: after 23.5 + 4 s the next batch may take 11 s, and a lesson 1 s."""
    schedule = GrowPool(epochs=10**9, steps=2)
    clock, metrics, _, _ = run(tmp_path, schedule, 40, batches=(11.0, 4.0, 4.0, 4.0))
    assert metrics["images"] == 5 * 4
    assert clock.now == 1000 + 40


def test_time_is_left_for_a_rule_to_learn(tmp_path: Path) -> None:
    # Epochs of 4 + 3 + 1 s: 8 s more would be too many after 16 s, and 3 after 20 s.
    clock, metrics, _, _ = run(tmp_path, GrowPool(epochs=10**9, steps=2), 23, learning=3.0)
    assert metrics["images"] == 2 * 4
    assert clock.now == 1000 + 20


def test_time_is_left_for_new_labels(tmp_path: Path) -> None:
    # Epochs of 4 + 1 + 1 s, then of 4 + 3 + 1 s: 8 s more would be too many after 14 s, and 3 after 18 s.
    schedule = GrowPool(epochs=10**9, steps=2)
    clock, metrics, _, _ = run(tmp_path, schedule, 21, learning=1.0, relabelling=2.0)
    assert metrics["images"] == 2 * 4
    assert clock.now == 1000 + 18


def test_without_lessons_batches_have_all_the_time(tmp_path: Path) -> None:
    clock, metrics, _, shares = run(tmp_path, GrowPool(epochs=10**9, steps=0), 30)
    # The first batch cannot know: half of the time is left for a lesson, which takes none.
    assert metrics["images"] == 8 * 4
    assert clock.now == 1000 + 32
    assert shares == []


def test_time_for_a_lesson_ends_the_warmup(tmp_path: Path) -> None:
    clock, metrics, log, shares = run(tmp_path, GrowPool(epochs=10**6, steps=2, warmup=20), 30)
    # Three batches in 12 s; then epochs of 5 s until 28 s, and two lessons.
    assert metrics["images"] == (3 + 3) * 4
    assert clock.now == 1000 + 30
    assert len(shares) == 6 * 2


def test_a_generator_stops_within_an_epoch_and_still_shows_images(tmp_path: Path) -> None:
    clock, metrics, log, shares = run(tmp_path, Alternate(epochs=10**6, iterations=7, steps=4, show=6), 50)
    # An iteration takes 6 s: the ninth ends after 54 s, in the second epoch.
    assert clock.now == 1000 + 54
    assert metrics["images"] == 9 * 4
    assert [row["num_images"] for row in log if row["event"] == "synthesis"] == [0, 6]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.95


def test_a_generator_that_comes_first_leaves_half_of_the_time(tmp_path: Path) -> None:
    schedule = GeneratorFirst(generator_batches=100, epochs=50, steps=120, show=4)
    clock, metrics, log, shares = run(tmp_path, schedule, 40)
    # 20 s for the generator, then pieces of 10 steps, 5 s each.
    assert metrics["images"] == 5 * 4
    assert clock.now == 1000 + 40
    assert len(shares) == 4 * 10
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
    assert sum(row["event"] == "evaluate" for row in log) == 1


def test_generator_first_then_lessons_until_the_time_is_up(tmp_path: Path) -> None:
    schedule = GeneratorFirst(generator_batches=2, epochs=10**6, steps=2, show=4)
    clock, metrics, _, shares = run(tmp_path, schedule, 20)
    assert metrics["images"] == 2 * 4
    assert clock.now == 1000 + 20
    assert len(shares) == 2 * 12
    assert shares[-1] > 0.95


@pytest.mark.parametrize(
    "schedule",
    [
        GrowPool(epochs=3, batches=2, steps=2),
        Alternate(epochs=2, iterations=3, steps=2, show=4),
        GeneratorFirst(generator_batches=3, epochs=2, steps=2, show=4),
    ],
)
def test_a_schedule_that_ends_in_time_makes_the_same_images(tmp_path: Path, schedule: Schedule) -> None:
    free, bound = (run(tmp_path / str(budget), schedule, budget) for budget in (None, 1e9))
    assert free[1]["images"] == bound[1]["images"]
    assert free[0].now == bound[0].now
    assert len(free[3]) == len(bound[3])
    assert free[3][-1] > 0.5
    assert max(bound[3]) < 1e-6, "of a budget that hardly began, the share is nearly none"


def test_without_a_limit_the_plan_holds() -> None:
    budget = Budget(None, Clock())
    with budget.lesson((0.25, 0.5)) as share:
        assert share == (0.25, 0.5)
    assert not budget.over


@pytest.mark.parametrize("seconds", [0, -1, True, float("nan")])
def test_a_budget_out_of_range_is_named(tmp_path: Path, seconds: Any) -> None:
    with pytest.raises(ConfigError, match="budget_s="):
        run(tmp_path, GrowPool(), seconds)
