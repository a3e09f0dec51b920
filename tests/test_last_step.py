"""Compression as the last step of a simulation."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call_main, complaint
from rich.console import Console
from safetensors.torch import load_file
from small_compression import POOL, TINY, compress, config_of

from fl_cmi.checkpoint.begin import differing
from fl_cmi.compose import build, compose_config
from fl_cmi.compression.low_bit import LowBit
from fl_cmi.last_step import calibration_of, reason
from fl_cmi.report.table import print_summary
from fl_cmi.simulate import main as simulate_main
from fl_cmi.simulate import run as simulate
from fl_cmi.types import ConfigError
from fl_cmi.verify import findings


def test_the_last_step_of_a_simulation(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    compressed = summary["compressed"]
    assert compressed["compression"]["w"] == 4
    assert compressed["compression"]["executed"] is False
    assert compressed["model"]["accuracy"] == summary["student"]["accuracy_last"]
    assert compressed["student"]["bytes"] == (finished / "compressed.safetensors").stat().st_size
    pool = load_file(finished / "pool.safetensors")
    assert set(pool) == {"pixels", "targets", "labels", "clients"}
    assert pool["pixels"].dtype == torch.uint8
    assert len(pool["pixels"]) == 32


def test_the_last_step_is_shown(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(summary, console)
    line = "W4A8 simulated, ends at 8 bits: "
    assert line in console.export_text()
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert line in page and "<h2>Compressed</h2>" in page


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("calibration", 0, "at least one image"), "at least one image"),
        (ConfigError("model", "X", "another one"), "model=X: another one"),
        (RuntimeError("shapes differ\nand more"), "RuntimeError: shapes differ"),
        (RuntimeError(), "RuntimeError: no reason given"),
    ],
)
def test_a_failure_is_one_line(error: Exception, said: str) -> None:
    assert reason(error) == said


def test_a_last_step_that_fails_costs_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "RuntimeError: shapes differ"

    def fail(*_: object) -> None:
        raise RuntimeError("shapes differ\nand more")

    monkeypatch.setattr(LowBit, "__call__", fail)
    assert call_main(simulate_main, monkeypatch, *TINY, "compression=w4a8", "hydra.run.dir=run") == 1
    line = complaint(capsys.readouterr().err)
    assert line.startswith(f"fl_cmi: compression: {said}; the run before it is finished")
    run_dir = folder / "run"
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["compressed"] == {"failure": said}
    assert not list(findings(run_dir))
    names = {path.name for path in run_dir.iterdir()}
    assert {"student.safetensors", "pool.safetensors", "report.html"} <= names
    assert not {"checkpoint", "compressed.safetensors"} & names
    assert f"failed: {said}" in (run_dir / "report.html").read_text(encoding="utf-8")
    monkeypatch.undo()
    compress(folder / "again", f"run_dir={run_dir}", *POOL, "calibration=pool")


def test_a_run_may_go_on_without_its_last_step() -> None:
    begun = compose_config([*TINY, "compression=w4a8"])
    assert not differing(begun, compose_config([*TINY, "compression=none"]))


def test_nothing_is_compressed_or_saved_unasked(tmp_path: Path) -> None:
    assert "compressed" not in simulate(compose_config(TINY), tmp_path)
    assert not (tmp_path / "pool.safetensors").exists()
    assert not (tmp_path / "compressed.safetensors").exists()


def test_strategies_without_images_have_no_last_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compression=LowBit: none, because only strategy=fed_cmi"):
        simulate(compose_config([*TINY, "strategy=fedavg", "compression=w4a8"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_int8_as_a_last_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    assert call_main(simulate_main, monkeypatch, *TINY, "compression=int8", "hydra.run.dir=run") == 0
    assert "W8A8 int8 kernels: " in capsys.readouterr().out
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))["compressed"]
    assert summary["student"]["bytes"] == (folder / "run" / "int8.pt2").stat().st_size
    assert summary["compression"]["executed"] is True
    assert summary["compression"]["int8_kernels"] > 0
    assert not list(findings(folder / "run"))


def test_the_last_step_calibrates_as_the_command_does() -> None:
    config = config_of("data=fashion_mnist", "model.checkpoint=x")

    def parts(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [parts(part) for part in value]
        return (type(value), parts(list(vars(value).values()))) if hasattr(value, "__dict__") else value

    ours = calibration_of(build(config["augment"], "augment"))
    assert parts(ours) == parts(build(config["calibrate"], "calibrate"))
