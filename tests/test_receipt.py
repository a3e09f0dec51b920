"""What the server looks at before it takes an update."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, MetricRecord, RecordDict
from small_federation import CLASSES, Classifier, Federation, full_batches

import fl_cmi.flower.client
from fl_cmi.compose import compose_config
from fl_cmi.federated.buffers import KeepLocal
from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.failure import ClientFailure
from fl_cmi.flower.receipt import Receipt
from fl_cmi.flower.records import pack_update, to_record
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.simulate import run
from fl_cmi.types import Update

pytestmark = pytest.mark.usefixtures("without_pictures")

TINY = (
    "data=synthetic",
    "partition.alpha=1.0",
    "num_clients=3",
    "backend=local",
    "local.epochs=1",
    "model.width=4",
    "strategy=fedavg",
    "rounds=2",
    "server_threads=1",
)


def normed() -> Classifier:
    return Classifier(norm=True)


FEDERATION = Federation(Sharing(), full_batches(), make=normed)
COUNTS = torch.tensor([2, 0, 3])


def good(extra: dict[str, torch.Tensor] | None = None, private: frozenset[str] = frozenset()) -> RecordDict:
    """What client 1 would send."""
    more = {} if extra is None else {"beside": extra}
    return pack_update(Update(1, 5, COUNTS, normed().state_dict(), more, private), {"loss": 0.5})


def array(value: Any, dtype: str = "float32") -> Array:
    return Array(np.asarray(value, dtype=dtype))


def lying(shape: tuple[int, ...]) -> Array:
    """An array whose bytes are of another shape than it says."""
    data = io.BytesIO()
    np.save(data, np.zeros(shape, dtype="float32"))
    return Array("float32", (CLASSES,), "numpy.ndarray", data.getvalue())


def tamper(name: str, value: Array | None) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        if value is None:
            del content.array_records["arrays"][name]
        else:
            content.array_records["arrays"][name] = value

    return change


def metric(name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        if value is None:
            del content.metric_records["metrics"][name]
        else:
            content.metric_records["metrics"][name] = value

    return change


WRONG: dict[str, Callable[[RecordDict], Any]] = {
    "classifier.bias is not finite: 1 of 3 numbers": tamper("classifier.bias", array([1, np.nan, 2])),
    "norm.running_var is not finite: 3 of 3 numbers": tamper("norm.running_var", array([np.inf] * 3)),
    "classifier.bias has the shape (4,), not (3,)": tamper("classifier.bias", array([0] * 4)),
    "classifier.bias is float64, not float32": tamper("classifier.bias", array([0] * 3, "float64")),
    "norm.num_batches_tracked is float64, not int64": tamper("norm.num_batches_tracked", array(1, "float64")),
    "1 names differ: extra is not among its tensors": tamper("extra", array([0])),
    "1 names differ: norm.bias is missing": tamper("norm.bias", None),
    "classifier.bias cannot be read: an array of float32 (2,) says": tamper("classifier.bias", lying((2,))),
    "classifier.bias cannot be read": tamper("classifier.bias", lying((10000,))),
    "bias cannot be read": tamper(
        "classifier.bias", Array("float32", (3,), "numpy.ndarray", b"no array.....")
    ),
    "its metric num-examples is missing": metric("num-examples", None),
    "its metric num-examples is 0, not": metric("num-examples", 0),
    "its metric num-examples is 2.5, not": metric("num-examples", 2.5),
    "its metric class-counts is missing": metric("class-counts", None),
    "class-counts is not 3 numbers with the sum 5": metric("class-counts", [2, 0, 4]),
    "class-counts is not 3 numbers": metric("class-counts", [5]),
    "class-counts is not 3": metric("class-counts", [-1, 0, 6]),
    "its metric loss is not finite": metric("loss", float("inf")),
    "it says that it comes from client 2": metric("partition-id", 2),
    "its metrics are missing": lambda content: content.pop("metrics"),
    "it holds no model": lambda content: content.pop("arrays"),
    "w is not finite": lambda content: content.update({"beside": to_record({"w": torch.tensor([np.nan])})}),
}
"""What the line tells, and what happens to a good update."""


def test_a_good_update_is_taken() -> None:
    receipt = Receipt(FEDERATION.server)
    assert receipt(1, good()) is None
    assert receipt(1, good({"w": torch.ones(2), "n": torch.tensor(1), "mask": torch.tensor([True])})) is None


@pytest.mark.parametrize("told", WRONG)
def test_the_line_names_the_tensor_and_what_is_wrong(told: str) -> None:
    content = good()
    WRONG[told](content)
    assert told in str(Receipt(FEDERATION.server)(1, content))


def test_private_tensors_are_looked_at_where_they_come_along() -> None:
    federation = Federation(Sharing(buffers=KeepLocal()), full_batches(), make=normed)
    receipt = Receipt(federation.server)
    private = federation.server.sharing.private(normed())
    assert private
    content = good(private=private)
    assert receipt(1, content) is None
    assert "names differ" in str(receipt(1, good()))
    content["for the report"]["norm.running_var"] = array([np.nan] * 3)
    assert "norm.running_var is not finite" in str(receipt(1, content))
    del content["for the report"]
    assert "are missing" in str(receipt(1, content))


def test_clients_of_several_architectures_are_held_to_their_own() -> None:
    def wide(client: int) -> Classifier:
        return Classifier(norm=True, width=3 + client % 2)

    receipt = Receipt(Federation(Sharing(), full_batches(), make=normed, mixed=wide).server)
    sent = pack_update(Update(1, 5, COUNTS, wide(1).state_dict()), {})
    assert receipt(1, sent) is None
    sent["metrics"] = MetricRecord({**sent["metrics"], "partition-id": 0})
    assert "embed.weight has the shape (4, 4), not (3, 4)" in str(receipt(0, sent))


@pytest.mark.parametrize("policy", ["fail", "drop"])
def test_a_broken_update_goes_by_the_policy(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(update: Update, metrics: dict[str, float]) -> RecordDict:
        content = pack_update(update, metrics)
        if update.client == 1:
            name = next(iter(content["arrays"]))
            content["arrays"][name] = Array(content["arrays"][name].numpy() * np.nan)
        return content

    monkeypatch.setattr(fl_cmi.flower.client, "pack_update", broken)
    config = compose_config([*TINY, f"on_client_failure={policy}"])
    line = "client 1's update was refused: "
    if policy == "fail":
        with pytest.raises(ClientFailure, match=line):
            run(config, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"metrics.jsonl", "checkpoint"}
    else:
        summary = run(config, tmp_path)
        first, second = summary["failures"]
        assert (first["round"], first["client"], first["kind"], second["round"]) == (1, 1, "refused", 2)
        assert first["message"].startswith(line) and "is not finite" in first["message"]
        assert [client["client"] for client in summary["clients"]] == [0, 2]
        assert "1&#x27;s update was refused" in (tmp_path / "report.html").read_text(encoding="utf-8")
    logged = [row for row in MetricsLog.read(tmp_path / "metrics.jsonl") if row["event"] == "failure"]
    assert (logged[0]["client"], logged[0]["kind"], logged[0]["retried"]) == (1, "refused", False)
