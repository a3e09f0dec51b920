"""Whole runs of the methods in which only the server distils, on made-up data, with one architecture or several."""

import copy
import functools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import PARTITION, train_messages
from fake_side import app
from flwr.app import Message
from safetensors.torch import load_file
from test_methods import shrink

import fl_cmi.simulate
from fl_cmi.compose import compose_config, dataset
from fl_cmi.ensemble import mean_logits
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.flower.fed_ensemble import FedEnsemble, Vote
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.records import from_record, pack_update
from fl_cmi.models.convnet import ConvNet
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.sides import ServerSide
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError, Task, Update

pytestmark = pytest.mark.usefixtures("without_pictures")

TINY = (
    "data=synthetic",
    "partition.alpha=1.0",
    "model.width=4",
    "local.epochs=1",
    "num_clients=3",
    "server_threads=1",
    "backend=local",
)
MIXED = ("teachers=mixed", "local.start=own")
FEDDF = ("strategy=feddf", "held_out=60", "strategy.stopping={steps:4,check_every:2,patience:4}")
METHODS = {
    "feddf": FEDDF,
    "feddf noise": (*FEDDF, "strategy.inputs=noise"),
    "feddf drop_worst, surest": (*FEDDF, "strategy.drop_worst=true", "strategy.surest=0.5"),
    "fed_ensemble": ("strategy=fed_ensemble",),
    **{name: (f"method={name}",) for name in ("dense", "co_boosting", "fedftg", "f_adi", "f_dafl")},
    "dense as released": ("method=dense", "synthesizer.inversion.terms.bn.hook=empty"),
    "fed_cmi": (),
}


@functools.cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    config: dict[str, Any] = shrink(compose_config([*TINY, *overrides]))
    return config


def simulate(folder: Path, *overrides: str) -> dict[str, Any]:
    return run(copy.deepcopy(composed(overrides)), folder)


def test_the_ensemble_of_the_summary_is_by_the_methods_own_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the weights that Co-Boosting has learnt, and by FedDF's mean of logits whatever `combine` is."""
    rules = []
    measure = fl_cmi.simulate.measure

    def watched(outcome: Any, side: Any, combine: Any, pool: Any) -> dict[str, Any]:
        rules.append(combine)
        return measure(outcome, side, combine, pool)

    monkeypatch.setattr(fl_cmi.simulate, "measure", watched)
    simulate(tmp_path / "boosting", *METHODS["co_boosting"])
    simulate(tmp_path / "feddf", *FEDDF)
    assert rules[0].weights(range(3)).tolist() != pytest.approx([1 / 3] * 3)
    assert rules[1].func is mean_logits


@pytest.mark.parametrize("name", METHODS)
def test_each_runs_on_mixed_architectures(name: str, tmp_path: Path) -> None:
    summary = simulate(tmp_path, *METHODS[name], *MIXED)
    assert {client["architecture"] for client in summary["clients"]} > {"ConvNet"}
    assert summary["average"]["accuracy"] is None
    assert len(summary["digest"]) == 64
    assert any(line.startswith("server needs") for line in summary["disclosed"])
    assert (summary["teacher_passes"] > 0) == (name != "fed_ensemble")


@pytest.mark.parametrize("name", ["feddf", "fedftg", "co_boosting"])
def test_each_runs_on_one_architecture_and_again_the_same(name: str, tmp_path: Path) -> None:
    one, other = (simulate(tmp_path / folder, *METHODS[name]) for folder in ("a", "b"))
    assert one["digest"] == other["digest"]
    assert one["average"]["accuracy"] is not None


def test_clients_without_batch_norm_may_take_part_in_dense(tmp_path: Path) -> None:
    lenet = "teachers.architectures=[${model},{_target_:fl_cmi.models.lenet.LeNet,_partial_:true}]"
    with pytest.raises(ConfigError, match="batch norm"):
        simulate(tmp_path / "refused", "method=dense", lenet, "local.start=scratch")
    skip = "synthesizer.inversion.terms.bn.missing=skip"
    summary = simulate(tmp_path / "run", "method=dense", lenet, "local.start=scratch", skip)
    assert {client["architecture"] for client in summary["clients"]} == {"ConvNet", "LeNet"}


def test_feddf_says_what_it_did_and_counts_its_teachers(tmp_path: Path) -> None:
    summary = simulate(tmp_path, *FEDDF)
    assert "server needs 54 unlabelled images of its own (proxy data)" in summary["disclosed"]
    assert "server needs 6 labelled images of its own (early stopping)" in summary["disclosed"]
    assert sum(client["num_examples"] for client in summary["clients"]) == 340
    rows = [row for row in MetricsLog.read(tmp_path / "metrics.jsonl") if row["event"] == "feddf"]
    assert len(rows) == 1
    # one student; 3 teachers a step
    assert summary["teacher_passes"] == 3 * rows[0]["steps"]


def test_feddfs_clients_get_the_student_of_their_own_architecture(tmp_path: Path) -> None:
    """They may start from the broadcast then, which is refused elsewhere."""
    mixed = ("teachers=mixed", "rounds=2")
    summary = simulate(tmp_path / "run", *FEDDF, *mixed)
    students = [row for row in MetricsLog.read(tmp_path / "run" / "metrics.jsonl") if row["event"] == "feddf"]
    # The student's own, which the shrunk convnets share, ResNet's and WideResNet's, in either round.
    assert [(row["round"], row["student"]) for row in students] == [(r, s) for r in (1, 2) for s in range(3)]
    assert summary["digest"]
    with pytest.raises(ConfigError, match="local.start"):
        simulate(tmp_path / "refused", *mixed)


