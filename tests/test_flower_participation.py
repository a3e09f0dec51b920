"""Participation: the same rounds on any grid, and a policy for clients that fail."""

import pickle
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import fake_side
import pytest
from by_hand import NUM_CLIENTS, PARTITION, Clock, rounds_of, train_messages
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_cmi.flower.failure import ClientFailure, Failure
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.records import content_bytes, to_record, unpack_updates
from fl_cmi.report.progress import Phase, Progress
from fl_cmi.types import ConfigError


class ForeignGrid(Grid):
    """Flower's ways: random node ids, replies in any order, nothing known of partitions."""

    def __init__(self, num_clients: int, seed: int, lost: Iterable[int] = ()) -> None:
        self.inner = LocalGrid(fake_side.app("{}", PARTITION), num_clients)
        self.random, self.lost, self.polls = random.Random(seed), set(lost), 0
        self.clients = {self.random.getrandbits(60): k for k in range(num_clients)}
        self.nodes = {k: node for node, k in self.clients.items()}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    push_messages = pull_messages = create_message  # type: ignore[assignment]

    def get_node_ids(self) -> list[int]:
        self.polls += 1
        return list(self.clients)[: self.polls]  # nodes come in one by one

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            client = self.clients[message.metadata.dst_node_id]
            inner = Message(message.content, client, message.metadata.message_type)
            (reply,) = self.inner.send_and_receive([inner])
            reply.metadata.__dict__["_src_node_id"] = self.nodes[client]
            if client not in self.lost or message.metadata.message_type == "query":
                replies.append(reply)
        self.random.shuffle(replies)
        return replies


def play(
    participation: Participation, num_rounds: int, faults: dict[str, Any] | None = None
) -> list[list[int]]:
    """Which clients answered well in each round."""
    return [[u.client for u in unpack_updates(r)] for r in rounds_of(participation, num_rounds, faults)]


def test_participation_depends_on_seed_and_round_alone() -> None:
    def clients(grid: Grid, seed: int) -> list[list[int]]:
        return play(Participation(grid, num_clients=NUM_CLIENTS, clients_per_round=2, seed=seed), 6)

    first = clients(LocalGrid(fake_side.app("{}", PARTITION), NUM_CLIENTS), 3)
    assert all(len(set(round_)) == 2 and round_ == sorted(round_) for round_ in first)
    assert len({tuple(round_) for round_ in first}) > 1, "the same clients in every round"
    for seed in (0, 1):
        random.seed(seed)
        assert clients(ForeignGrid(NUM_CLIENTS, seed), 3) == first
    assert clients(LocalGrid(fake_side.app("{}", PARTITION), NUM_CLIENTS), 4) != first


def test_flowers_fedavg_trains_exactly_the_rounds_clients() -> None:
    seen = []
    grid = Participation(
        ForeignGrid(NUM_CLIENTS, 0),
        num_clients=NUM_CLIENTS,
        clients_per_round=2,
        seed=0,
        observer=lambda server_round, updates: seen.append((server_round, [u.client for u in updates])),
    )
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    strategy.start(grid, to_record(fake_side.network(0).state_dict()), num_rounds=3)
    assert seen == [(k, grid.participants(k)) for k in (1, 2, 3)]
    assert grid.current_round == 4


def test_replies_are_sorted_and_reported_whatever_their_order() -> None:
    progress, shown = Progress(quiet=True), []

    @contextmanager
    def exchanging(clients: int) -> Iterator[Phase]:
        with progress.phase("local", total=clients) as phase:
            shown.append(phase)
            yield phase

    foreign = ForeignGrid(NUM_CLIENTS, 1)
    grid = Participation(foreign, num_clients=NUM_CLIENTS, seed=0, exchanging=exchanging)
    nodes = list(grid.get_node_ids())
    replies = grid.send_and_receive(train_messages(reversed(nodes)))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert [(phase.completed, phase.total) for phase in shown] == [(NUM_CLIENTS, NUM_CLIENTS)]


def test_bytes_are_counted_both_ways() -> None:
    grid = Participation(
        LocalGrid(fake_side.app("{}", PARTITION), NUM_CLIENTS),
        num_clients=NUM_CLIENTS,
        seed=0,
        on_client_failure="drop",
    )
    messages = train_messages(grid.get_node_ids(), faults={"raise": [0]})
    replies = grid.send_and_receive(messages)
    assert grid.bytes_down == 4 * content_bytes(messages[0])
    assert grid.bytes_up == 3 * content_bytes(replies[0])
    assert grid.send_and_receive([]) == []
    assert grid.current_round == 2, "an empty exchange is no round"


@pytest.mark.parametrize("lost", [False, True])
def test_failed_client_ends_the_run_or_is_left_out(lost: bool) -> None:
    def participation(policy: Any) -> Participation:
        grid = ForeignGrid(NUM_CLIENTS, 0, lost=[2] if lost else [])
        return Participation(grid, num_clients=NUM_CLIENTS, seed=0, on_client_failure=policy)

    faults = {} if lost else {"raise": [2]}
    reason = "no reply within the timeout" if lost else "ZeroDivisionError: as told"
    first = Failure(1, 2, "late" if lost else "raised", reason)
    grid = participation("fail")
    with pytest.raises(ClientFailure, match=f"^client 2 failed in round 1: {reason}$") as caught:
        play(grid, 1, faults)
    assert caught.value.failures == grid.failures == [first]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    grid = participation("drop")
    assert play(grid, 2, faults) == [[0, 1, 3], [0, 1, 3]]
    assert grid.failures == [first, replace(first, round=2)]


def test_all_clients_failing_ends_the_run_in_any_case() -> None:
    grid = LocalGrid(fake_side.app("{}", PARTITION), 2)
    view = Participation(grid, num_clients=2, seed=0, on_client_failure="drop")
    with pytest.raises(ClientFailure, match=r"client 0 failed in round 1 \(and 1 more\)"):
        play(view, 1, {"raise": [0, 1]})


def test_participation_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = LocalGrid(fake_side.app("{}", PARTITION), NUM_CLIENTS)
    for size in (0, 5):
        with pytest.raises(ConfigError, match=f"^clients_per_round={size}: an integer from 1 to"):
            Participation(grid, num_clients=NUM_CLIENTS, clients_per_round=size, seed=0)
    with pytest.raises(ConfigError, match=r"^num_clients=3: the number of nodes, which is 4"):
        Participation(grid, num_clients=3, seed=0)
    monkeypatch.setattr("fl_cmi.flower.participation.time", Clock())
    with pytest.raises(RuntimeError, match=r"4 of 5 clients are there after 30 s"):
        Participation(ForeignGrid(NUM_CLIENTS, 0), num_clients=5, seed=0, start_timeout=30.0)
