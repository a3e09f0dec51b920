"""How an un-federated run and the measures of a synthetic set read."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_report import ROWS, SUMMARY

from fl_cmi.bank import Pool
from fl_cmi.report import figures
from fl_cmi.report.folder import saving_on_failure, write_results
from fl_cmi.report.html import write_distillation, write_report
from fl_cmi.report.measured import measured_rows
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.origin import Origin
from fl_cmi.report.table import print_distillation, print_summary

SYNTHETIC: dict[str, Any] = {
    "images": 2000,
    "balance": 0.9817,
    "confidence": 0.7123,
    "aimed": 0.6631,
    "frechet": 12.3456,
    "diversity": 3.25,
    "diversity_real": 4.5,
    "precision": 0.4321,
    "recall": 0.1234,
}

DISTILLED: dict[str, Any] = {
    "seed": 3,
    "teacher": {"accuracy": 0.9512, "architecture": "WideResNet"},
    "student": {
        "accuracy_last": 0.8611,
        "accuracy_best": 0.8702,
        "epoch_best": 40,
        "architecture": "ConvNet",
    },
    "agreement": 0.8777,
    "gap": 0.0901,
    "digest": "cd" * 32,
    "seconds": {"teacher": 30.0, "synthesis": 10.0, "total": 40.0},
    "teacher_passes": 12345,
    "images": 51200,
    "synthetic": SYNTHETIC,
    "commit": None,
    "versions": {"torch": "2.0"},
    "config": {"teacher": {"checkpoint": None}},
}

MEASURES = ("0.982", "71.23 %", "66.31 %", "12.35", "3.25", "4.5", "43.21 %", "12.34 %", "2,000")


def printed(show: Any, summary: dict[str, Any]) -> str:
    stream = StringIO()
    show(summary, Console(file=stream, width=80))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    return stream.getvalue()


def test_table_of_a_distillation_tells_all_within_80_columns() -> None:
    text = printed(print_distillation, DISTILLED)
    for row in (
        r"teacher +95\.12 % +WideResNet",
        r"student, at the end +86\.11 % +ConvNet",
        r"student, best look \(40\) +87\.02 % +chosen on test data",
        r"agreement +87\.77 %",
        r"gap +9\.01",
        r"images synthesized +51,200",
        r"teacher passes +12,345",
        r"Frechet distance +12\.35",
        r"synthesis +10\.0 s +25 %",
    ):
        assert re.search(row, text), row


def test_page_of_a_distillation_stands_alone_and_shows_all(tmp_path: Path) -> None:
    figures.curves(ROWS, tmp_path / "curves.png", teacher=0.9512)
    page = write_distillation(tmp_path, DISTILLED, command="python -m fl_cmi.distill 'a=<x>'").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("<section>") == page.count("</section>")
    values = ("95.12 %", "86.11 %", "87.02 %", "87.77 %", "9.01", "12,345", "51,200", "cd" * 32, "&lt;x&gt;")
    for text in (*values, *MEASURES, "teacher.checkpoint", "to report only"):
        assert text in page, text


@pytest.mark.parametrize("show", [print_summary, None])
def test_a_federated_run_shows_the_measures_too(tmp_path: Path, show: Any) -> None:
    def text(synthetic: dict[str, Any] | None) -> str:
        summary = SUMMARY | {"synthetic": synthetic}
        return printed(show, summary) if show else write_report(tmp_path, summary).read_text()

    assert all(value in text(SYNTHETIC) for value in MEASURES)
    assert "Frechet" not in text(None)


def test_every_measure_has_a_row() -> None:
    """A change of one value changes the rows."""
    for name in SYNTHETIC:
        assert measured_rows(SYNTHETIC | {name: 17}) != measured_rows(SYNTHETIC), name
    assert measured_rows(None) == []


def test_the_teacher_is_a_line_among_the_curves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures.curves(ROWS, tmp_path / "c.png", teacher=0.9)
    line = drawn[0].axes[0].lines[1]
    assert line.get_label() == "teacher (bound) 90.00 %"
    assert list(line.get_ydata()) == [0.9, 0.9]


def filled() -> Pool:
    pool = Pool()
    pool.add(torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1]), torch.zeros(3, 2), client=7)
    return pool


def test_a_failure_saves_the_pool_and_says_where(tmp_path: Path) -> None:
    pool = filled()
    with (
        pytest.raises(FloatingPointError, match=r"bn broke; the 3 images .*pool\.safetensors"),
        saving_on_failure(pool, tmp_path / "new", Origin()),
    ):
        raise FloatingPointError("bn broke")
    saved = load_file(tmp_path / "new" / "pool.safetensors")
    assert torch.equal(saved["pixels"], pool.pixels)
    assert saved["clients"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("pool", [None, Pool()])
def test_a_failure_before_the_first_image_says_so(tmp_path: Path, pool: Pool | None) -> None:
    with (
        pytest.raises(FloatingPointError, match="bn broke; no image had been kept yet"),
        saving_on_failure(pool, tmp_path, Origin()),
    ):
        raise FloatingPointError("bn broke")
    assert list(tmp_path.iterdir()) == []


def test_other_failures_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyError), saving_on_failure(filled(), tmp_path, Origin()):
        raise KeyError("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_filled_and_the_summary_comes_last(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl").write("evaluate", round=1, epoch=1, accuracy=0.5)
    seen: list[set[str]] = []
    student = {"w": torch.arange(6.0).reshape(2, 3).T}
    write_results(
        tmp_path,
        DISTILLED,
        student,
        filled(),
        ["a", "b"],
        lambda: seen.append({f.name for f in tmp_path.iterdir()}),
    )
    # summary.json is the last of all: where it is, the rest is too.
    expected = {"metrics.jsonl", "curves.png", "synthetic.png", "student.safetensors"}
    assert seen == [expected]
    assert torch.equal(load_file(tmp_path / "student.safetensors")["w"], student["w"])
    assert json.loads((tmp_path / "summary.json").read_text())["images"] == 51200