def test_feddf_may_distil_the_global_student_only(tmp_path: Path) -> None:
    simulate(tmp_path, *FEDDF, *MIXED, "strategy.students=student")
    students = [row for row in MetricsLog.read(tmp_path / "metrics.jsonl") if row["event"] == "feddf"]
    assert [row["student"] for row in students] == [0]


def test_feddf_without_images_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held_out=0"):
        simulate(tmp_path / "run", "strategy=feddf")
    assert not (tmp_path / "run").exists()


def test_methods_that_need_label_counts_say_so_before_clients_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share_label_counts"):
        simulate(tmp_path / "run", "method=fedftg", "share_label_counts=false")
    assert not (tmp_path / "run").exists()


def test_a_run_of_fedftg_begins_its_rounds_at_the_average(tmp_path: Path) -> None:
    """With no steps at all the global model is the clients' average."""
    summary = simulate(tmp_path, "method=fedftg", "distiller.optimizer.lr=0.0", "schedule.iterations=1")
    # Only batch-norm buffers have moved, so weights are the average's.
    saved = load_file(tmp_path / "student.safetensors")
    other = load_file_of_fedavg(tmp_path / "fedavg")
    for name in saved:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(saved[name], other[name], atol=1e-6, rtol=0)
    assert summary["rounds"] == 1


def load_file_of_fedavg(folder: Path) -> dict[str, torch.Tensor]:
    simulate(folder, "strategy=fedavg")
    return load_file(folder / "student.safetensors")


# -------------------------------------------------------------------------------------- FedEnsemble


def test_a_vote_is_the_sum_of_logits() -> None:
    models = [ConvNet((1, 8, 8), 4, (0.5,), (0.25,), width=2).eval() for _ in range(2)]
    x = torch.rand(5, 1, 8, 8)
    found = Vote(list(models), [1, 3])(x)
    torch.testing.assert_close(found, models[0](x) + 3 * models[1](x))


def test_everybody_votes_also_those_who_were_not_drawn(tmp_path: Path) -> None:
    """Two of five clients answer; the other three hold what was sent out last."""
    config = compose_config(["data=synthetic", "model.width=4", "num_clients=5"])
    data = dataset(config)
    task = Task(data.train.shape, data.train.num_classes, data.mean, data.std)

    def network(seed: int) -> ConvNet:
        torch.manual_seed(seed)
        return ConvNet(task.shape, task.num_classes, task.mean, task.std, width=4)

    side = ServerSide(
        task,
        data.test,
        partial(network, 0),
        lambda client: network(0),
        1,
        True,
        0,
        torch.device("cpu"),
        Progress(quiet=True),
        MetricsLog(tmp_path / "metrics.jsonl"),
    )
    made = FedEnsemble(5, side)
    LocalGrid(app("{}", PARTITION), 2)
    sent = train_messages([0, 1])
    states = [network(k).state_dict() for k in (1, 2)]
    replies = [
        Message(pack_update(Update(k, n, None, state), {"loss": 0.0}), reply_to=message)
        for k, n, state, message in zip((0, 3), (1, 3), states, sent, strict=True)
    ]
    arrays, metrics = made.aggregate_train(1, replies)
    assert metrics is not None
    assert (metrics["models"], metrics["voters"]) == (3, 5)
    x = data.test.pixels(torch.arange(6))
    with torch.no_grad():
        expected = 3 * network(0).eval()(x)
        for state in states:
            model = network(0)
            model.load_state_dict(state)
            expected = expected + model.eval()(x)
        torch.testing.assert_close(made.predictor().eval()(x), expected)
    assert arrays is not None
    average = from_record(arrays)["classifier.weight"]
    torch.testing.assert_close(
        average, (states[0]["classifier.weight"] + 3 * states[1]["classifier.weight"]) / 4
    )
    # In the next round the idle clients hold that average.
    made.aggregate_train(2, replies[:1])
    with torch.no_grad():
        model = network(0)
        model.load_state_dict(made.prototypes.states[made.prototypes.own])
    assert made.vote is not None
    assert made.vote.voters == [1, 4]
    torch.testing.assert_close(made.vote.models[1].state_dict()["classifier.weight"], average)


def test_the_accuracy_of_a_run_is_the_votes(tmp_path: Path) -> None:
    """All clients of one round vote: the vote is the ensemble of mean logits."""
    summary = simulate(tmp_path, "strategy=fed_ensemble", "combine=mean_logits")
    assert summary["student"]["accuracy_last"] == summary["ensemble"]["accuracy"]
    assert summary["gap"] == 0
    data = dataset(compose_config(list(TINY)))
    model = ConvNet(data.train.shape, 4, data.mean, data.std, width=2)
    model.load_state_dict(load_file(tmp_path / "student.safetensors"))
    own = accuracy(predict(model, data.test, torch.device("cpu")), data.test)
    assert own == pytest.approx(summary["average"]["accuracy"], abs=0.011)
