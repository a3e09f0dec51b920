"""What a run leaves behind: nothing lost, nothing silent, nothing from outside."""

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fl_cmi.report import figures, summary
from fl_cmi.report.html import write_report
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.report.table import print_summary
from fl_cmi.report.units import byte_size, duration, percent

SUMMARY: dict[str, Any] = {
    "strategy": "fed_cmi",
    "rounds": 3,
    "seed": 7,
    "student": {"accuracy_last": 0.7213, "accuracy_best": 0.7294, "round_best": 2},
    "ensemble": {"accuracy": 0.8634},
    "average": {"accuracy": None},
    "clients": [
        {"client": 0, "accuracy": 0.312, "num_examples": 12345, "architecture": "ConvNet"},
        {"client": 1, "accuracy": 0.4, "num_examples": 9, "architecture": "LeNet"},
    ],
    "gap": 0.1421,
    "digest": "ab" * 32,
    "seconds": {"local": 30.0, "synthesis": 10.0, "total": 40.0},
    "bytes": {"up": 12_345_678, "down": 999},
    "partition": {
        "name": "dirichlet_class",
        "params": {"alpha": 0.1},
        "hash": "3f" * 32,
        "notes": ["uneven"],
    },
    "commit": None,
    "versions": {"torch": "2.0"},
    "disclosed": ["model parameters", "examples per class"],
    "failures": [{"round": 1, "client": 1, "kind": "raised", "message": "[Errno 2] <b>gone</b> & lost"}],
    "config": {"local": {"lr": 0.05, "schedule": None, "augment": True}, "model": ["conv", {"width": 8}]},
}


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.steps": torch.tensor(3)}


# Metrics


def test_metrics_round_trip_with_scalars_of_all_kinds(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    log.write(
        "evaluate",
        round=np.int64(1),
        accuracy=torch.tensor(0.5),
        best=np.float32(0.25),
        note="é\n2",
        none=None,
    )
    assert len(MetricsLog.read(log.path)) == 1, "a line must be on disk at once"
    log.write("synthesis", terms={"bn": np.float64(2)}, sizes=torch.tensor([1, 2]), sure=np.bool_(True))
    assert MetricsLog.read(log.path) == [
        {"event": "evaluate", "round": 1, "accuracy": 0.5, "best": 0.25, "note": "é\n2", "none": None},
        {"event": "synthesis", "terms": {"bn": 2.0}, "sizes": [1, 2], "sure": True},
    ]


@pytest.mark.parametrize(
    "value", [float("nan"), torch.tensor(float("inf")), np.float32("nan"), {"bn": float("nan")}]
)
def test_metrics_refuse_what_is_not_finite_and_name_it(tmp_path: Path, value: Any) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"synthesis\.loss"):
        log.write("synthesis", round=1, loss=value)
    assert not log.path.exists()


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"event": "a"}\n{"event": ')
    with pytest.raises(ValueError, match=r"m\.jsonl:2"):
        MetricsLog.read(tmp_path / "m.jsonl")


# Summary


def test_digest_ignores_order_strides_and_gradients() -> None:
    turned = state()["conv.weight"].t().contiguous().t().requires_grad_()
    assert not turned.is_contiguous()
    assert summary.digest({"bn.steps": torch.tensor(3), "conv.weight": turned}) == summary.digest(state())


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"bn.steps": torch.tensor(4)},
        lambda s: s | {"bn.steps": torch.tensor(3, dtype=torch.int32)},
        lambda s: s | {"bn.steps": torch.tensor([3])},
        lambda s: s | {"conv.weight": s["conv.weight"].reshape(3, 2)},
        lambda s: s | {"conv.weight": torch.nextafter(s["conv.weight"], torch.tensor(9.0))},
        lambda s: s | {"more": torch.empty(0)},
        lambda s: {"conv.weight": s["conv.weight"], "bn.count": s["bn.steps"]},
        lambda s: {"conv.weight": s["conv.weight"]},
    ],
)
def test_digest_changes_with_every_part(change: Any) -> None:
    assert summary.digest(change(state())) != summary.digest(state())


