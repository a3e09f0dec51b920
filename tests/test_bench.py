"""The benchmark of speed: that it runs, and that its ratios mean what its goals say."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from simulations.bench.__main__ import FAMILIES, main
from simulations.bench.figures import Times, at_least, at_most, in_turn
from simulations.bench.rounds import makespan

KEYS = ["figure", "ours", "reference", "ratio", "goal", "pass"]


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(tmp_path: Path, *names: str) -> list[dict[str, object]]:
    path = tmp_path / "speed.json"
    assert main(["--tiny", "--pairs", "1", "--json", str(path), "--only", *names]) == 0
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    assert all(list(row) == KEYS for row in found)
    for row in found:
        assert row["ours"] > 0 and row["reference"] > 0 and row["ratio"] > 0  # type: ignore[operator]
        assert (row["pass"] is None) == (not row["goal"])
    return found


def test_figures_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(tmp_path, "teachers", "rounds", "local_training")
    assert len(found) == 8
    said = capsys.readouterr().out
    assert f"{os.cpu_count()} cores, 1 thread(s)" in said
    assert f"torch {torch.__version__.split('+')[0]}" in said
    assert said.count("\n| ") == 1 + len(found)


@pytest.mark.slow
def test_figures_of_other_processes(tmp_path: Path) -> None:
    assert len(rows(tmp_path, "inversion", "memory", "rounds_ray")) == 6


def test_ratios_and_goals() -> None:
    times = Times(ours=[1.0, 2.0, 4.0], reference=[4.0, 4.0, 4.0])
    fast, slow = at_least("speed", times, 3.0), at_most("cost", times, 1.0, per=2)
    assert (fast.ours, fast.reference, fast.ratio, fast.goal, fast.reached) == (2.0, 4.0, 2.0, ">= 3", False)
    assert (slow.ours, slow.reference, slow.ratio, slow.goal, slow.reached) == (1.0, 2.0, 0.5, "<= 1", True)
    assert at_least("speed", times, None).as_json()["pass"] is None
    apart = Times(ours=[1.0, 2.0, 4.0], reference=[1.0, 8.0, 9.0], in_turn=False)
    assert at_least("speed", apart, None).ratio == 4.0  # in pairs 2.25


def test_pairs_are_timed_in_turn_after_a_first_call() -> None:
    called: list[str] = []
    ticks = iter(range(100))
    times = in_turn(
        lambda: called.append("ours"), lambda: called.append("other"), 2, lambda: float(next(ticks))
    )
    assert called == ["ours", "other"] * 3
    assert list(times.ours) == list(times.reference) == [1.0, 1.0]


def test_workers_take_the_next_task_when_they_are_free() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert makespan([1.0, 1.0, 3.0], 2) == 4.0
    assert makespan([1.0, 2.0], 1) == 3.0


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nonsense"])
    said = capsys.readouterr().err
    assert all(name in said for name in FAMILIES)
    with pytest.raises(SystemExit):
        main(["--pairs", "0"])
