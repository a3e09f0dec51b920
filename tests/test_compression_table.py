"""`python -m simulations.compression`: its plan, resuming and the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from fl_cmi.compose import compose_config
from simulations.compression import IMAGES, Run, main, options_of, plan, table_of

ONE = ["--models", "convnet", "--trainings", "federated", "--seeds", "0"]


def fake(started: list[Run], wrong: str = "nothing") -> Any:
    def start(run: Run) -> str | None:
        started.append(run)
        if wrong in str(run.folder):
            return "fl_cmi: wrong"
        run.folder.mkdir(parents=True)
        summary = {
            "model": {"accuracy": 0.9},
            "student": {"accuracy_calibrated": 0.8, "accuracy_last": 0.85},
            "compression": {"kd": {"steps": 1} if "kd=true" in run.overrides else None},
        }
        (run.folder / "summary.json").write_text(json.dumps(summary))
        return None

    return start


def test_every_command_composes() -> None:
    cells = plan(options_of([]))
    assert len(cells) == 3 * 3 * 5 * (2 * len(IMAGES) - 1)
    for overrides in {run.overrides for cell in cells for run in cell.runs if run.program == "simulate"}:
        if "seed=0" in overrides:
            compose_config(overrides)
    for overrides in {cell.runs[-1].overrides for cell in cells[: 5 * len(IMAGES)]}:
        compose_config(overrides, "compress")
    folders = [cell.runs[-1].folder for cell in cells]
    assert len(set(folders)) == len(folders)


def test_a_dry_run_only_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([*ONE, "--images", "BNS", "noise", "--bits", "W4A8", "--out", str(tmp_path), "--dry-run"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 2  # the model, the inverted images, two cells
    assert "fl_cmi.simulate" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Run] = []
    given = [*ONE, "--images", "BNS", "--bits", "W8A8", "W4A8", "int8", "--out", str(tmp_path)]
    assert main(given, fake(started)) == 0
    assert len(started) == 2 + 3, "model and images once"
    assert main(given, fake(started)) == 0
    assert len(started) == 5
    assert main([*given, "steps=7"], fake(started)) == 0
    assert len(started) == 5 + 4, "all but the model"
    capsys.readouterr()
    assert (
        "| federated | convnet | BNS | 90.0 | 80.0 / 85.0 | 80.0 / 85.0 | 80.0 |"
        in (tmp_path / "table.md").read_text()
    )


def test_a_failure_stops_no_other_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Run] = []
    given = [*ONE, "--images", "BNS", "noise", "--bits", "W8A8", "W4A8", "--out", str(tmp_path)]
    assert main(given, fake(started, "BNS/images")) == 1
    assert len(started) == 1 + 1 + 2, "images are tried once"
    assert "fl_cmi: wrong" in capsys.readouterr().out
    assert "| federated | convnet | BNS | - | failed | failed |" in (tmp_path / "table.md").read_text()


def test_seeds_have_a_mean_and_a_deviation() -> None:
    cells = plan(options_of([*ONE[:4], "--images", "real", "--bits", "W4A4", "--seeds", "0", "1"]))
    results = [
        (
            cell,
            {
                "model": {"accuracy": 0.9},
                "student": {"accuracy_calibrated": 0.5 + 0.1 * cell.seed, "accuracy_last": 0.7},
                "compression": {"kd": {}},
            },
        )
        for cell in cells
    ]
    for _, result in results:
        result["compression"]["kd"] = {"steps": 1}
    assert "| 90.0 | 55.0 +- 7.1 / 70.0 +- 0.0 |" in table_of(results)
