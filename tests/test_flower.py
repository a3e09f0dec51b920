"""Records, the client app, and the local backend."""

import logging
import pickle
import re
import tomllib
from pathlib import Path
from typing import Any

import fake_side
import numpy as np
import pytest
import torch
from by_hand import NUM_CLIENTS, PARTITION, Clock, ask, reasons, train_messages
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_cmi.compose import compose_config, dataset
from fl_cmi.flower.client import client_images, handle_train, own_tests
from fl_cmi.flower.failure import kind_of_error
from fl_cmi.flower.local_backend import LocalBackend, LocalGrid
from fl_cmi.flower.records import content_bytes, from_record, pack_update, to_record, unpack_updates
from fl_cmi.partition import Partition, iid
from fl_cmi.rng import stream
from fl_cmi.types import ConfigError, Update

# ---------------------------------------------------------------------------------------------------- records


def test_state_survives_the_trip_bit_by_bit() -> None:
    state = {
        "float": torch.randn(3, 2, dtype=torch.float32),
        "half": torch.randn(2).half(),
        "count": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
    }
    back = from_record(to_record(state))
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    back["float"] += 1  # writable, and a memory of its own
    assert not torch.equal(back["float"], state["float"])


def test_reference_state_casts_back_and_refuses_another_model() -> None:
    like = {"w": torch.zeros(2), "count": torch.tensor(0)}
    averaged = ArrayRecord({"count": Array(np.asarray(2.6)), "w": Array(np.ones(2))})
    back = from_record(averaged, like)
    assert list(back) == ["w", "count"]
    assert back["w"].dtype == torch.float32
    assert back["count"].dtype == torch.int64
    assert back["count"] == 3
    with pytest.raises(ValueError, match="1 names differ, first count"):
        from_record(ArrayRecord({"w": Array(np.ones(2))}), like)
    with pytest.raises(ValueError, match=r"w has shape \(3,\), not \(2,\)"):
        from_record(ArrayRecord({"w": Array(np.ones(3)), "count": Array(np.asarray(1))}), like)


def test_flowers_fedavg_accepts_packed_updates_and_weighs_them() -> None:
    grid = LocalGrid(fake_side.app("{}", PARTITION), 2)
    messages = train_messages(grid.get_node_ids())
    packed = [
        pack_update(Update(k, n, torch.tensor([n, 0]), {"w": torch.full((2,), float(k))}), {"loss": 0.5})
        for k, n in ((0, 1), (1, 3))
    ]
    replies = [Message(content, reply_to=m) for content, m in zip(packed, messages, strict=True)]
    arrays, metrics = FedAvg().aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    assert arrays["w"].numpy().tolist() == [0.75, 0.75]  # (1 * 0 + 3 * 1) / 4
    assert metrics["class-counts"] == [2.5, 0.0]  # (1 * 1 + 3 * 3) / 4
    first, second = unpack_updates(reversed(replies))
    assert (first.client, second.client, second.num_examples) == (0, 1, 3)
    assert second.class_counts is not None
    assert second.class_counts.tolist() == [3, 0]


def test_content_bytes_counts_serialized_arrays_and_small_records() -> None:
    record = to_record({"w": torch.zeros(10)})
    content = RecordDict(
        {
            "arrays": record,
            "config": ConfigRecord({"name": "abc", "n": 1}),
            "metrics": MetricRecord({"counts": [1, 2]}),
        }
    )
    LocalGrid(fake_side.app("{}", PARTITION), 1)
    message = Message(content, 0, "train")
    # name + payload of each: w, name, n, counts
    assert content_bytes(message) == (1 + len(record["w"].data)) + (4 + 3) + (1 + 8) + (6 + 16)
    assert len(record["w"].data) == 128 + 40  # numpy's header and ten float32
    assert content_bytes(Message(Error(2, "no"), reply_to=message)) == 0


# ----------------------------------------------------------------------------------------------------- client


