"""Many runs by one command: what is planned, what is skipped, what a failure does, and the tables."""

import csv
from pathlib import Path
from typing import Any

import pytest

from fl_cmi.checks import check_distillation
from fl_cmi.compose import build, compose_config, make_model
from fl_cmi.distill import run
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import Task, Teacher
from simulations import synthesizers
from simulations.methods import METHODS
from simulations.sweep import Cell, carry_out, launch
from simulations.synthesizers import main
from simulations.tables import COLUMNS, write_tables

TINY = [
    "data=synthetic",
    "model.width=2",
    "teacher.model.width=4",
    "local.epochs=1",
    "synthesizer.batch_size=4",
    "synthesizer.inversion.source.generator.width=4",
]
ASKED = {
    "cmi",
    "dafl",
    "zskt",
    "dfad",
    "dfq",
    "rdskd",
    "fast_cmi",
    "per_client",
    "noise",
    "kw_bns",
    "kw_bns_inception_adam",
}
ASKED |= {"deep_inversion", "adaptive_deep_inversion", "kw_bns_inception", "cmi_no_contrast"}


class Here:
    """Runs cells in this process, and remembers them."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.cells: list[str] = []

    def __call__(self, cell: Cell, limit: float | None) -> str | None:
        self.cells.append("-".join(map(str, cell.where.values())))
        if cell.where["method"] == self.failing:
            return "fl_cmi: broken on purpose"
        run(compose_config(cell.overrides, "distill"), cell.folder)
        return None


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quick ones."""
    quick = ["synthesizer.inversion.steps=1", "schedule.epochs=1", "schedule.batches=1", "schedule.steps=1"]
    found = {"first": ["seed=5", *quick], "second": [*quick, "schedule.batches=2"]}
    monkeypatch.setattr(synthesizers, "METHODS", found)


def compare(folder: Path, here: Here, *options: str) -> int:
    return main(["--out", str(folder), "--threads", "1", *options, "--", *TINY], here)


@pytest.mark.usefixtures("methods")
def test_runs_are_resumed_and_tabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Here()
    # What is left of a run that broke off goes.
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "metrics.jsonl").write_text("torn")
    assert compare(tmp_path, here, "--methods", "second") == 0
    assert here.cells == ["teacher", "second-0"]
    # The teacher and the run of before stay; what is new is run.
    assert compare(tmp_path, here, "--methods", "second", "--seeds", "0", "1") == 0
    assert here.cells[2:] == ["second-1"]
    with (tmp_path / "synthesizers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"], row["failure"]) for row in rows] == [
        ("second", "0", ""),
        ("second", "1", ""),
    ]
    assert all(row[name] for row in rows for name in COLUMNS)
    assert rows[0]["images"] == "8"
    table = (tmp_path / "synthesizers.md").read_text(encoding="utf-8")
    assert "| second | 2 |" in table
    assert "+-" in table
    assert table in capsys.readouterr().out
    # What was done before stays in the table; what had other overrides does not.
    assert compare(tmp_path, here, "--methods", "first") == 0
    assert here.cells[3:] == ["first-0"]
    table = (tmp_path / "synthesizers.md").read_text(encoding="utf-8")
    assert "| first | 1 |" in table
    assert "| second | 2 |" in table
    assert main(["--out", str(tmp_path), "--methods", "first", "--", *TINY, "local.epochs=2"], here) == 0
    assert here.cells[4:] == ["teacher", "first-0"]
    assert "second" not in (tmp_path / "synthesizers.md").read_text(encoding="utf-8")
    assert compare(tmp_path, here, "--methods", "second") == 0
    here.cells[3:] = []
    # Another budget is another configuration; the teacher is the same.
    assert compare(tmp_path, here, "--methods", "second", "--budget", "7") == 0
    assert here.cells[3:] == ["second-0"]


@pytest.mark.usefixtures("methods")
def test_a_failing_run_hides_no_other(tmp_path: Path) -> None:
    here = Here(failing="first")
    assert compare(tmp_path, here, "--methods", "first", "second") == 1
    assert here.cells == ["teacher", "first-0", "second-0"]
    table = (tmp_path / "synthesizers.md").read_text(encoding="utf-8")
    assert "- first, seed 0: fl_cmi: broken on purpose" in table
    assert "| second | 1 |" in table
    assert "broken on purpose" in (tmp_path / "synthesizers.csv").read_text(encoding="utf-8")