def test_digest_is_sha256_over_the_stated_bytes() -> None:
    # printf 'w\0torch.float32\0(1,)\0\0\0\200\077' | sha256sum, where 0x3f800000 is 1.0
    expected = "0443fd42"
    assert summary.digest({"w": torch.ones(1)})[:8] == expected
    assert len(summary.digest({"w": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(True)})) == 64


def test_versions_are_sound() -> None:
    assert summary.versions()["torch"] == torch.__version__.split("+")[0]
    assert {"python", "numpy"} <= set(summary.versions())


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_is_that_of_the_packages_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which git sets for hooks, and which would point to the repository that is committed to.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(summary, "PACKAGE", tmp_path)
    commit = summary.commit.__wrapped__  # a process asks once
    file = tmp_path / "__init__.py"

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    file.write_text("one = 1\n")
    git("commit", "--quiet", "--allow-empty", "--message", "nothing of the package")
    assert commit() is None
    git("add", file.name)
    git("commit", "--quiet", "--message", "the package")
    head = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    (tmp_path / "untracked").touch()
    assert commit() == head
    file.write_text("two = 2\n")
    assert commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    summary.write_json(path, {"gap": np.float64(0.5), "n": torch.tensor(2)})
    assert json.loads(path.read_text()) == {"gap": 0.5, "n": 2}
    with pytest.raises(ValueError, match=r"summary\.gap"):
        summary.write_json(path, {"gap": float("nan")})
    assert json.loads(path.read_text())["gap"] == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


# Progress


def test_phases_add_up_also_nested_and_when_they_fail() -> None:
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    for _ in range(3):
        with progress.phase("round", total=2) as outer:
            with progress.phase("synthesis") as inner:
                clock.now += 2
                inner.advance()
            clock.now += 1
            outer.advance(2)
    with contextlib.suppress(KeyError), progress.phase("synthesis"):
        clock.now += 4
        raise KeyError
    assert progress.seconds == {"round": 9.0, "synthesis": 10.0}


def test_a_phase_inside_its_own_name_is_counted_once() -> None:
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    with progress.phase("local"), progress.phase("local"):
        clock.now += 5
    assert progress.seconds == {"local": 5.0}


def test_eta_goes_by_the_steps_so_far() -> None:
    clock = Clock()
    with Progress(quiet=True, clock=clock).phase("distillation", total=10) as phase:
        assert phase.eta is None
        clock.now += 6
        phase.advance(3)
        assert phase.eta == pytest.approx(14)
        phase.advance(7)
        assert phase.eta is None


def test_without_a_terminal_there_are_few_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    clock, stream = Clock(), StringIO()
    progress = Progress(console=Console(file=stream), clock=clock)
    with caplog.at_level(logging.INFO), progress.phase("synthesis", total=250) as phase:
        for step in range(250):
            clock.now += 0.1
            phase.advance(note=f"loss {step}")
    assert stream.getvalue() == ""
    assert caplog.messages[0] == "synthesis  started, 250 steps"
    assert caplog.messages[-1] == "synthesis  250/250  25.0 s  loss 249  done"
    assert len(caplog.messages) == 4, "start, after 10 s, after 20 s, end"


def test_short_inner_phases_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress(console=Console(file=StringIO()), clock=clock)
    with caplog.at_level(logging.INFO), progress.phase("round"):
        for _ in range(500):
            with progress.phase("synthesis", total=1) as phase:
                clock.now += 0.01
                phase.advance()
    assert len(caplog.messages) <= 6
    assert progress.seconds["synthesis"] == pytest.approx(5)