def test_client_trains_from_the_broadcast_on_its_own_images() -> None:
    sent = {name: tensor + 1 for name, tensor in fake_side.network(0).state_dict().items()}
    grid = LocalGrid(fake_side.app("{}", PARTITION), NUM_CLIENTS)
    replies = grid.send_and_receive(train_messages([2], sent, server_round=7, mu=0.25))
    (update,) = unpack_updates(replies)
    gain = np.arange(24, 36).mean() / 255  # the pixels of images 6, 7 and 8
    assert update.client == 2
    assert update.num_examples == 3
    assert update.class_counts is not None
    assert update.class_counts.tolist() == [1, 1, 1]
    torch.testing.assert_close(update.state["0.weight"], sent["0.weight"] + gain)
    assert update.state["1.num_batches_tracked"] == 1 + 3
    metrics = replies[0].content.metric_records["metrics"]
    assert metrics["draw"] == float(torch.rand((), generator=stream(0, "client", 2, "round", 7)))
    assert metrics["mu"] == 0.25


def test_client_keeps_its_label_counts_when_told_so() -> None:
    (replies,) = ask(LocalBackend(), share_label_counts=False)
    assert "class-counts" not in replies[0].content.metric_records["metrics"]
    assert unpack_updates(replies)[0].class_counts is None


@pytest.mark.parametrize(
    ("start", "gains"), [("broadcast", [1, 1, 1]), ("scratch", [1, 1, 1]), ("own", [1, 2, 3])]
)
def test_own_model_lasts_from_round_to_round(start: str, gains: list[int]) -> None:
    rounds = ask(LocalBackend(), num_rounds=3, start=start)
    initial = fake_side.network(0).state_dict()["0.bias"]
    for replies, gain in zip(rounds, gains, strict=True):
        for k, update in enumerate(unpack_updates(replies)):
            pixel = np.arange(12 * k, 12 * k + 12).mean() / 255
            torch.testing.assert_close(update.state["0.bias"], initial + gain * pixel)


def test_scratch_ignores_a_broadcast_of_another_architecture() -> None:
    grid = LocalGrid(fake_side.app('{"start": "scratch"}', PARTITION), NUM_CLIENTS)
    (reply,) = grid.send_and_receive(train_messages([0], {"other": torch.zeros(1)}))
    assert not reply.has_error()
    grid = LocalGrid(fake_side.app('{"start": "broadcast"}', PARTITION), NUM_CLIENTS)
    (reply,) = grid.send_and_receive(train_messages([0], {"other": torch.zeros(1)}))
    assert "another model was received" in reasons([reply])[0]


def test_feature_noise_is_the_clients_own_and_lasts() -> None:
    noisy = Partition("noisy", {}, PARTITION.indices, noise_sd=(0.0, 0.5, 0.5, 0.5))
    side = fake_side.side("{}")
    assert torch.equal(client_images(side, noisy, 0).x, side.train.x[:3])
    once, again = client_images(side, noisy, 1), client_images(side, noisy, 1)
    assert torch.equal(once.x, again.x)
    clean = side.train.subset(torch.arange(3, 6)).pixels()
    expected = clean + 0.5 * torch.randn(3, 1, 2, 2, generator=stream(0, "noise", 1))
    assert torch.equal(once.x, expected)
    assert torch.equal(once.y, side.train.y[3:6])


def test_feature_noise_is_on_local_tests_too() -> None:
    data = dataset(compose_config(["data=synthetic"]))
    clean = iid(data.train.y.numpy(), 2, np.random.default_rng(0))
    noisy = Partition("noisy", {}, clean.indices, noise_sd=(0.0, 0.5))
    (first, second), (same, other) = (own_tests(data, partition, seed=3) for partition in (clean, noisy))
    assert torch.equal(same.x, first.x)
    expected = second.pixels() + 0.5 * torch.randn(second.x.shape, generator=stream(3, "noise", "test", 1))
    assert torch.equal(other.x, expected)
    assert torch.equal(other.y, second.y)
    assert len(first) + len(second) > len(data.test) // 2
    many = iid(data.train.y.numpy(), len(data.test), np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"^own_tests=true: false, or fewer clients"):
        own_tests(data, many, seed=3)


def test_threads_are_set_for_the_client_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(*_: Any, **__: Any) -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return {}

    monkeypatch.setattr(fake_side.Nudge, "__call__", note)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ask(LocalBackend())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * NUM_CLIENTS


