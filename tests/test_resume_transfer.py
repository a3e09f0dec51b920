"""A transfer that is cut off after any batch or lesson goes on to the very same student, images and rows."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import METHODS, configured, shrink
from tiny import COUNTS, TASK, ensemble, network, remembering

from fl_cmi.bank import Pool
from fl_cmi.checkpoint.tree import Tree, pack, unpack
from fl_cmi.compose import build, compose_config
from fl_cmi.distillation.budget import Clock
from fl_cmi.distillation.distiller import Lesson
from fl_cmi.distillation.supply import Supply
from fl_cmi.distillation.transfer import transfer
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import digest

ONE_TEACHER = ("adaptive_deep_inversion",)
"""Their loss compares layers with those of a single teacher."""

OTHERS = (
    "synthesizer=per_client",
    "synthesizer=kw_bns",
    "synthesizer=cmi distiller=crd",
    "distiller=nt_xent",
)
"""What no method has chosen."""


class CutOffError(Exception):
    """The end of the process."""


class Kept:
    """Keeps the state at every point as it would be on disk, and cuts the transfer off at one of them.

    Args:
        start: A state to go on from.
        cut_at: Number of the point, from 1, at which the process ends.
    """

    def __init__(self, start: tuple[Any, ...] | None = None, cut_at: int | None = None) -> None:
        self.start, self.cut_at = start, cut_at
        self.points: list[tuple[Any, ...]] = []

    def resumed(self) -> Tree:
        return None if self.start is None else unpack(*self.start)

    def reached(self, state: Callable[[], Tree]) -> None:
        self.points.append(pack(state()))
        if self.cut_at == len(self.points):
            raise CutOffError


def outcome(
    config: dict[str, Any],
    log: MetricsLog,
    kept: Kept,
    clock: Clock = time.perf_counter,
    budget_s: float | None = None,
    teachers: int = 3,
    **schedule: int,
) -> dict[str, Any]:
    """What a round of the shrunk configuration comes to."""
    pool, student = Pool(), network(9)
    metrics = transfer(
        ensemble(COUNTS[:teachers], build(config["combine"], "combine"), make=remembering),
        student,
        build(shrink(config["synthesizer"]), "synthesizer"),
        build(shrink(config["distiller"]), "distiller"),
        pool,
        build({**shrink(config["schedule"]), **schedule}, "schedule"),
        task=TASK,
        seed=0,
        server_round=1,
        progress=Progress(quiet=True),
        log=log,
        evaluate=lambda model: float(next(model.parameters()).detach().double().mean()),
        budget_s=budget_s,
        clock=clock,
        checkpoints=kept,
    )
    return {"student": digest(student.state_dict()), "pool": digest(pool.tensors()), "metrics": metrics}


def check_every_point(config: dict[str, Any], folder: Path, teachers: int = 3) -> None:
    """Cut off at each point in turn, go on, and compare with the transfer that nobody disturbed."""
    log = MetricsLog(folder / "whole.jsonl")
    whole, kept = Kept(), None
    expected = outcome(config, log, whole, teachers=teachers)
    rows = log.path.read_bytes()
    assert len(whole.points) >= 2
    for number in range(1, len(whole.points) + 1):
        again = MetricsLog(folder / f"{number}.jsonl")
        # From the point before, so that a state that was restored is also taken again.
        start = None if kept is None else kept.points[-1]
        kept = Kept(start, cut_at=1)
        with pytest.raises(CutOffError):
            outcome(config, again, kept, teachers=teachers)
        told = again.path.read_bytes() if again.path.exists() else b""
        assert told in rows
    assert kept is not None
    last = MetricsLog(folder / "last.jsonl")
    assert outcome(config, last, Kept(kept.points[-1]), teachers=teachers) == expected
    assert rows.endswith(last.path.read_bytes())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    check_every_point(configured(name), tmp_path, teachers=1 if name in ONE_TEACHER else 3)


@pytest.mark.parametrize("chosen", OTHERS)
def test_what_no_method_has_goes_on_too(chosen: str, tmp_path: Path) -> None:
    check_every_point(compose_config(["data=synthetic", *chosen.split()]), tmp_path)


@pytest.mark.parametrize("name", ["per_client", "fast_cmi"])
def test_any_point_alone_is_enough(name: str, tmp_path: Path) -> None:
    config = compose_config(["data=synthetic", f"synthesizer={name}"])
    whole = Kept()
    expected = outcome(config, MetricsLog(tmp_path / "whole.jsonl"), whole)
    for number, point in enumerate(whole.points):
        assert outcome(config, MetricsLog(tmp_path / f"{number}.jsonl"), Kept(point)) == expected


def test_a_state_that_is_left_out_would_be_noticed(tmp_path: Path) -> None:
    config = compose_config(["data=synthetic", "method=fast_cmi"])
    whole = Kept()
    expected = outcome(config, MetricsLog(tmp_path / "whole.jsonl"), whole)
    for part in ("student", "lesson", "synthesizer", "pool"):
        state = unpack(*whole.points[2])
        earlier = unpack(*whole.points[0])
        state[part] = earlier[part]
        found = outcome(config, MetricsLog(tmp_path / f"{part}.jsonl"), Kept(pack(state)))
        assert found["student"] != expected["student"], part


def test_time_that_was_up_stays_up(tmp_path: Path) -> None:
    """By a clock that moves at every look: what was decided before the cut is decided again."""

    def ticking(start: float) -> Clock:
        times: Iterator[int] = iter(range(10**6))
        return lambda: start + next(times)

    config = compose_config(["data=synthetic", "schedule.warmup=0"])
    whole = Kept()
    outcome(config, MetricsLog(tmp_path / "whole.jsonl"), whole, ticking(0.0), 60.0, epochs=50)
    last = unpack(*whole.points[-1])["replay"]
    assert last["yes"]
    assert 4 < last["actions"] < 100
    for number, point in enumerate(whole.points):
        again = Kept(point)
        # So much later that every question asked anew would find the time up.
        outcome(config, MetricsLog(tmp_path / f"{number}.jsonl"), again, ticking(1000.0), 60.0, epochs=50)
        spent = unpack(*point)["replay"]["budget"]["elapsed"]
        assert abs(len(again.points) + number + 1 - len(whole.points)) <= 2
        assert spent <= 80


@pytest.mark.parametrize("warmup", [0, 20])
def test_under_a_budget_any_point_alone_is_enough(
    warmup: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves with the work: batches, lessons and what they are worth come out the same."""
    now, ask, make = [0.0], Lesson.ask, Supply.batch

    def slow_ask(*given: Any) -> Any:
        now[0] += 0.5
        return ask(*given)

    def slow_make(*given: Any) -> Any:
        now[0] += 4.0
        return make(*given)

    monkeypatch.setattr(Lesson, "ask", slow_ask)
    monkeypatch.setattr(Supply, "batch", slow_make)
    config, more = compose_config(["data=synthetic"]), {"warmup": warmup, "epochs": 50, "steps": 12}
    whole = Kept()
    expected = outcome(config, MetricsLog(tmp_path / "whole.jsonl"), whole, lambda: now[0], 60.0, **more)
    assert len(whole.points) > 10
    for number, point in enumerate(whole.points):
        now[0] = 1000.0 * number
        again = MetricsLog(tmp_path / f"{number}.jsonl")
        assert outcome(config, again, Kept(point), lambda: now[0], 60.0, **more) == expected


def test_bits_and_strides_survive() -> None:
    wide = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tree = {
        "a": [wide, torch.tensor(3), (1, 2.5)],
        7: {"nan": float("nan"), "inf": float("-inf"), "none": None, "true": True},
        "t": wide[:, :, 0, 0].T,
        "view": torch.arange(10)[::2],
    }
    found = unpack(*pack(tree))
    assert found["a"][0].stride() == wide.stride()
    assert torch.equal(found["a"][0], wide)
    assert found["a"][1:] == [torch.tensor(3), (1, 2.5)]
    assert found[7]["nan"] != found[7]["nan"]
    assert (found[7]["inf"], found[7]["none"], found[7]["true"]) == (float("-inf"), None, True)
    assert torch.equal(found["t"], tree["t"])
    assert torch.equal(found["view"], torch.arange(10)[::2])
    with pytest.raises(TypeError, match="Generator has no place"):
        pack({"rng": torch.Generator()})
    with pytest.raises(ValueError, match="not a packed state"):
        unpack({}, '{"tensor": "0", "stride": []}')
