"""Whole runs of the methods whose clients do more than train: repeatability, state, disclosure, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fl_cmi.compose import compose_config
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError

pytestmark = pytest.mark.usefixtures("without_pictures")

TINY = (
    "data=synthetic",
    "partition.alpha=1.0",
    "model.width=4",
    "local.epochs=1",
    "local.prior_correction=false",
    "server_threads=1",
    "rounds=3",
    "num_clients=3",
    "clients_per_round=2",
)

METHODS = {
    "scaffold": ("strategy=scaffold",),
    "fednova": ("strategy=fednova", "strategy.proximal_mu=0.01"),
    "feddistill": ("strategy=feddistill", "local.start=own"),
    "fedgen": ("strategy=fedgen", "strategy.training.steps=3", "buffers=keep_local"),
    "fedgen_paper": ("strategy=fedgen_paper", "strategy.training.steps=3", "strategy.client.share=head"),
    "recalibrate": ("strategy=fedavgm", "buffers=recalibrate", "synthesizer=noise"),
}

DISCLOSED = {
    "scaffold": "change of its control variate",
    "fednova": "length of its local training (1 number)",
    "feddistill": "mean logits for each label (4 x 4 numbers)",
    "fedgen": "labels of its batches of the round (4 integers)",
}


def simulate(folder: Path, *overrides: str, backend: str = "local") -> dict[str, Any]:
    return run(compose_config([*TINY, f"backend={backend}", *overrides]), folder)


def weights(summary: dict[str, Any]) -> tuple[Any, ...]:
    """All that a repetition has to reproduce, clients' own models included."""
    accuracies = [client["accuracy"] for client in summary["clients"]]
    return summary["digest"], accuracies, summary["student"], summary["own_tests"], summary["bytes"]


def test_a_run_repeats_bit_by_bit_with_some_clients_a_round(tmp_path: Path) -> None:
    """The method with the most state of its own: generator, its optimizer, labels, rates and batch norm."""
    one = simulate(tmp_path / "a", *METHODS["fedgen"], "own_tests=true")
    two = simulate(tmp_path / "b", *METHODS["fedgen"], "own_tests=true")
    assert weights(one) == weights(two)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "feddistill", "fedgen"])
def test_a_summary_tells_what_was_sent(name: str, tmp_path: Path) -> None:
    one = simulate(tmp_path / "a", *METHODS[name], "own_tests=true", "rounds=1")
    assert any(line.startswith(DISCLOSED[name]) for line in one["disclosed"])
    assert 0 <= one["own_tests"] <= 1
    shares_model = any(line.startswith("model weights") for line in one["disclosed"])
    assert shares_model == (name != "feddistill")
    assert any("batch-norm" in line for line in one["disclosed"]) == (name in ("scaffold", "fednova"))
    assert (tmp_path / "a" / "report.html").exists()


def test_the_global_model_moves_unless_there_is_none(tmp_path: Path) -> None:
    """FedDistill's is the initial one, and what is scored are the clients' models."""
    summary = simulate(tmp_path / "run", *METHODS["feddistill"])
    mean = sum(client["accuracy"] for client in summary["clients"]) / len(summary["clients"])
    assert summary["student"]["accuracy_last"] == pytest.approx(mean)
    counter = load_file(tmp_path / "run" / "student.safetensors")["norms.0.num_batches_tracked"]
    assert counter == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if row["event"] == "round"] == [1, 2, 3]


def test_the_student_is_tested_as_often_as_told_and_at_the_end(tmp_path: Path) -> None:
    given = ("strategy=fedavg", "buffers=keep_local", "own_tests=true", "rounds=5", "clients_per_round=2")
    often = simulate(tmp_path / "often", *given)
    seldom = simulate(tmp_path / "seldom", *given, "evaluate_every=2")
    for key in ("digest", "own_tests", "bytes", "clients"):
        assert seldom[key] == often[key], key
    assert seldom["student"]["accuracy_last"] == often["student"]["accuracy_last"]
    assert seldom["student"]["round_best"] in (2, 4, 5)
    rows = {
        name: [row for row in MetricsLog.read(tmp_path / name / "metrics.jsonl") if row["event"] == "round"]
        for name in ("often", "seldom")
    }
    assert [row["round"] for row in rows["seldom"]] == [1, 2, 3, 4, 5]
    assert [row["round"] for row in rows["seldom"] if "accuracy" in row] == [2, 4, 5]
    assert [rows["often"][r] for r in (1, 3, 4)] == [rows["seldom"][r] for r in (1, 3, 4)]
    with pytest.raises(ConfigError, match=r"^evaluate_every=0"):
        simulate(tmp_path / "run", "evaluate_every=0")


def test_an_attack_is_measured_on_those_who_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("fl_cmi.simulate.success", lambda attack, models, *_: asked.append(models))
    bad = ("attacks=backdoor", "attacks.clients=[1]", "rounds=1")
    simulate(tmp_path / "own", *METHODS["feddistill"], *bad)
    simulate(tmp_path / "vote", "strategy=fed_ensemble", *bad)
    simulate(tmp_path / "global", "strategy=fedavg", *bad)
    assert [len(models["student"]) for models in asked] == [2, 1, 1]
    names = [type(models["student"][0]).__name__ for models in asked]
    assert names == ["ConvNet", "Vote", "ConvNet"]


def test_recalibration_counts_what_it_asks(tmp_path: Path) -> None:
    """A batch: the inversion's steps, each of one client's model."""
    given = ("strategy=fedavg", "buffers=recalibrate", "buffers.batches=2", "rounds=2")
    inversion = ("synthesizer=per_client", "synthesizer.inversion.steps=3", "synthesizer.batch_size=8")
    summary = simulate(tmp_path, *given, *inversion, "synthesizer.inversion.source.generator.width=4")
    assert summary["teacher_passes"] == 2 * 2 * 3


def test_mixed_architectures_are_refused_where_models_are_averaged(tmp_path: Path) -> None:
    mixed = ("teachers=mixed", "local.start=own")
    for strategy in ("scaffold", "fednova", "feddistill_plus", "fedgen"):
        with pytest.raises(ConfigError, match=r"^strategy="):
            simulate(tmp_path / "run", f"strategy={strategy}", *mixed)
    with pytest.raises(ConfigError, match=r"^buffers=Average: null, because FedCmi"):
        simulate(tmp_path / "run", "strategy=fed_cmi", "buffers=average")
    with pytest.raises(ConfigError, match=r"^local\.start=scratch: broadcast"):
        simulate(tmp_path / "run", "strategy=fedgen", "local.start=scratch")
    with pytest.raises(ConfigError, match=r"^share_label_counts=false: true"):
        simulate(tmp_path / "run", "strategy=fedgen", "share_label_counts=false")
    with pytest.raises(ConfigError, match=r"^own_tests=3: true or false"):
        simulate(tmp_path / "run", "own_tests=3")
    assert not (tmp_path / "run").exists()


def test_clients_of_mixed_architectures_share_logits(tmp_path: Path) -> None:
    summary = simulate(tmp_path, *METHODS["feddistill"], "teachers=mixed", "rounds=2", "clients_per_round=3")
    assert len({client["architecture"] for client in summary["clients"]}) > 1
    assert summary["average"]["accuracy"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaffold", "feddistill", "fedgen", "fedgen_paper", "recalibrate"])
def test_all_backends_give_the_same_result_bit_by_bit(name: str, tmp_path: Path) -> None:
    found = {
        backend: weights(simulate(tmp_path / backend, *METHODS[name], "own_tests=true", backend=backend))
        for backend in ("local", "ray")
    }
    assert found["local"] == found["ray"]