def test_a_method_that_does_not_compose_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthesizers, "METHODS", {"gone": ["synthesizer=gone"]})
    cell = Cell({"method": "gone"}, ("synthesizer=gone",), tmp_path, "distill")
    (tmp_path / "summary.json").write_text("{}")
    assert "gone" in str(carry_out(cell, None, Here()))
    assert compare(tmp_path / "all", Here(failing="teacher"), "--methods", "gone") == 1
    assert "teacher: fl_cmi: broken" in capsys.readouterr().err


def test_a_dry_run_prints_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here()
    assert main(["--out", str(tmp_path / "out"), "--dry-run", "--seeds", "0", "3"], here) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * len(METHODS)
    assert all(" -m fl_cmi.distill " in line for line in lines)
    assert all("budget_s=600" in line and "teacher.checkpoint=" in line for line in lines[1:])
    assert here.cells == []
    assert list(tmp_path.iterdir()) == []


def test_all_the_methods_asked_for_are_there() -> None:
    assert set(METHODS) == ASKED


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_parts_fit_each_other_and_the_teacher(method: str) -> None:
    config = compose_config([*synthesizers.SETTING, *METHODS[method]], "distill")
    check_distillation(config)
    synthesizer, distiller, schedule, combine = (
        build(config[part], part) for part in ("synthesizer", "distiller", "schedule", "combine")
    )
    schedule.check(synthesizer, distiller)
    teacher = make_model(config["teacher"]["model"], Task((1, 28, 28), 10, (0.5,), (0.5,)), 0)
    synthesizer.check(Ensemble([Teacher(0, 1, None, teacher)], combine))
    assert schedule.epochs == 1_000_000
    assert schedule.evaluate_every == 1_000_000
    assert synthesizer.batch_size == distiller.batch_size == 128
    assert config["model"]["width"] * 2 == config["teacher"]["model"]["width"]


class Fails:
    """A command that says something and exits with 3."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.command = ["python3", "-c", f"import sys; print({text!r}); print('last'); sys.exit(3)"]


@pytest.mark.parametrize(("text", "expected"), [("fl_cmi: why", "fl_cmi: why"), ("noise", "last")])
def test_why_a_process_failed_is_its_own_word(tmp_path: Path, text: str, expected: str) -> None:
    cell: Any = Fails(tmp_path / "cell", text)
    assert launch(cell, 60) == expected


def test_a_process_that_hangs_is_stopped(tmp_path: Path) -> None:
    cell: Any = Fails(tmp_path, "")
    cell.command = ["python3", "-c", "import time; time.sleep(60)"]
    assert launch(cell, 0.5) == "stopped after 0 s"


def summary(accuracy: float) -> dict[str, Any]:
    measures = ("diversity", "balance", "frechet", "precision", "recall", "confidence", "diversity_real")
    return {
        "student": {"accuracy_last": accuracy},
        "teacher": {"accuracy": 0.92},
        "threads": 2,
        "agreement": 0.5,
        "synthetic": dict.fromkeys(measures, 0.25),
        "seconds": {"setup": 9.0, "synthesis": 2.0, "distillation": 3.0, "total": 20.0},
        "teacher_passes": 1234,
        "images": 10,
    }


def test_the_table_is_ordered_by_what_was_found(tmp_path: Path) -> None:
    results = [("a", 0, summary(0.5)), ("b", 0, summary(0.7)), ("b", 1, summary(0.8)), ("c", 0, "fell over")]
    lines = write_tables(tmp_path, summary(0.9), results, 300).splitlines()
    assert lines[0].startswith("Teacher 92.00 %, 300 CPU s")
    rows = [line for line in lines if line.startswith(("| a", "| b"))]
    assert rows[0].startswith("| b | 2 | 75.00 +- 7.07 | 50.00 +- 0.00 | 0.250 +- 0.000")
    assert rows[1].startswith("| a | 1 | 50.00 | 50.00 | 0.250 |")
    assert rows[1].endswith("| 5 | 1,234 | 10 |")
    assert lines[-1] == "- c, seed 0: fell over"
