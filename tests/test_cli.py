"""The command line: what it prints, and one line and exit code 2 for a user's mistake."""

from functools import partial
from pathlib import Path

import pytest
import torch
from calling import call_main, complaint

from fl_cmi.simulate import main

call = partial(call_main, main)

TINY = [
    "data=synthetic",
    "partition.alpha=1.0",
    "local.epochs=1",
    "synthesizer.batch_size=8",
    "backend=local",
    "server_threads=1",
]
QUICK = [*TINY, "model.width=4", "schedule.epochs=1", "schedule.batches=1", "schedule.steps=1"]


def test_the_last_line_is_the_run_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *QUICK, "hydra.run.dir=here") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "here")
    assert {"summary.json", ".hydra"} <= {path.name for path in (folder / "here").iterdir()}


MISTAKES = {
    "strategy=nope": "fed_cmi",
    "data=nope": "fashion_mnist",
    "colour=red": "colour",
    "local.colour=red": "colour",
    "partition.alpha=0": "partition.alpha=0: ",
    "rounds=0": "rounds=0: ",
    "num_clients=0": "num_clients=0: ",
    "seed=abc": "seed=abc: ",
    "num_clients=100000": "num_clients=100000: ",
    "clients_per_round=9": "clients_per_round=9: ",
    "data=cifar10 data.root=/nowhere": "data.root=/nowhere: ",
    "data=fashion_mnist data.root=/nowhere": "data.root=/nowhere: ",
    "model=lenet": "synthesizer",
    "model=lenet data.side=4": "model=LeNet: ",
    "data.side=2": "model",
    "device=tpu": "device=tpu: ",
    "local.epochs=0": "local.epochs=0: ",
    "local.epochs=many": "local.epochs=many: ",
    "combine.saturation=abc": "combine.saturation=abc: ",
    "local.optimizer.lr=-1": "local.optimizer=",
    "distiller.optimizer.lr=fast": "distiller.optimizer.lr=fast: ",
    "pool.capacity=0": "pool.capacity=0: ",
    "schedule=alternate": "synthesizer.inversion.source=",
    "distiller.mixup=2": "distiller.mixup=2: ",
    "combine.saturation=0": "combine.saturation=0: ",
    "schedule.epochs=0": "schedule.epochs=0: ",
    "partition.alpha=abc": "partition.alpha=abc: ",
    "+partition.colour=red": "colour",
    "backend.timeout=-1": "backend.timeout=-1",
    "rounds=": "rounds",
    "rounds": "rounds",
    "server_threads=0": "server_threads=0: ",
    "budget_s=-1": "budget_s=-1: ",
    "budget_clock=sun": "budget_clock=sun: ",
    "precision=half": "precision=half: exact or fast",
    "synthesizer=dafl synthesizer.teachers=99": "synthesizer.teachers=99: an integer from 1 to ",
    "synthesizer=dafl synthesizer.teachers=0": "synthesizer.teachers=0: an integer >= 1, or null",
    "synthesizer=dafl synthesizer.teachers=1": "synthesizer.teachers=1: null, because combine=by_class_counts ",
    "on_client_failure=cry": "on_client_failure=cry: ",
}
"""Overrides, and what the line has to tell."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if mistake.startswith("data=fashion_mnist"):
        monkeypatch.setattr("fl_cmi.data.fashion_mnist.DEBIAN", Path("/nowhere"))
    code = call(monkeypatch, *TINY, *mistake.split())
    said = capsys.readouterr()
    assert code == 2
    assert MISTAKES[mistake] in complaint(said.err)
    assert "Traceback" not in said.out
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is there")
def test_cuda_without_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *TINY, "device=cuda") == 2
    assert "fl_cmi: device=cuda: " in capsys.readouterr().err
    assert list(folder.iterdir()) == []
