"""The server's workers on Ray against those in this process: late, killed, failing, and in whole runs."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from killing import Command
from makers import InProcess
from test_crew import outcome
from test_resume import cut_off, rows
from test_simulate import TINY

import fl_cmi.distill
import fl_cmi.simulate
from fl_cmi.compose import compose_config
from fl_cmi.flower.ray_session import ray_session
from fl_cmi.flower.ray_workers import RayWorkers
from fl_cmi.precision import fast
from fl_cmi.synthesis.crew import Crew, WorkerFailure
from fl_cmi.types import ConfigError
from simulations.bench.workers import speedup

pytestmark = pytest.mark.slow

DISTURBED = "synthesizer=per_client synthesizer._target_=disturbed.Disturbed"
GROW = "schedule={epochs:2,batches:3,steps:2,evaluate_every:1}"
WORKERS = ("server.workers=2", "server.worker_cpus=0.5")


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    """One Ray for the tests that ask for it."""
    with ray_session():
        yield


def crew() -> Crew:
    """Two, however many CPUs there are."""
    return Crew(RayWorkers(2, 0.25, device="cpu"))


def test_late_and_killed_workers_change_nothing(ray_running: None, tmp_path: Path) -> None:
    chosen = f"{DISTURBED} +synthesizer.folder={tmp_path}"
    expected = outcome(chosen, tmp_path / "here", Crew(InProcess(2)))
    late, killed = "+synthesizer.slow={0:2.0}", "+synthesizer.killed=[1,5]"
    for name, trouble in (("undisturbed", ""), ("late", late), ("killed", killed)):
        there = crew()
        with there.workers.hired():
            assert outcome(f"{chosen} {trouble}", tmp_path / name, there) == expected
        told = there.told()
        assert (told["batches"], told["replaced"]) == (6, 2 if name == "killed" else 0)
        assert told["cpu_seconds"] > 0
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.2)


def test_workers_are_as_fast_as_the_server(ray_running: None, tmp_path: Path) -> None:
    expected = outcome("synthesizer=kw_bns", tmp_path / "here", None, precision=fast)
    there = crew()
    with there.workers.hired():
        assert outcome("synthesizer=kw_bns", tmp_path / "there", there, precision=fast) == expected


def test_who_dies_again_and_again_ends_the_run(ray_running: None, tmp_path: Path) -> None:
    deadly = f"{DISTURBED} +synthesizer.folder={tmp_path} +synthesizer.killed=[2] +synthesizer.again=true"
    there = crew()
    with (
        pytest.raises(
            WorkerFailure, match=r"worker 0: its process died at batch 2 \(killed\), for the 3\. time"
        ),
        there.workers.hired(),
    ):
        outcome(deadly, tmp_path / "run", there)
    assert there.told()["batches"] == 2


def test_a_loss_that_is_not_finite_is_told_as_ever(ray_running: None, tmp_path: Path) -> None:
    there = crew()
    with pytest.raises(FloatingPointError, match=r"^batch 4 is not finite$"), there.workers.hired():
        outcome(f"{DISTURBED} +synthesizer.failed=4", tmp_path, there)
    assert there.told()["batches"] == 4, "those before it count"


def test_more_workers_than_fit_are_refused(ray_running: None) -> None:
    with (
        pytest.raises(ConfigError, match=r"server\.workers=99: at most \d+ with 1 CPU"),
        RayWorkers(99).hired(),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"server\.worker_gpus=1000: at most"),
        RayWorkers(1, 1, 1000).hired(),
    ):
        pass


def test_a_run_cut_off_within_a_round_ends_as_if_it_had_not_been(ray_running: None, tmp_path: Path) -> None:
    """Clients on all CPUs of Ray and workers on all of them, in turn, for two rounds; and the same without Ray."""
    given = [*TINY, GROW, *WORKERS, "rounds=2", "checkpoint.every=1", "own_tests=true"]
    given += ["local.start=own", "server.worker_cpus=1"] if ray.cluster_resources()["CPU"] >= 2 else []
    config = compose_config([*given, "backend=ray"])
    whole = fl_cmi.simulate.run(config, tmp_path / "whole")
    assert whole["workers"]["batches"] == 12
    folder = tmp_path / "cut"
    assert cut_off(config, folder, 4)  # the beginning, the clients, two batches
    again = {**config, "resume": str(folder)}
    assert cut_off(again, folder, 9)  # six more batches and lessons, round 1, its clients, a batch
    found = fl_cmi.simulate.run(again, folder)
    assert found["digest"] == whole["digest"]
    assert rows(folder) == rows(tmp_path / "whole")
    assert found["workers"]["batches"] == 12
    assert found["teacher_passes"] == whole["teacher_passes"]
    local = fl_cmi.simulate.run(compose_config([*given, "backend=local"]), tmp_path / "local")
    assert local["digest"] == whole["digest"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "workers of the server" in page


def test_distillation_has_workers_too(ray_running: None, tmp_path: Path) -> None:
    given = [
        "data=synthetic",
        "model.width=4",
        "local.epochs=1",
        "synthesizer.batch_size=16",
        "threads=1",
        GROW,
    ]
    config = compose_config([*given, *WORKERS], "distill")
    first, second = (fl_cmi.distill.run(config, tmp_path / name) for name in ("a", "b"))
    assert first["digest"] == second["digest"]
    assert first["workers"]["batches"] == 6
    alone = fl_cmi.distill.run(compose_config(given, "distill"), tmp_path / "alone")
    assert alone["workers"] is None
    assert alone["digest"] != first["digest"]


def test_the_gain_is_measured(ray_running: None) -> None:
    found = speedup(workers=1, batches=1, pairs=1, steps=1, clients=2)
    assert set(found) == {"alone", "workers", "ratio", "bound", "start", "utilization"}
    assert found["ratio"] == pytest.approx(found["alone"] / found["workers"])
    assert 0 < found["utilization"] <= 1
    assert found["bound"] > 0


@pytest.mark.parametrize("backend", ["ray", "local"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(backend: str, number: signal.Signals, tmp_path: Path) -> None:
    with command(tmp_path, f"backend={backend}", "+synthesizer.slow={1:600}") as run:
        run.wait_for(tmp_path / "slow")
        code, said = run.end_by(number)
        assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
        assert said.strip().splitlines()[-1] in ("fl_cmi: interrupted", "fl_cmi: terminated")
        assert run.left() == []


def test_a_run_with_a_killed_worker_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    with command(tmp_path, "backend=ray", "+synthesizer.killed=[1]") as run:
        code, said = run.end()
        assert code == 0, said
        assert run.left() == []
    summary = json.loads((run.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["workers"]["replaced"] == 1
    with command(
        tmp_path, "backend=local", "+synthesizer.killed=[0,1,2]", "+synthesizer.again=true"
    ) as again:
        code, said = again.end()
        assert code == 1, said
        assert said.strip().splitlines()[-1].endswith("its process died at batch 0 (killed), for the 3. time")
        assert again.left() == []


def command(folder: Path, *overrides: str) -> Command:
    """A run with a disturbed synthesizer."""
    node = ["synthesizer._target_=disturbed.Disturbed", f"+synthesizer.folder={folder}"]
    return Command(folder, (*TINY, "num_clients=2", GROW, *WORKERS, *node, *overrides))
