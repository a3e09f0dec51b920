"""However a run ends, it leaves no process, no temporary file and nothing half-written."""

import json
import signal
from pathlib import Path

import pytest
from killing import Command

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="reads the process table of Linux"
)

TINY = (
    "data=synthetic",
    "partition.alpha=1.0",
    "num_clients=2",
    "model.width=4",
    "strategy=fedavg",
    "local.epochs=1",
    "server_threads=1",
)


def command(folder: Path, fault: str, *overrides: str) -> Command:
    node = [
        "local._target_=slow_training.Faulty",
        f"+local.marker={folder / 'marker'}",
        f"+local.fault={fault}",
    ]
    return Command(folder, (*TINY, *node, *overrides))


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_in_one_process_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    with command(tmp_path, "hang", "backend=local") as run:
        run.wait_for(tmp_path / "marker")
        code, said = run.end_by(number)
        assert (code, last_line(said)) == {
            signal.SIGINT: (130, "fl_cmi: interrupted"),
            signal.SIGTERM: (143, "fl_cmi: terminated"),
        }[number]
        assert run.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "flower"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_of_many_processes_is_stopped(backend: str, number: signal.Signals, tmp_path: Path) -> None:
    with command(tmp_path, "hang", f"backend={backend}") as run:
        run.wait_for(tmp_path / "marker")
        code, said = run.end_by(number)
        assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
        assert last_line(said) in ("fl_cmi: interrupted", "fl_cmi: terminated")
        assert run.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "flower"])
def test_a_run_whose_clients_hang_or_raise_ends_and_leaves_nothing(backend: str, tmp_path: Path) -> None:
    with command(tmp_path, "hang", f"backend={backend}", "client_timeout=2") as run:
        code, said = run.end()
        assert code == 1, said
        assert last_line(said) == "fl_cmi: client 0 failed in round 1 (and 1 more): no reply within 2 s"
        assert run.left() == []
    with command(tmp_path, "raise", f"backend={backend}") as run:
        code, said = run.end()
        assert code == 1, said
        assert last_line(said).endswith("OSError: disk is damaged")
        assert run.left() == []


@pytest.mark.slow
def test_a_worker_killed_on_the_way_changes_nothing_but_the_report(tmp_path: Path) -> None:
    """The next command works, too."""
    with command(tmp_path, "die", "backend=ray") as run:
        assert run.end()[0] == 0
        assert run.left() == []
    disturbed = json.loads((run.run_dir / "summary.json").read_text(encoding="utf-8"))
    (failure,) = disturbed["failures"]
    assert (failure["round"], failure["kind"], failure["retried"]) == (1, "died", True)
    assert "it was asked again" in (run.run_dir / "report.html").read_text(encoding="utf-8")
    with command(tmp_path, "die", "backend=ray") as again:  # the marker is there: nobody dies
        assert again.end()[0] == 0
    undisturbed = json.loads((again.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert undisturbed["failures"] == []
    assert undisturbed["digest"] == disturbed["digest"]