def test_on_a_terminal_the_finished_lines_stay() -> None:
    clock, stream = Clock(), StringIO()
    console = Console(file=stream, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    progress = Progress(console=console, clock=clock)
    with progress.phase("round"):
        for _ in range(2):
            with progress.phase("synthesis", total=200) as phase:
                clock.now += 6.15
                phase.advance(200, note="loss [1]")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n")
    last = [line.rstrip() for line in plain.splitlines() if line.strip()][-2:]
    assert last[0].split() == ["round", "12.3", "s"]
    assert last[1].split() == ["synthesis", "2", "x", "200/200", "12.3", "s", "loss", "[1]"]


# Table and units


def test_units_read_well() -> None:
    assert [duration(s) for s in (0.041, 12.34, 119.97, 200, 7500)] == [
        "0.04 s",
        "12.3 s",
        "2 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [byte_size(n) for n in (0, 999, 1000, 999_960, 12_345_678)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.0 MB",
        "12.3 MB",
    ]
    assert (percent(0.8341), percent(None)) == ("83.41 %", "-")


def test_table_tells_all_within_80_columns() -> None:
    stream = StringIO()
    print_summary(SUMMARY, Console(file=stream, width=80))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for row in (
        r"1 +40\.00 % +9 +LeNet",
        r"parameter average +- +architectures differ",
        r"ensemble +86\.34 %",
        r"student, last round +72\.13 %",
        r"student, best round \(2\) +72\.94 %",
        r"gap +14\.21",
        r"local +30\.0 s +75 %",
        r"bytes up.+12\.3 MB +12,345,678 bytes",
        r"examples per class",
        r"round 1, client 1, raised: \[Errno 2\] <b>gone</b> & lost",
    ):
        assert re.search(row, text), row


def test_table_takes_a_run_without_ensemble() -> None:
    stream = StringIO()
    lean = SUMMARY | {"ensemble": {"accuracy": None}, "gap": None, "failures": []}
    print_summary(lean, Console(file=stream, width=80))
    assert re.search(r"ensemble +-", stream.getvalue())
    assert re.search(r"Failures\n +none", stream.getvalue())


# Figures


def png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (60, 100)])
def test_heatmap_is_a_picture_of_sane_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    counts = np.random.default_rng(0).integers(0, 900, shape)
    figures.partition_heatmap(counts, [f"class {c}" for c in range(shape[1])], tmp_path / "p.png")
    assert all(300 <= side <= 3000 for side in png_size(tmp_path / "p.png"))


def test_heatmap_takes_empty_clients(tmp_path: Path) -> None:
    figures.partition_heatmap(np.zeros((2, 3), dtype=np.int64), ["a", "b", "c"], tmp_path / "p.png")
    assert png_size(tmp_path / "p.png")


ROWS = [
    {"event": kind, "round": number, "epoch": epoch, **values}
    for number in (1, 2)
    for epoch in (1, 2, 3)
    for kind, values in (
        ("synthesis", {"bn": 30.0 / epoch, "disagreement": -0.2 * epoch}),
        ("distillation", {"loss": 1.0 / epoch}),
        ("evaluate", {"accuracy": 0.1 * epoch + 0.2 * number}),
        ("partition", {"sizes": [1, 2]}),
    )
]


