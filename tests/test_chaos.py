"""`python -m simulations.chaos`: does it notice what a kill has changed?"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from simulations import chaos
from simulations.chaos import Finished, Kill, Report, compared, torment

JOB = """
import json, sys, time
from pathlib import Path

run, doubles = Path(sys.argv[1]), sys.argv[2] == "doubles"
(run / "checkpoint").mkdir(parents=True, exist_ok=True)
(run / ".hydra").mkdir(exist_ok=True)
(run / ".hydra" / "overrides.yaml").write_text("[]")
done = max((int(path.stem) for path in (run / "checkpoint").glob("*.json")), default=0)
log = run / "metrics.jsonl"
if log.exists():
    draft = run / "draft"
    draft.write_text("".join(log.read_text().splitlines(True)[:done]))
    draft.rename(log)
for step in range(done, 12):
    time.sleep(0.05)
    with log.open("a") as rows:
        for _ in range(2 if doubles and done and step == done else 1):
            rows.write(json.dumps({"event": "step", "step": step, "seconds": time.time()}) + chr(10))
    draft = run / "checkpoint" / f"{step + 1}.draft"
    draft.write_text("{}")
    draft.rename(draft.with_suffix(".json"))
(run / "summary.json").write_text(json.dumps({"digest": "d"}))
"""
"""Twelve steps, each with a row and a checkpoint; of one that goes on `doubles` writes its first row twice."""


def written(folder: Path, rows: Sequence[dict[str, Any]], digest: str = "d") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"digest": digest}), encoding="utf-8")
    return folder


def rows(*steps: int, **more: Any) -> list[dict[str, Any]]:
    return [{"event": "step", "step": step, **more} for step in steps]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rows(1, 2, 3), (0, 0, True)),
        (rows(1, 2, 3, seconds=7.0), (0, 0, True)),
        ([*rows(1, 2), *rows(5, retried=True), *rows(3)], (0, 0, True)),
        (rows(1, 3), (1, 0, False)),
        (rows(1, 2, 2, 3), (0, 1, False)),
        (rows(1, 3, 2), (0, 0, False)),
        (rows(1, 2, 4), (1, 1, False)),
    ],
)
def test_rows_are_compared_but_for_times_and_clients_asked_again(
    found: list[dict[str, Any]], expected: tuple[int, int, bool], tmp_path: Path
) -> None:
    whole = written(tmp_path / "whole", rows(1, 2, 3))
    assert compared(written(tmp_path / "run", found, "other"), whole) == Finished("other", *expected)


def test_a_report_tells_what_is_different() -> None:
    report = Report("python -m simulations.chaos", "d", 1.0, [Kill(1, 0.5, 0)], [Finished("d", 0, 0, True)])
    assert report.good
    assert "1 kills, nothing was lost, doubled or changed" in str(report)
    assert "| 1 | 1 x | same | 0 | 0 | yes |" in str(report)
    assert "| 1 | 1 | 0.50 | none |" in str(report)
    for wrong in (Finished("e", 0, 0, True), Finished("d", 1, 0, False)):
        other = Report("x", "d", 1.0, report.kills, [*report.finished, wrong])
        assert not other.good
        assert "**something is different**" in str(other)
    assert not Report("x", "d", 1.0).good, "nothing was compared"


@pytest.mark.parametrize("kind", ["sound", "doubles"])
def test_all_kills_are_dealt_and_every_run_is_compared(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_of(overrides: Sequence[str], run: Path) -> chaos.Process:
        command = [sys.executable, "-S", "-c", JOB, str(run), kind]
        return subprocess.Popen(command, start_new_session=True)

    monkeypatch.setattr(chaos, "start_of", start_of)
    report = torment(kills=4, seed=3, victim="run", folder=tmp_path)
    assert len(report.kills) == 4
    assert report.finished
    resumed = any(kill.checkpoint for kill in report.kills)
    assert resumed, "a kill that comes before every checkpoint shows nothing"
    assert report.good == (kind == "sound")


def test_a_run_that_fails_is_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_of(overrides: Sequence[str], run: Path) -> chaos.Process:
        run.mkdir(parents=True)
        with (run / "output.txt").open("w", encoding="utf-8") as output:
            said = "print('something'); print('fl_cmi: wrong'); raise SystemExit(1)"
            return subprocess.Popen([sys.executable, "-S", "-c", said], stdout=output)

    monkeypatch.setattr(chaos, "start_of", start_of)
    with pytest.raises(RuntimeError, match="the undisturbed run failed: fl_cmi: wrong"):
        torment(kills=1, seed=0, victim="run", folder=tmp_path)
