"""A disk that is full: files are there as a whole or not at all, and the run ends with one line."""

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import call_main, complaint
from safetensors.torch import load_file

from fl_cmi.files import whole
from fl_cmi.report.figures import curves
from fl_cmi.report.folder import save_state
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.summary import write_json
from fl_cmi.simulate import main

TINY = (
    "data=synthetic",
    "partition.alpha=1.0",
    "num_clients=2",
    "model.width=4",
    "local.epochs=1",
    "backend=local",
    "strategy=fedavg",
    "server_threads=1",
    "hydra.run.dir=here",
)


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may be larger: the system's own refusal, for code in any language."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def table(path: Path) -> None:
    write_json(path, {"numbers": list(range(5000))})


def model(path: Path) -> None:
    save_state({"w": torch.zeros(5000)}, path)


def chart(path: Path) -> None:
    curves([{"event": "round", "round": k, "accuracy": k / 9} for k in range(9)], path)


WRITERS: dict[str, Callable[[Path], None]] = {"a.json": table, "a.safetensors": model, "a.png": chart}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_half_written_is_left(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with room(1500), pytest.raises(OSError, match="File too large") as caught:
        WRITERS[name](path)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert list(tmp_path.iterdir()) == []
    WRITERS[name](path)
    before = path.read_bytes()
    with room(1500), pytest.raises(OSError, match="File too large"):
        WRITERS[name](path)
    assert path.read_bytes() == before, "the old file stays"
    assert list(tmp_path.iterdir()) == [path]


def test_whole_passes_other_errors_and_names_the_right_format(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        with whole(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "deep" / "a.txt")
    assert list((tmp_path / "deep").iterdir()) == []
    model(tmp_path / "a.safetensors")
    assert np.array_equal(load_file(tmp_path / "a.safetensors")["w"].numpy(), np.zeros(5000))


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("first", value=1)
    with room(100), pytest.raises(OSError, match="File too large"):
        log.write("second", text="long " * 100)
    log.write("third", value=3)
    assert [row["event"] for row in MetricsLog.read(log.path)] == ["first", "third"]


@pytest.mark.parametrize("victim", ["student.safetensors", "report.html", "summary.json", "metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_next_command_works(
    victim: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace, append = Path.replace, MetricsLog.write

    def full(draft: Path, path: Path) -> Path:
        if path.name == victim:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft))
        return replace(draft, path)

    def full_log(log: MetricsLog, event: str, **fields: object) -> None:
        if victim == log.path.name and event == "round":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log.path))
        append(log, event, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        patch.setattr(MetricsLog, "write", full_log)
        assert call_main(main, patch, *TINY) == 1
    said = complaint(capsys.readouterr().err)
    line = rf"fl_cmi: No space left on device while writing \S+here/{victim}; what is there is whole"
    assert re.fullmatch(line, said)
    left = {path.name for path in (folder / "here").iterdir()}
    assert victim == "metrics.jsonl" or victim not in left
    assert "summary.json" not in left and not any(name.startswith(".") and name != ".hydra" for name in left)
    assert call_main(main, monkeypatch, "resume=here") == 0
    assert (folder / "here" / "summary.json").exists()