@pytest.mark.parametrize("rows", [ROWS, [], [{"event": "evaluate", "round": 1, "accuracy": 0.5}], ROWS[:1]])
def test_curves_are_drawn_from_whatever_was_logged(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    figures.curves(rows, tmp_path / "c.png", ensemble=0.9)
    assert all(300 <= side <= 3000 for side in png_size(tmp_path / "c.png"))


def test_rounds_follow_each_other_on_the_axis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures.curves(ROWS, tmp_path / "c.png", ensemble=0.9, average=0.3)
    accuracy, losses = drawn[0].axes
    np.testing.assert_allclose(accuracy.lines[0].get_xdata(), [1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0.3, 0.4, 0.5, 0.5, 0.6, 0.7])
    assert [line.get_ydata()[0] for line in accuracy.lines[1:3]] == [0.9, 0.3]
    labels = [line.get_label() for line in losses.lines[:3]]
    assert labels == ["bn", "disagreement", "distillation: loss"]
    np.testing.assert_allclose(losses.lines[0].get_ydata(), [30, 15, 10, np.nan, 30, 15, 10])
    figures.curves([row | {"epoch": None} for row in ROWS if row["epoch"] == 1], tmp_path / "c.png")
    np.testing.assert_allclose(drawn[1].axes[1].lines[0].get_ydata(), [30, 30])


def test_rounds_of_averages_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Most strategies log nothing but rounds; where something was looked at within, that is the course."""
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    rows = [{"event": "round", "round": k, "bytes": 5, "accuracy": k / 10} for k in (1, 2, 3, 4)]
    del rows[2]["accuracy"]  # not tested
    figures.curves(rows, tmp_path / "c.png", average=0.3)
    (axes,) = drawn[0].axes
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1, 0.2, 0.4])
    both = [*ROWS, *({"event": "round", "round": k, "accuracy": 0.5} for k in (1, 2))]
    figures.curves(both, tmp_path / "c.png")
    assert len(drawn[1].axes[0].lines[0].get_xdata()) == 6


def test_ticks_say_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures.curves([{"event": "evaluate", "round": 1, "accuracy": 0.75}], tmp_path / "c.png")
    (axes,) = drawn[0].axes
    axes.set_yticks([0.725, 0.75, 0.775])
    drawn[0].draw_without_rendering()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["72.5 %", "75.0 %", "77.5 %"]


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_shown_in_gray(channels: int, tmp_path: Path) -> None:
    x = torch.zeros(4, channels, 8, 8)
    x[:, 0] = 1.0
    figures.synthetic_grid(x, torch.tensor([0, 1, 0, 1]), ["a", "b"], tmp_path / "g.png", per_class=2)
    with Image.open(tmp_path / "g.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    assert abs(pixels[12 + 32, -12 - 32] - 255 / channels) <= 1


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_grid_shows_pixels_where_they_belong(tmp_path: Path, channels: int, side: int) -> None:
    # Class 0 black, class 2 white, class 1 has none: the middle row stays the gray of empty places.
    x = torch.cat([torch.zeros(3, channels, side, side), torch.ones(2, channels, side, side)])
    figures.synthetic_grid(
        x, torch.tensor([0, 0, 0, 2, 2]), ["zero", "one", "two"], tmp_path / "g.png", per_class=3
    )
    width, height = png_size(tmp_path / "g.png")
    pitch, margin = 64 + 3, 12
    assert height == 3 * pitch - 3 + 2 * margin
    with Image.open(tmp_path / "g.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    right = width - margin - 64 // 2
    rows = [pixels[margin + row * pitch + 32, right - 2 * pitch] for row in range(3)]
    assert rows[0] == 0
    assert abs(rows[1] - 255 * figures.EMPTY) <= 1
    assert rows[2] == 255
    assert abs(pixels[margin + 2 * pitch + 32, right] - 255 * figures.EMPTY) <= 1, (
        "only two images of class 2"
    )
    black = (pixels[margin : margin + 64, width - margin - 3 * pitch + 3 : width - margin] == 0).sum()
    assert black == 3 * 64 * 64, "whole pixels, neither cut nor smoothed"


# HTML


def test_page_stands_alone_and_shows_all(tmp_path: Path) -> None:
    figures.partition_heatmap(np.ones((2, 3), dtype=np.int64), ["a", "b", "c"], tmp_path / "partition.png")
    figures.curves(ROWS, tmp_path / "curves.png")
    page = write_report(tmp_path, SUMMARY, command="python -m fl_cmi.simulate 'a=<x>'").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "&lt;b&gt;gone&lt;/b&gt; &amp; lost" in page
    assert "<b>gone" not in page
    for text in (
        "72.13 %",
        "72.94 %",
        "86.34 %",
        "14.21",
        "12,345,678",
        "3f" * 32,
        "ab" * 32,
        "examples per class",
    ):
        assert text in page, text
    for text in (
        "local.lr",
        "local.schedule",
        "null",
        "[conv, {width: 8}]",
        "&#x27;a=&lt;x&gt;&#x27;",
        "uneven",
    ):
        assert text in page, text


def test_page_of_a_run_without_pictures_or_ensemble(tmp_path: Path) -> None:
    lean = SUMMARY | {"ensemble": {"accuracy": None}, "gap": None, "failures": [], "seconds": {}}
    page = write_report(tmp_path, lean).read_text()
    assert "<img" not in page
    assert page.count("<section>") == page.count("</section>")
