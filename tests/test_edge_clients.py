"""Clients with one image or one class, classes that nobody owns, and batch norm whose variance is zero."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fl_cmi.simulate
from fl_cmi.batchnorm import statistics_distance
from fl_cmi.compose import Config, compose_config
from fl_cmi.data.dataset import Dataset
from fl_cmi.partition import Partition
from fl_cmi.simulate import run
from fl_cmi.synthesis.terms.batch_norm_kl import DIRECTIONS, BatchNormKL

TINY = (
    "data=synthetic",
    "num_clients=3",
    "model.width=4",
    "local.epochs=1",
    "backend=local",
    "rounds=2",
    "server_threads=1",
)
INVERSION = ("schedule.epochs=1", "schedule.batches=1", "schedule.steps=2", "synthesizer.batch_size=8")


def edges(config: Config, data: Dataset) -> Partition:
    """Client 0 has one image, client 1 one class, and class 3 belongs to nobody (or to the server)."""
    own = [np.flatnonzero(data.train.y.numpy() == label) for label in range(4)]
    held_out = own[3][: config["held_out"]] if config["held_out"] else None
    mixed = np.concatenate([own[0][:15], own[1][20:30]])
    return Partition("edges", {}, (own[2][:1], own[1][:20], mixed), held_out=held_out)


@pytest.fixture(autouse=True)
def _edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is of these clients."""
    monkeypatch.setattr(fl_cmi.simulate, "make_partition", edges)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "overrides",
    [
        "strategy=fedavg",
        "strategy=fedavg local.batch_size=1",
        "strategy=fedavg local.prior_correction=true",
        "strategy=fedavg buffers=recalibrate",
        "strategy=fedavg buffers=keep_local",
        "strategy=fednova",
        "strategy=scaffold",
        "strategy=feddistill local.start=own",
        "strategy=feddistill_plus",
        "strategy=fedgen",
        "strategy=fed_ensemble",
        "strategy=feddf held_out=20 strategy.stopping.steps=4",
        " ".join(["strategy=fed_cmi", *INVERSION]),
    ],
)
def test_every_strategy_takes_them(overrides: str, tmp_path: Path) -> None:
    summary = run(
        compose_config([*TINY, *overrides.split()]), tmp_path
    )  # no number in JSON is NaN or infinite
    assert summary["failures"] == []
    assert [client["num_examples"] for client in summary["clients"]] == [1, 20, 25]


def test_they_are_drawn(tmp_path: Path) -> None:
    run(compose_config([*TINY, "strategy=fed_cmi", "combine=mean_probs", *INVERSION]), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"partition", "curves", "synthetic"}


@pytest.mark.parametrize("constant", [False, True])
def test_no_variance_in_a_teacher_or_in_a_batch_is_no_nan(constant: bool) -> None:
    layer = torch.nn.BatchNorm2d(3)
    assert layer.running_var is not None and layer.running_mean is not None
    layer.running_var.zero_()
    f = torch.zeros(4, 3, 2, 2) if constant else torch.randn(4, 3, 2, 2)
    f.requires_grad_()
    distances = [statistics_distance({layer: f})]
    distances += [
        BatchNormKL(direction=name).layer(f, layer.running_mean, layer.running_var)  # type: ignore[arg-type]
        for name in DIRECTIONS
    ]
    for distance in distances:
        (gradient,) = torch.autograd.grad(distance, f)
        assert distance.isfinite() and gradient.isfinite().all()
