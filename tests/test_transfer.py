"""A round: synthesis and distillation alternate as the schedule says, each with streams of its own."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, TASK, contrast, ensemble, generator, inversion, network
from torch import Tensor, nn

from fl_cmi.augment import Identity
from fl_cmi.bank import Pool
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.layers import LayerMatch
from fl_cmi.distillation.schedules import Alternate, GeneratorFirst, GrowPool
from fl_cmi.distillation.targets import Sharpened
from fl_cmi.distillation.transfer import Schedule, transfer
from fl_cmi.ensemble import by_class_counts
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.source import TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint, PerClient
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.types import ConfigError

SGD = partial(torch.optim.SGD, lr=0.1)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def run(
    folder: Path,
    schedule: Schedule,
    synthesizer: Joint | PerClient | None = None,
    seed: int = 0,
    server_round: int = 1,
    distiller: Distiller | None = None,
) -> tuple[dict[str, float], Pool, nn.Module, list[dict[str, Any]]]:
    """A round on three tiny clients: its metrics, pool, student and log."""
    pool, student, log = (
        Pool(),
        network(9),
        MetricsLog(folder / f"{seed}-{server_round}.jsonl"),
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
    assert (
        metrics["teacher-passes"] == 3 * 2 * 2 * (2 * 3) + 3 * 2 * 3 + 3 * 4 * 3
    )  # epochs, batches, steps, two views of three teachers; labels; lessons
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


def test_a_pass_over_the_pool_grows_with_it(tmp_path: Path) -> None:
    """Pools of 6, 12 and 18 images in batches of 4."""
    metrics, *_ = run(tmp_path, GrowPool(epochs=3, batches=1, steps=None))
    assert metrics["teacher-passes"] == 3 * (3 * (2 * 2 + 1) + (2 + 3 + 5))
    for name in ("epochs", "warmup"):
        with pytest.raises(ConfigError, match=f"schedule.{name}=null"):
            GrowPool(**{name: None})  # type: ignore[arg-type]


def test_every_lesson_ends_with_the_statistics_of_the_pools_images(tmp_path: Path) -> None:
    distiller = Distiller(SGD, batch_size=4, mixup=1.0, recalibrate=12)
    schedule = GrowPool(epochs=2, batches=1, steps=3)
    student, plain = (
        state_of(run(tmp_path / str(k), schedule, distiller=d)[2])
        for k, d in enumerate([distiller, Distiller(SGD, batch_size=4, mixup=1.0)])
    )
    tracked = [name for name in student if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(student[name] == 3 for name in tracked), "12 images in batches of 4"
    assert all(plain[name] > 3 for name in tracked), "two lessons of 3 steps"
    weights = [name for name in student if name.endswith(("weight", "bias"))]
    assert all(torch.equal(student[name], plain[name]) for name in weights), "statistics teach nothing"


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


def test_a_loss_that_the_teachers_cannot_serve_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one teacher, not of several"):
        run(tmp_path, GrowPool(), distiller=Distiller(SGD, loss=LayerMatch()))
    assert not list(tmp_path.iterdir())


def trained(steps: int = 1) -> Joint:
    """A generator that is trained for the whole run."""
    source = TrainedGenerator(generator, partial(torch.optim.Adam, lr=0.01))
    return Joint(inversion(steps=steps, terms={"oh": OneHot()}, source=source), batch_size=6)


def test_warmup_synthesizes_only_and_the_rate_counts_from_its_end(tmp_path: Path) -> None:
    shares: list[float] = []

    def schedule(done: float) -> float:
        shares.append(done)
        return 1.0

    distiller = Distiller(SGD, schedule=schedule, batch_size=4)
    _, pool, _, log = run(tmp_path, GrowPool(epochs=5, steps=2, warmup=3), distiller=distiller)
    assert len(pool) == 5 * 6
    assert shares == [0.0, 0.25, 0.5, 0.75]
    assert [row["loss"] for row in log if row["event"] == "distillation"][:3] == [0.0] * 3
    with pytest.raises(ConfigError, match="schedule.warmup=5"):
        GrowPool(epochs=5, warmup=5)


def test_alternating_trains_the_generator_and_teaches_fresh_images(tmp_path: Path) -> None:
    schedule = Alternate(epochs=2, iterations=3, steps=4, show=10)
    synthesizer = trained(steps=2)
    metrics, pool, student, log = run(tmp_path, schedule, synthesizer)
    # Three teachers: 2 generator steps and 4 lessons an iteration, and the labels of the images kept at the end.
    assert metrics["teacher-passes"] == 3 * (2 * 3 * (2 + 4) + 1)
    assert metrics["images"] == 2 * 3 * 6
    assert len(pool) == 10
    assert not equal(state_of(student), state_of(network(9)))
    assert [row["num_images"] for row in log if row["event"] == "synthesis"] == [0, 10]
    again = run(tmp_path / "again", schedule, trained(steps=2))
    assert equal(state_of(student), state_of(again[2]))


def test_generator_first_never_trains_the_generator_again(tmp_path: Path) -> None:
    synthesizer = trained()
    schedule = GeneratorFirst(generator_batches=5, epochs=2, steps=3, show=6, evaluate_every=1)
    metrics, pool, _, log = run(tmp_path, schedule, synthesizer)
    assert metrics["teacher-passes"] == 3 * (5 + 1 + 2 * 3)
    assert len(pool) == 6
    names = [row["event"] for row in log]
    assert names.count("evaluate") == 2
    source = synthesizer.inversion.source
    assert isinstance(source, TrainedGenerator)
    longer = trained()
    run(tmp_path / "x", GeneratorFirst(generator_batches=5, epochs=4, steps=3, show=6), longer)
    assert isinstance(longer.inversion.source, TrainedGenerator)
    assert source.generator is not None
    assert longer.inversion.source.generator is not None
    assert equal(state_of(source.generator), state_of(longer.inversion.source.generator))


@pytest.mark.parametrize("schedule", [Alternate(), GeneratorFirst()])
def test_schedules_on_fresh_images_refuse_what_needs_a_pool(tmp_path: Path, schedule: Schedule) -> None:
    with pytest.raises(ConfigError, match="source=GeneratorSource"):
        run(tmp_path, schedule)
    with pytest.raises(ConfigError, match="targets=Sharpened"):
        run(tmp_path, schedule, trained(), distiller=Distiller(SGD, targets=Sharpened()))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((GrowPool, name) for name in ("epochs", "batches", "steps", "evaluate_every", "warmup")),
        *((Alternate, name) for name in ("epochs", "iterations", "steps", "evaluate_every", "show")),
        *((GeneratorFirst, name) for name in ("generator_batches", "epochs", "steps", "show")),
    ],
)
@pytest.mark.parametrize("value", [-1, 0.5, True])
def test_schedule_out_of_range_is_named(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{name}={str(value).lower()}"):
        kind(**{name: value})
