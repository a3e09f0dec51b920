"""A crew of workers makes what its number says, in whatever order, also when it is cut off; and counts its cost."""

import functools
import time
from pathlib import Path
from typing import Any

import pytest
from makers import InProcess
from test_methods import shrink
from test_resume_transfer import CutOffError, Kept
from tiny import COUNTS, TASK, ensemble, inversion, network

from fl_cmi.bank import Pool
from fl_cmi.checkpoint.tree import pack, unpack
from fl_cmi.compose import build, compose_config
from fl_cmi.distillation.budget import CLOCKS, Clock
from fl_cmi.distillation.transfer import transfer
from fl_cmi.precision import Precision, exact
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import digest
from fl_cmi.report.workers import worker_rows
from fl_cmi.synthesis.crew import Crew, clocks_of
from fl_cmi.synthesis.synthesizers import PerClient
from fl_cmi.types import ConfigError

GROWN = (
    "synthesizer=per_client",
    "method=fast_cmi",
    pytest.param("synthesizer=cmi distiller=crd", marks=pytest.mark.slow),
    pytest.param("method=co_boosting", marks=pytest.mark.slow),
    pytest.param("method=dense", marks=pytest.mark.slow),
    pytest.param("synthesizer=kw_bns", marks=pytest.mark.slow),
)
"""Synthesizers that remember much, little and nothing; rules that learn."""

SCHEDULE = {"epochs": 2, "batches": 3, "steps": 1, "evaluate_every": 2, "warmup": 0}


@functools.cache
def composed(chosen: str) -> dict[str, Any]:
    return compose_config(["data=synthetic", *chosen.split()])


def outcome(
    chosen: str,
    folder: Path,
    crew: Crew | None,
    kept: Kept | None = None,
    clock: Clock = time.perf_counter,
    budget_s: float | None = None,
    rounds: int = 1,
    precision: Precision = exact,
    **schedule: Any,
) -> dict[str, Any]:
    """What so many rounds of a shrunk configuration come to."""
    config = composed(chosen)
    node = {**config["schedule"], **SCHEDULE, **schedule}
    pool, student, log = Pool(), network(9), MetricsLog(folder / "metrics.jsonl")
    combine, synthesizer = (
        build(config["combine"], "combine"),
        build(shrink(config["synthesizer"]), "synthesizer"),
    )
    for number in range(1, rounds + 1):
        metrics = transfer(
            ensemble(COUNTS, combine, precision=precision),
            student,
            synthesizer,
            build(shrink(config["distiller"]), "distiller"),
            pool,
            build(node, "schedule"),
            task=TASK,
            seed=0,
            server_round=number,
            progress=Progress(quiet=True),
            log=log,
            evaluate=lambda model: float(next(model.parameters()).detach().double().mean()),
            budget_s=budget_s,
            clock=clock,
            checkpoints=kept,
            crew=crew,
        )
    return {"student": digest(student.state_dict()), "pool": digest(pool.tensors()), "metrics": metrics}


@pytest.mark.parametrize("chosen", GROWN)
def test_a_single_worker_makes_what_the_server_would(chosen: str, tmp_path: Path) -> None:
    alone = outcome(chosen, tmp_path / "alone", None, rounds=2)
    assert outcome(chosen, tmp_path / "crew", Crew(InProcess(1)), rounds=2) == alone
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("alone", "crew")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("chosen", GROWN)
def test_a_crew_cut_off_at_every_point_goes_on_as_if_nothing_had_happened(
    chosen: str, tmp_path: Path
) -> None:
    whole = Kept()
    expected = outcome(chosen, tmp_path / "whole", Crew(InProcess(2)), whole)
    assert len(whole.points) == 8
    assert outcome(chosen, tmp_path / "again", Crew(InProcess(2))) == expected
    start = None
    for number in range(len(whole.points)):
        kept = Kept(start, cut_at=1)
        with pytest.raises(CutOffError):
            outcome(chosen, tmp_path / str(number), Crew(InProcess(2)), kept)
        start = kept.points[-1]
    crew = Crew(InProcess(2))
    assert outcome(chosen, tmp_path / "last", crew, Kept(start)) == expected
    assert crew.told()["batches"] == 6, "those of the processes before count"


