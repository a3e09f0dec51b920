"""A folder of results is what its run wrote, or each difference is a line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import call_main
from safetensors.torch import load_file, save_file
from test_resume import config_of

import fl_cmi.verify
from fl_cmi.report.integrity import write_integrity
from fl_cmi.simulate import run
from fl_cmi.verify import findings


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "run"
    run(config_of("strategy=fedavg", "rounds=2"), folder)
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    for path in done.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def other_student(folder: Path) -> None:
    path = folder / "student.safetensors"
    save_file({name: value * 0 + 1 for name, value in load_file(path).items()}, path)


def other_config(folder: Path) -> None:
    path = folder / "summary.json"
    edit(path, "config", {**json.loads(path.read_text())["config"], "seed": 9})


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "curves.png").unlink(), "curves.png: missing"),
    "longer": (lambda f: (f / "report.html").open("a").write(" "), "report.html: "),
    "flipped": (
        lambda f: (f / "curves.png").write_bytes((f / "curves.png").read_bytes()[:-1] + b"?"),
        "curves.png: changed",
    ),
    "new": (lambda f: (f / "other.png").touch(), "other.png: not of this run"),
    "student": (other_student, "student.safetensors: digest "),
    "digest": (lambda f: edit(f / "summary.json", "digest", "0"), "student.safetensors: digest "),
    "config": (other_config, "config: "),
    "partition": (other_config, "partition: hash "),
    "accuracy": (lambda f: edit(f / "summary.json", "gap", 0.5), "metrics.jsonl: its gap "),
    "rows": (lambda f: (f / "metrics.jsonl").write_text(""), "metrics.jsonl: rows of rounds []"),
    "cut": (lambda f: os.truncate(f / "metrics.jsonl", 50), "metrics.jsonl: "),
    "number": (lambda f: edit(f / "summary.json", "rounds", "two"), "metrics.jsonl: cannot be compared"),
    "rows of nothing": (lambda f: (f / "metrics.jsonl").write_text("null\n"), "metrics.jsonl: cannot be"),
    "no partition": (lambda f: edit(f / "summary.json", "partition", 3), "partition: cannot be compared"),
    "deep": (lambda f: (f / "summary.json").write_text("[" * 100_000), "maximum recursion depth"),
    "unfinished": (lambda f: (f / "integrity.json").unlink(), "integrity.json is missing"),
    "garbage": (lambda f: (f / "student.safetensors").write_bytes(b"x" * 99), "student.safetensors: cannot"),
}


def test_nothing_to_find(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(findings(done)) == []
    assert call_main(fl_cmi.verify.main, monkeypatch, str(done)) == 0
    (done / "simulate.log").write_text("a log may grow")
    assert list(findings(done)) == []


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found(
    name: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, line = CHANGES[name]
    change(copy)
    assert any(found.startswith(line) for found in findings(copy)), list(findings(copy))
    assert call_main(fl_cmi.verify.main, monkeypatch, str(copy)) == 1
    assert line in capsys.readouterr().out


def test_contents_are_checked_even_where_checksums_fit(copy: Path) -> None:
    other_student(copy)
    write_integrity(copy)
    assert [line.partition(":")[0] for line in findings(copy)] == ["student.safetensors"]


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["a", "b"]])
def test_bad_usage(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(fl_cmi.verify.main, monkeypatch, *arguments) == 2
    said = "fl_cmi: RUN_DIR=nowhere: the folder of" if arguments == ["nowhere"] else "fl_cmi: usage"
    assert capsys.readouterr().err.startswith(said)