def test_client_without_images_and_diverged_client_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Partition("empty", {}, (np.arange(3), np.arange(0)))
    grid = LocalGrid(fake_side.app("{}", empty), 2)
    assert reasons(grid.send_and_receive(train_messages([0, 1]))) == [
        "",
        "ValueError: client 1 has no images; choose another partition or fewer clients",
    ]

    def explode(self: Any, model: torch.nn.Module, *_: Any, **__: Any) -> dict[str, float]:
        model[0].bias.data[1] = float("nan")
        return {}

    monkeypatch.setattr(fake_side.Nudge, "__call__", explode)
    grid = LocalGrid(fake_side.app("{}", PARTITION), 2)
    (reason,) = reasons(grid.send_and_receive(train_messages([1], server_round=5)))
    assert "client 1 diverged in round 5: 0.bias is no longer finite" in reason


def test_handler_is_picklable_and_small() -> None:
    assert pickle.loads(pickle.dumps(handle_train)) is handle_train
    assert len(pickle.dumps(handle_train)) < 200


# ----------------------------------------------------------------------------------------------- local


def test_local_reraises_for_a_debugger_and_logs_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        (replies,) = ask(LocalBackend(), faults={"raise": [1]})
    assert reasons(replies) == ["", "ZeroDivisionError: as told", "", ""]
    assert "fake_side.py" in caplog.text  # the client's own traceback
    with pytest.raises(ZeroDivisionError, match="as told"):
        ask(LocalBackend(reraise=True), faults={"raise": [1]})


def test_local_client_cannot_change_the_servers_message() -> None:
    def meddle(message: Message, context: Context) -> Message:
        message.content.config_records["config"]["server-round"] = 99
        message.content.array_records["arrays"].clear()
        return Message(RecordDict(), reply_to=message)

    app = ClientApp()
    app.train()(meddle)
    (message,) = train_messages([0])
    LocalGrid(app, 1).send_and_receive([message])
    assert message.content.config_records["config"]["server-round"] == 1
    assert len(message.content.array_records["arrays"]) > 0


def test_local_late_clients_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("fl_cmi.flower.grid.time", clock)
    monkeypatch.setattr(fake_side, "time", clock)
    (replies,) = ask(LocalBackend(timeout=2.0), faults={"hang": [1], "seconds": 3})
    late = "no reply within 2 s"
    assert reasons(replies) == ["", late, f"{late} (never started)", f"{late} (never started)"]


def test_client_that_returns_nothing_is_an_error() -> None:
    app = ClientApp()
    app.train()(lambda message, context: None)
    (reply,) = LocalGrid(app, 1).send_and_receive(train_messages([0]))
    assert reasons([reply]) == ["TypeError: the client app returned NoneType, not a Message"]


def test_flowers_log_is_quiet_during_a_run_and_as_before_after_it() -> None:
    logger = logging.getLogger("flwr")
    before = (list(logger.handlers), logger.level, logger.propagate)
    inside = []

    def serve(grid: Grid) -> None:
        inside.append((list(logger.handlers), logger.level))

    LocalBackend().run("{}", PARTITION, 2, serve, fake_side.app)
    assert inside == [([], logging.WARNING)]
    assert (logger.handlers, logger.level, logger.propagate) == before


def test_local_refuses_a_timeout_that_it_cannot_keep() -> None:
    with pytest.raises(ConfigError, match=r"^client_timeout=3: null with backend=local, "):
        LocalBackend(client_timeout=3)


def test_a_client_that_leaves_or_lacks_memory_is_told_apart() -> None:
    thrown: list[BaseException] = [
        SystemExit(3),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
        ),
    ]

    def throw(message: Message, context: Context) -> Message:
        raise thrown[int(context.node_config["partition-id"])]

    app = ClientApp()
    app.train()(throw)
    replies = LocalGrid(app, 4).send_and_receive(train_messages(range(4)))
    assert [kind_of_error(reply.error) for reply in replies] == ["raised", "memory", "memory", "memory"]
    assert reasons(replies)[:2] == ["SystemExit: 3", "MemoryError:"]


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_timeout_has_to_be_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match=r"^backend.timeout="):
        LocalBackend(timeout=timeout)


def test_flwr_run_accepts_the_projects_name() -> None:
    """Letters, digits and hyphens, starting with a letter, at most 32: Flower refuses to run other apps."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,31}", project["project"]["name"])