def test_the_number_of_workers_is_part_of_the_result(tmp_path: Path) -> None:
    chosen = "synthesizer=per_client"
    found = {outcome(chosen, tmp_path / str(n), Crew(InProcess(n)))["pool"] for n in (1, 2, 3)}
    assert len(found) == 3
    # Where nothing is remembered from batch to batch, it is not.
    chosen = "synthesizer=kw_bns"
    found = {outcome(chosen, tmp_path / f"kw{n}", Crew(InProcess(n)))["pool"] for n in (1, 2, 3)}
    assert len(found) == 1


def test_who_makes_which_batch(tmp_path: Path) -> None:
    workers = InProcess(2)
    outcome("synthesizer=kw_bns", tmp_path, Crew(workers))
    assert [(order.number, order.worker) for order in workers.orders] == [(b, b % 2) for b in range(6)]
    assert len({order.seed for order in workers.orders}) == 6


def test_a_state_that_is_left_out_would_be_noticed(tmp_path: Path) -> None:
    whole = Kept()
    expected = outcome("method=fast_cmi", tmp_path / "whole", Crew(InProcess(2)), whole)
    state = unpack(*whole.points[3])
    state["synthesizer"]["states"].pop(1)
    found = outcome("method=fast_cmi", tmp_path / "less", Crew(InProcess(2)), Kept(pack(state)))
    assert found["pool"] != expected["pool"]


def test_time_is_looked_at_whenever_all_workers_have_made_one(tmp_path: Path) -> None:
    now = 0.0

    class Slow(InProcess):
        def make(self, *given: Any) -> Any:
            nonlocal now
            for piece in super().make(*given):
                now += 1.0
                yield piece

    def run(workers: InProcess, kept: Kept | None = None) -> dict[str, Any]:
        nonlocal now
        now = 0.0
        folder = tmp_path / f"{time.perf_counter_ns()}"
        return outcome(
            "synthesizer=kw_bns", folder, Crew(workers), kept, lambda: now, 3.5, epochs=9, batches=8
        )

    workers, whole = Slow(2), Kept()
    expected = run(workers, whole)
    assert len(workers.orders) == 4, "two and two, and the time is up"
    for point in whole.points:
        assert run(Slow(2), Kept(point)) == expected


def test_cpu_seconds_are_those_of_server_and_workers(tmp_path: Path) -> None:
    crew = Crew(InProcess(2))
    clock = clocks_of(crew)["cpu"]
    before, own = clock(), CLOCKS["cpu"]()
    outcome("synthesizer=kw_bns", tmp_path, crew)
    told, passed = crew.told(), CLOCKS["cpu"]() - own
    assert clock() - before == pytest.approx(passed + told["cpu_seconds"], abs=0.05)
    assert 0 < told["cpu_seconds"] <= passed + 0.02
    assert told["gpu_seconds"] == pytest.approx(0.5 * told["busy_seconds"])
    assert 0 < told["utilization"] <= 0.51, "one after the other"
    assert (told["number"], told["batches"], told["replaced"]) == (2, 6, 0)
    names = [name for name, _, _ in worker_rows(told)]
    assert names == ["workers", "CPU time of workers", "GPU time of workers"]
    assert worker_rows(None) == []


@pytest.mark.parametrize("method", ["dafl", "rdskd", "fedftg"])
def test_schedules_that_need_each_batch_before_the_next_are_refused(method: str, tmp_path: Path) -> None:
    config = compose_config(["data=synthetic", f"method={method}"])
    crew = Crew(InProcess(2))
    with pytest.raises(ConfigError, match=r"server\.workers=2: null, because .*schedule=grow_pool"):
        crew.check(build(config["synthesizer"], "synthesizer"), build(config["schedule"], "schedule"), TASK)


def test_a_synthesizer_that_does_not_tell_its_state_is_refused() -> None:
    class Silent(PerClient):
        state_dict = None

    schedule = build(compose_config(["data=synthetic"])["schedule"], "schedule")
    with pytest.raises(ConfigError, match=r"server\.workers=2: null, because Silent does not tell its state"):
        Crew(InProcess(2)).check(Silent(inversion()), schedule, TASK)
