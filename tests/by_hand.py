"""A run of four clients, by hand, for the tests of everything that carries messages."""

import json
from collections.abc import Iterable
from typing import Any

import fake_side
import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_cmi.flower.backend import Backend
from fl_cmi.flower.records import to_record
from fl_cmi.partition import Partition
from fl_cmi.types import State

NUM_CLIENTS = 4
PARTITION = Partition("by hand", {}, tuple(np.arange(3 * k, 3 * k + 3) for k in range(NUM_CLIENTS)))


class Clock:
    """Stands in for the module `time`: seconds pass when somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def train_messages(
    nodes: Iterable[int],
    state: State | None = None,
    server_round: int = 1,
    mu: float = 0.0,
    faults: dict[str, Any] | None = None,
) -> list[Message]:
    """One message with the same content to each node; for `faults` see `fake_side`."""
    settings = {"server-round": server_round, "proximal-mu": mu, "faults": json.dumps(faults or {})}
    arrays = to_record(fake_side.network(0).state_dict() if state is None else state)
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(settings)})
    return [Message(content, node, "train") for node in nodes]


def rounds_of(
    grid: Grid, num_rounds: int = 1, faults: dict[str, Any] | None = None, timeout: float | None = None
) -> list[list[Message]]:
    """Every round's replies of all clients."""
    rounds = []
    for server_round in range(1, num_rounds + 1):
        messages = train_messages(grid.get_node_ids(), server_round=server_round, faults=faults)
        rounds.append(list(grid.send_and_receive(messages, timeout=timeout)))
    return rounds


def ask(
    backend: Backend, num_rounds: int = 1, faults: dict[str, Any] | None = None, **config: Any
) -> list[list[Message]]:
    """Every round's replies of all clients of a backend."""
    rounds = []

    def serve(grid: Grid) -> None:
        rounds.extend(rounds_of(grid, num_rounds, faults))

    backend.run(json.dumps(config), PARTITION, NUM_CLIENTS, serve, fake_side.app)
    return rounds


def comparable(reply: Message) -> tuple[Any, ...]:
    """All of a reply that the client decided, down to the bytes."""
    arrays, metrics = reply.content.array_records["arrays"], reply.content.metric_records["metrics"]
    return [(name, array.dtype, array.data) for name, array in arrays.items()], dict(metrics)


def reasons(replies: list[Message]) -> list[str]:
    """Each reply's error, or "" for a good one."""
    return [(reply.error.reason or "") if reply.has_error() else "" for reply in replies]
