"""Whole runs on made-up data: the run folder, repeatability, rounds, strategies and failing clients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fl_cmi.flower.client
import fl_cmi.simulate
from fl_cmi.compose import build, compose_config, dataset, server_side
from fl_cmi.distillation.learnt_weights import LearntWeights
from fl_cmi.flower.failure import ClientFailure
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import digest
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError, Images, Update

pytestmark = pytest.mark.usefixtures("without_pictures")

TINY = (
    "data=synthetic",
    "partition.alpha=1.0",
    "model.width=4",
    "local.epochs=2",
    "synthesizer.batch_size=16",
    "server_threads=1",
)
SCHEDULE = "schedule={epochs:2,batches:1,steps:4,evaluate_every:1}"


def simulate(folder: Path, *overrides: str, backend: str = "local") -> dict[str, Any]:
    return run(compose_config([*TINY, SCHEDULE, f"backend={backend}", *overrides]), folder)


def average(folder: Path, strategy: str, *overrides: str) -> dict[str, Any]:
    """A run of one of Flower's strategies, which have no schedule."""
    return run(compose_config([*TINY, "backend=local", f"strategy={strategy}", *overrides]), folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run, looked at by several tests."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, simulate(folder)


def test_the_folder_holds_what_was_promised(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    promised = {
        "metrics.jsonl",
        "summary.json",
        "synthetic.png",
        "curves.png",
        "partition.png",
        "student.safetensors",
        "report.html",
    }
    assert promised <= {path.name for path in folder.iterdir()}
    assert all((folder / name).stat().st_size for name in promised)
    assert (folder / "partition.png").read_bytes().startswith(b"\x89PNG")
    events = {row["event"] for row in MetricsLog.read(folder / "metrics.jsonl")}
    assert {"partition", "ensemble", "synthesis", "distillation", "evaluate", "round", "summary"} <= events


def test_the_summary_keeps_its_contract(done: tuple[Path, dict[str, Any]]) -> None:
    folder, returned = done
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(returned))
    keys = {
        "student",
        "ensemble",
        "average",
        "clients",
        "gap",
        "digest",
        "seconds",
        "bytes",
        "partition",
        "seed",
    }
    more = {"commit", "versions", "disclosed", "failures", "strategy", "rounds", "config"}
    assert keys | more <= summary.keys()
    student, ensemble = summary["student"], summary["ensemble"]
    accuracies = [student["accuracy_last"], student["accuracy_best"], ensemble["accuracy"]]
    accuracies += [summary["average"]["accuracy"], *(client["accuracy"] for client in summary["clients"])]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert student["round_best"] == 1
    assert summary["gap"] == pytest.approx(ensemble["accuracy"] - student["accuracy_last"])
    assert [client["client"] for client in summary["clients"]] == list(range(5))
    assert sum(client["num_examples"] for client in summary["clients"]) == 400
    assert {client["architecture"] for client in summary["clients"]} == {"ConvNet"}
    phases = {"setup", "local", "synthesis", "distillation", "evaluation", "total"}
    assert phases <= summary["seconds"].keys()
    assert all(summary["seconds"][phase] > 0 for phase in phases)
    assert summary["bytes"]["up"] > 0
    assert summary["bytes"]["down"] > 0
    assert summary["partition"]["name"] == "dirichlet_class"
    assert len(summary["partition"]["hash"]) == len(summary["digest"]) == 64
    assert summary["seed"] == 0
    assert summary["failures"] == []
    assert any(line.startswith("label counts") for line in summary["disclosed"])
    assert any("batch-norm" in line for line in summary["disclosed"])
    assert summary["synthetic"]["images"] == 32
    assert {"balance", "frechet", "diversity", "precision", "recall"} <= summary["synthetic"].keys()


def test_the_digest_is_the_saved_students(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    assert digest(load_file(folder / "student.safetensors")) == summary["digest"]


def test_a_run_is_repeatable_and_the_seed_counts(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    again, other = simulate(tmp_path / "a"), simulate(tmp_path / "b", "seed=1")
    assert again["digest"] == done[1]["digest"]
    assert again["partition"]["hash"] == done[1]["partition"]["hash"]
    assert other["digest"] != done[1]["digest"]


def test_rounds_with_some_of_the_clients(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "rounds=2", "clients_per_round=3")
    assert summary["rounds"] == 2
    assert len(summary["clients"]) == 3
    assert summary["student"]["round_best"] in (1, 2)
    log = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [row["clients"] for row in log if row["event"] == "ensemble"] == [3, 3]
    assert [row["round"] for row in log if row["event"] == "round"] == [1, 2]


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam"])
def test_flowers_strategies_run(strategy: str, tmp_path: Path) -> None:
    summary = average(tmp_path, strategy, "rounds=2")
    assert summary["strategy"].lower() == strategy
    assert not (tmp_path / "synthetic.png").exists()
    assert summary["synthetic"] is None
    log = [row for row in MetricsLog.read(tmp_path / "metrics.jsonl") if row["event"] == "round"]
    assert log[1]["bytes"] == 2 * log[0]["bytes"]  # the model keeps its types on the way
    if strategy == "fedavg":  # the global model is the clients' average
        assert summary["average"]["accuracy"] == summary["student"]["accuracy_last"]


def test_clients_may_keep_their_label_counts(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "share_label_counts=false")
    assert not any("label counts" in line for line in summary["disclosed"])


def test_rules_that_need_counts_are_refused_without_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share_label_counts"):
        simulate(tmp_path / "run", "share_label_counts=false", "combine=prior_corrected_logits")
    assert not (tmp_path / "run").exists()


def test_infinite_settings_survive_the_summary(tmp_path: Path) -> None:
    assert simulate(tmp_path, "combine.saturation=inf")["digest"]
    assert (tmp_path / "report.html").exists()


def test_mixed_architectures_have_no_average(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "teachers=mixed", "local.start=scratch", "local.epochs=1", "num_clients=4")
    assert summary["average"]["accuracy"] is None
    assert [client["architecture"] for client in summary["clients"]] == [
        "ConvNet",
        "ResNet",
        "WideResNet",
        "ConvNet",
    ]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("teachers=mixed", SCHEDULE), "local.start"),
        (("teachers=mixed", SCHEDULE, "local.start=own", "strategy.student_start=average"), "student_start"),
        (("teachers=mixed", "local.start=scratch", "strategy=fedavg"), "strategy"),
        (("strategy=fedavg", "save_pool=true"), "save_pool=true"),
        ((SCHEDULE, "strategy.student_start=nowhere"), "strategy.student_start"),
        ((SCHEDULE, "distiller=knowledge_within"), "distiller.loss=LayerMatch: .*one teacher"),
        (
            (
                "strategy=feddf",
                "held_out=20",
                "strategy.distiller.loss._target_=fl_cmi.distillation.layers.LayerMatch",
                "~strategy.distiller.loss.temperature",
            ),
            "distiller.loss=LayerMatch: .*one teacher",
        ),
        ((SCHEDULE, "distiller=fedftg", "share_label_counts=false"), "because distiller.targets=Owners"),
        (
            ("strategy=fedprox", "local.start=own"),
            "local.start=own: broadcast, because strategy.proximal_mu=0.001",
        ),
        (("strategy=fedavg", "strategy.fraction_train=0.5"), "strategy.fraction_train=0.5"),
        (("strategy=fedprox", "strategy.fraction_evaluate=1.0"), "strategy.fraction_evaluate=1.0"),
        (("strategy=fedavgm", "strategy.min_available_nodes=6"), "strategy.min_available_nodes=6: at most 5"),
        (("strategy=fedadam", "strategy.min_train_nodes=4", "clients_per_round=3"), "min_train_nodes=4"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: tuple[str, ...], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=key):
        run(compose_config([*TINY, "backend=local", *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_a_rounds_student_begins_and_whether_images_last(tmp_path: Path) -> None:
    digests, sizes = set(), {}
    for start, keep in (
        ("previous", "false"),
        ("previous", "true"),
        ("average", "false"),
        ("scratch", "false"),
    ):
        folder = tmp_path / f"{start}-{keep}"
        choices = (f"strategy.student_start={start}", f"strategy.keep_pool={keep}")
        digests.add(simulate(folder, "rounds=2", "schedule.steps=1", *choices)["digest"])
        log = MetricsLog.read(folder / "metrics.jsonl")
        sizes[start, keep] = [row["num_images"] for row in log if row["event"] == "synthesis"]
    assert len(digests) == 4
    assert sizes["previous", "true"] == [16, 32, 48, 64]
    assert sizes["previous", "false"] == [16, 32, 16, 32]


def test_a_prototype_is_the_average_of_the_clients_that_train_the_students_architecture(
    tmp_path: Path,
) -> None:
    given = ("teachers=mixed", "local.start=scratch", "num_clients=6", "strategy.student_start=prototype")
    config = compose_config([*TINY, *given, "model.width=16"])  # that of clients 0 and 4
    side = server_side(config, dataset(config), Progress(quiet=True), MetricsLog(tmp_path / "log"))
    strategy = build(config["strategy"], "strategy")(side=side)
    updates = [Update(k, k + 1, None, shifted(side.build(k), float(k))) for k in range(6)]

    def begun(updates: list[Update]) -> dict[str, Any]:
        return dict(strategy.start_student(updates).state_dict())

    mean = {name: (value + 5 * updates[4].state[name]) / 6 for name, value in updates[0].state.items()}
    torch.testing.assert_close(begun(updates), mean, check_dtype=False)
    # Without any, the student is the initial one, or the one of the round before.
    torch.testing.assert_close(begun(updates[1:4]), dict(side.student().state_dict()), rtol=0, atol=0)
    strategy.previous = updates[0].state
    torch.testing.assert_close(begun(updates[1:4]), updates[0].state, rtol=0, atol=0)
    torch.testing.assert_close(begun(updates), mean, check_dtype=False)


def shifted(model: nn.Module, by: float) -> dict[str, Tensor]:
    """The state of a model, with floating-point numbers that no other one has."""
    return {
        name: value + by if value.is_floating_point() else value for name, value in model.state_dict().items()
    }


def test_a_budget_ends_every_round(tmp_path: Path) -> None:
    simulate(tmp_path, "rounds=2", "budget_s=1e-9", "schedule.epochs=1000000", "strategy.keep_pool=true")
    log = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [row["num_images"] for row in log if row["event"] == "synthesis"] == [16, 32]


@pytest.fixture
def client_2_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are damaged."""
    images = fl_cmi.flower.client.client_images

    def damaged(side: Any, partition: Any, client: int) -> Images:
        if client == 2:
            raise OSError("disk is damaged")
        return images(side, partition, client)

    monkeypatch.setattr(fl_cmi.flower.client, "client_images", damaged)


@pytest.mark.usefixtures("client_2_raises")
def test_a_client_that_raises_ends_the_run_by_default(tmp_path: Path) -> None:
    with pytest.raises(ClientFailure, match=r"client 2 failed in round 1: .*disk is damaged"):
        simulate(tmp_path)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.usefixtures("client_2_raises")
def test_a_client_that_raises_is_dropped_and_named(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "on_client_failure=drop")
    assert [(failure["round"], failure["client"]) for failure in summary["failures"]] == [(1, 2)]
    assert "disk is damaged" in summary["failures"][0]["message"]
    assert [client["client"] for client in summary["clients"]] == [0, 1, 3, 4]
    assert "disk is damaged" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("rounds=2", "clients_per_round=3", "local.start=own")])
def test_all_backends_give_the_same_student_bit_by_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    digests = {
        backend: simulate(tmp_path / backend, *overrides, backend=backend)["digest"]
        for backend in ("local", "ray", "flower")
    }
    assert len(set(digests.values())) == 1, digests


def test_the_reported_ensemble_is_the_one_that_has_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, reported, measured = [], [], fl_cmi.simulate.measure

    def measure(outcome: Any, side: Any, combine: Any, pool: Any) -> dict[str, Any]:
        reported.append(combine.weights(range(5)).tolist())
        return measured(outcome, side, combine, pool)

    learn = LearntWeights.learn

    def learning(rule: LearntWeights, *arguments: Any) -> None:
        learn(rule, *arguments)
        taught.append(rule.weights(range(5)).tolist())

    monkeypatch.setattr(LearntWeights, "learn", learning)
    monkeypatch.setattr(fl_cmi.simulate, "measure", measure)
    simulate(tmp_path, "combine=learnt_weights", "combine.learning_rate=0.1")
    assert reported == [taught[-1]]
    assert reported[0] != [0.2] * 5
