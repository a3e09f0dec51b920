"""A round: synthesis and distillation alternate as the schedule says, each with streams of its own."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, TASK, contrast, ensemble, inversion, network
from torch import Tensor, nn

from fl_cmi.augment import Identity
from fl_cmi.bank import Pool
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.transfer import GrowPool, transfer
from fl_cmi.ensemble import by_class_counts
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.synthesizers import Joint, PerClient
from fl_cmi.synthesis.terms import OneHot
from fl_cmi.types import ConfigError

SGD = partial(torch.optim.SGD, lr=0.1)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def run(
    folder: Path,
    schedule: GrowPool,
    synthesizer: Joint | PerClient | None = None,
    seed: int = 0,
    server_round: int = 1,
    distiller: Distiller | None = None,
) -> tuple[dict[str, float], Pool, nn.Module, list[dict[str, Any]]]:
    """A round on three tiny clients: its metrics, pool, student and log."""
    pool, student, log = (
        Pool(),
        network(9),
        MetricsLog(folder / f"{seed}-{server_round}-{schedule.steps}.jsonl"),
    )
    metrics = transfer(
        ensemble(combine=by_class_counts),
        student,
        Joint(inversion(steps=2, contrastive=contrast()), batch_size=6)
        if synthesizer is None
        else synthesizer,
        Distiller(SGD, batch_size=4, augment=Identity()) if distiller is None else distiller,
        pool,
        schedule,
        task=TASK,
        seed=seed,
        server_round=server_round,
        progress=Progress(quiet=True),
        log=log,
        evaluate=lambda model: 0.25,
    )
    return metrics, pool, student, MetricsLog.read(log.path)


def test_a_round_makes_and_teaches_what_the_schedule_says(tmp_path: Path) -> None:
    metrics, pool, student, log = run(tmp_path, GrowPool(epochs=3, batches=2, steps=4, evaluate_every=2))
    assert metrics["images"] == len(pool) == 3 * 2 * 6
    assert metrics["teacher-passes"] == 3 * 2 * 2 * (
        2 * 3
    )  # epochs, batches, steps, two views of three teachers
    assert not equal(state_of(student), state_of(network(9)))
    names = [row["event"] for row in log]
    assert [row["num_images"] for row in log if row["event"] == "synthesis"] == [12, 24, 36]
    assert names.count("distillation") == 3
    # Every second epoch, and the last one in any case.
    assert [row["epoch"] for row in log if row["event"] == "evaluate"] == [2, 3]
    assert {"bn", "oh", "adv", "contrast", "total"} <= set(log[0])


def test_a_round_is_repeatable_and_its_name_counts(tmp_path: Path) -> None:
    schedule = GrowPool(epochs=2, steps=3)
    first, again = (run(tmp_path / str(i), schedule) for i in range(2))
    assert torch.equal(first[1].pixels, again[1].pixels)
    assert equal(state_of(first[2]), state_of(again[2]))
    for other in (run(tmp_path, schedule, seed=1), run(tmp_path, schedule, server_round=2)):
        assert not torch.equal(first[1].pixels, other[1].pixels)


def test_every_batch_and_every_lesson_has_its_own_stream(tmp_path: Path) -> None:
    seeds: dict[str, list[int]] = {"synthesis": [], "distillation": []}

    class Spy(Joint):
        def __call__(self, *arguments: Any) -> Any:
            seeds["synthesis"].append(arguments[-1].initial_seed())
            return super().__call__(*arguments)

    class Listening(Identity):
        def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
            seeds["distillation"].append(rng.initial_seed())
            return x

    distiller = Distiller(SGD, batch_size=4, augment=Listening())
    run(tmp_path, GrowPool(epochs=3, batches=2, steps=1), Spy(inversion(steps=1), 4), distiller=distiller)
    assert len(set(seeds["synthesis"])) == 6
    assert len(set(seeds["distillation"])) == 3
    assert not set(seeds["synthesis"]) & set(seeds["distillation"])


def test_leaving_out_the_lessons_shifts_no_image(tmp_path: Path) -> None:
    """Without an adversarial term the images do not depend on the student."""

    def images(steps: int) -> Tensor:
        synthesizer = PerClient(inversion(terms={"oh": OneHot()}), batch_size=6)
        return run(tmp_path, GrowPool(epochs=3, steps=steps), synthesizer)[1].pixels

    assert torch.equal(images(0), images(5))


def test_the_offline_schedule_only_synthesizes(tmp_path: Path) -> None:
    metrics, pool, student, _ = run(tmp_path, GrowPool(epochs=1, batches=3, steps=0))
    assert len(pool) == 18
    assert metrics["kd-loss"] == 0.0
    assert equal(state_of(student), state_of(network(9)))
    assert pool.pixels.shape[1:] == SHAPE


def test_a_term_that_the_teachers_cannot_serve_is_refused_first(tmp_path: Path) -> None:
    class Refusing(Joint):
        def check(self, ensemble: Any) -> None:
            raise ConfigError("a", "b", "c")

    with pytest.raises(ConfigError):
        run(tmp_path, GrowPool(), Refusing(inversion()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["epochs", "batches", "steps", "evaluate_every"])
@pytest.mark.parametrize("value", [-1, 0.5])
def test_schedule_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{name}={value}"):
        GrowPool(**{name: value})  # type: ignore[arg-type]
