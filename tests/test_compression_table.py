"""`python -m simulations.compression`: its plan, resuming and the tables."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from simulations.compression import IMAGES, main, options_of, plan
from simulations.compression_tables import accuracies, executed, row_of
from simulations.sweep import Cell

ONE = ["--models", "convnet", "--trainings", "federated", "--seeds", "0", "--threads", "1"]


def result_of(cell: Cell, calibrated: float = 0.8) -> dict[str, Any]:
    """What a run of it might have found."""
    low = "kd=true" in cell.overrides
    steps = [int(override[6:]) for override in cell.overrides if override.startswith("steps=")]
    return {
        "model": {"accuracy": 0.9, "latency_ms": {"1": 2.0, "64": 30.0}},
        "student": {
            "accuracy_calibrated": calibrated,
            "accuracy_last": 0.85,
            "bytes": 25,
            "latency_ms": {"1": 4.0, "64": 10.0},
        },
        "compression": {"kd": {"steps": steps[-1]} if low else None, "executed": not low},
        "calibration": {"images": 10 if cell.where.get("images") == "one a class" else 512},
        "ratio": 4.0,
        "threads": 1,
        "seconds": {"total": 1.0},
        "commit": "c",
    }


def fake(started: list[Cell], wrong: str = "nothing") -> Any:
    def start(cell: Cell, limit: float | None) -> str | None:
        started.append(cell)
        if str(cell.folder).endswith(wrong):
            return "fl_cmi: wrong"
        cell.folder.mkdir(parents=True)
        summary = {**result_of(cell), "config": cell.config()}
        (cell.folder / "summary.json").write_text(json.dumps(summary))
        return None

    return start


def test_every_command_composes(tmp_path: Path) -> None:
    whole = plan(options_of(["--out", str(tmp_path)]))
    assert len(whole.models) == 3 * 2 * 3
    assert len(whole.images) == 3 * 2 * 3 * 4
    assert len(whole.cells) == 3 * 3 * 5 * (2 * len(IMAGES) - 1)
    folders = [cell.folder for cell in whole.cells]
    assert len(set(folders)) == len(folders)
    start = fake([])
    for cell in whole.models:
        if cell.where["seed"] == 0:
            start(cell, None)
    some = [cell for cell in whole.cells if cell.where["bits"] == "W4A8" or cell.where["images"] == "real"]
    for cell in (*whole.images, *some):
        if {"seed": 0, "model": "convnet", "training": "federated"}.items() <= cell.where.items():
            assert cell.config()["data"]["_target_"].endswith("fashion_mnist.load")


def test_overrides_apply_to_every_compression(tmp_path: Path) -> None:
    """Those of keys that the sweep sets, too."""
    given = ["calibration.images=7", "compression.ends=3"]
    whole = plan(options_of([*ONE, "--bits", "W4A8", "--out", str(tmp_path), "--", *given]))
    fake([])(whole.models[0], None)
    for cell in whole.cells:
        config = cell.config()
        assert (config["calibration"]["images"], config["compression"]["ends"]) == (7, 3), cell.name
    assert len(whole.images) == 4
    for cell in whole.images:
        assert cell.config()["calibration"]["images"] == 7, cell.name


def test_a_dry_run_only_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*ONE, "--images", "BNS", "noise", "--bits", "W4A8", "--out", str(tmp_path), "--dry-run"]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 2  # the model, the inverted images, two cells
    assert "fl_cmi.simulate" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Cell] = []
    given = [*ONE, "--images", "BNS", "--bits", "W8A8", "W4A8", "int8", "--out", str(tmp_path)]
    assert main(given, fake(started)) == 0
    assert len(started) == 2 + 3, "model and images once"
    assert main(given, fake(started)) == 0
    assert len(started) == 5
    assert main([*given, "--", "steps=7"], fake(started)) == 0
    assert len(started) == 5 + 4, "all but the model"
    capsys.readouterr()
    text = (tmp_path / "table.md").read_text()
    assert "| federated | convnet | BNS | 90.0 | 80.0 / 85.0 | 80.0 / 85.0 | 80.0 |" in text
    assert "| federated | convnet | BNS | 10.00 | 4.00 | 0.50 | 3.00 |" in text
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["fine_tuned"] for row in csv.DictReader(file)] == ["0.85", "0.85", ""]


def test_what_comes_from_a_run_is_done_again_with_it(tmp_path: Path) -> None:
    started: list[Cell] = []
    given = [*ONE, "--images", "BNS", "noise", "--bits", "W8A8", "--out", str(tmp_path)]
    main(given, fake(started))
    (tmp_path / "federated/convnet/seed-0/BNS/summary.json").unlink()
    main(given, fake(started))
    assert [cell.folder.name for cell in started[4:]] == ["BNS", "W8A8"], "the images and what they calibrate"
    (tmp_path / "federated/convnet/seed-0/summary.json").unlink()
    del started[:]
    main(given, fake(started))
    assert len(started) == 4


def test_a_failure_stops_no_other_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Cell] = []
    given = [*ONE, "--images", "BNS", "noise", "--bits", "W8A8", "W4A8", "--out", str(tmp_path)]
    assert main(given, fake(started, "/BNS")) == 1
    assert len(started) == 1 + 1 + 2, "images are tried once"
    assert "fl_cmi: wrong" in capsys.readouterr().out
    assert "| federated | convnet | BNS | - | failed | failed |" in (tmp_path / "table.md").read_text()


def test_seeds_have_a_mean_and_a_deviation() -> None:
    cells = plan(options_of([*ONE[:4], "--images", "real", "--bits", "W4A4", "--seeds", "0", "1"])).cells
    rows = [row_of(cell, result_of(cell, 0.5 + 0.1 * float(cell.where["seed"]))) for cell in cells]
    assert "| 90.0 +- 0.0 | 55.0 +- 7.1 / 85.0 +- 0.0 |" in accuracies(rows)
    assert executed(rows) == "", "simulated bits have no speed"


def test_models_that_lack_a_seed_count_those_that_are_there() -> None:
    cells = plan(options_of([*ONE[:4], "--images", "real", "--bits", "int8", "--seeds", "0", "1"])).cells
    rows = [row_of(cells[0], result_of(cells[0])), row_of(cells[1], "fl_cmi: wrong")]
    assert "| 90.0 | 80.0 (1 failed) |" in accuracies(rows)


def test_rows_that_are_known_are_not_run_again(tmp_path: Path) -> None:
    started: list[Cell] = []
    given = [*ONE, "--images", "BNS", "--bits", "W4A8", "int8"]
    assert main([*given, "--out", str(tmp_path / "first")], fake(started)) == 0
    known = ["--known", str(tmp_path / "first/results.csv")]
    del started[:]
    assert main([*given, *known, "--out", str(tmp_path / "same")], fake(started)) == 0
    assert started == [], "neither the model nor the images"
    assert (tmp_path / "same/table.md").read_text().splitlines()[2:] == (
        (tmp_path / "first/table.md").read_text().splitlines()[2:]
    )
    more = [*ONE, "--images", "noise", "BNS", "--bits", "W4A8", *known, "--out", str(tmp_path / "more")]
    assert main(more, fake(started)) == 0
    assert [cell.folder.name for cell in started] == ["seed-0", "W4A8"]
    text = (tmp_path / "more/table.md").read_text()
    assert "| federated | convnet | noise | 90.0 | 80.0 / 85.0 | - |" in text
    assert "| federated | convnet | BNS | 90.0 | 80.0 / 85.0 | 80.0 |" in text


def test_rows_of_other_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Cell] = []
    given = [*ONE, "--images", "BNS", "one a class", "pool", "--bits", "W4A8", "int8"]
    assert main([*given, "--out", str(tmp_path / "first")], fake(started)) == 0
    known = [*given, "--known", str(tmp_path / "first/results.csv"), "--out"]
    del started[:]
    assert main([*known, str(tmp_path / "same"), "--", "steps=300", "threads=1"], fake(started)) == 0
    assert started == []

    def refused(*more: str) -> str:
        with pytest.raises(SystemExit) as end:
            main([*known, str(tmp_path / "other"), *more], fake(started))
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "--known: it has rows with kd_steps 300, here 2000" in refused("--", "steps=2000")
    assert "--known: it has rows with kd_steps 300, here abc" in refused("--", "steps=abc")
    said = "--known: its rows do not tell whether they had distiller.batch_size=512"
    assert said in refused("--", "distiller.batch_size=512")
    text = (tmp_path / "first/results.csv").read_text().replace(",512,", ",256,")
    (tmp_path / "first/results.csv").write_text(text)
    assert "--known: it has rows with images_number 256, here 512" in refused()
    assert started == []
