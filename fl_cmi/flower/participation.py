"""Who takes part in which round, and what happens when a client fails.

Flower samples nodes with the global random generator, by node ids that may be drawn at random too, and goes
on without the clients that fail. `Participation` stands between a strategy and any grid and settles all three
by partition id.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_cmi.flower.failure import ClientFailure, Failure, Kind, failed, kind_of_error
from fl_cmi.flower.grid import LiveGrid
from fl_cmi.flower.records import content_bytes, partition_id, unpack_updates
from fl_cmi.report.progress import Phase
from fl_cmi.rng import numpy_stream
from fl_cmi.types import ConfigError, Update

__all__ = ["Check", "Observer", "OnFailure", "Participation", "Remember"]

OnFailure = Literal["fail", "drop"]
"""Stop the run at the first round with a failed client, or go on without that client."""

Observer = Callable[[int, list[Update]], None]
"""Sees the round's number and its updates, sorted by partition id."""

Remember = Callable[[Mapping[int, Message], Callable[[list[Message]], list[Message]]], list[Message]]
"""Replies to messages by client, got by the function that asks clients or from before."""

Check = Callable[[int, RecordDict], str | None]
"""What is wrong with a client's update, in one line; None for nothing."""


class Participation(Grid):
    """The run's view of a grid: this round's clients, in the order of their partition ids.

    A strategy that trains all nodes it sees (Flower's `fraction_train=1.0`, with `min_train_nodes` and
    `min_available_nodes` of 1) trains exactly the round's clients. A round ends with its exchange of train
    messages.

    Args:
        grid: Any grid. Waits here until all clients are there.
        num_clients: Clients of the run; their partition ids are 0..num_clients-1.
        clients_per_round: Drawn for each round without replacement; None for all.
        seed: Of the run; the draw of a round depends on nothing else.
        on_client_failure: `fail` or `drop`. A reply with an error, or none at all, is a failure.
        observer: Called with each round's good updates, before the strategy sees them.
        exchanging: Shows an exchange with so many clients: it advances with each reply, good or not, as it
            comes (on a foreign grid, when all are there).
        remember: Answers for clients whose answer is known; None: all are asked.
        check: Looks at each update when it arrives; one that it finds fault with is a failure. None: none.
        on_failure: Called with every failure, and with every client that is asked again.
        start_timeout: Seconds to wait for the clients at the start.

    Attributes:
        bytes_down: Content of the messages to clients so far.
        bytes_up: Content of their good replies.
        failures: All failures so far, and the clients that were asked again.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        num_clients: int,
        seed: int,
        clients_per_round: int | None = None,
        on_client_failure: OnFailure = "fail",
        observer: Observer | None = None,
        exchanging: Callable[[int], AbstractContextManager[Phase]] | None = None,
        remember: Remember | None = None,
        check: Check | None = None,
        on_failure: Callable[[Failure], object] | None = None,
        start_timeout: float = 300.0,
    ) -> None:
        size = num_clients if clients_per_round is None else clients_per_round
        if not 1 <= size <= num_clients:
            allowed = f"an integer from 1 to num_clients={num_clients}, or null for all"
            raise ConfigError("clients_per_round", clients_per_round, allowed)
        if on_client_failure not in ("fail", "drop"):
            raise ConfigError("on_client_failure", on_client_failure, "fail or drop")
        self._grid, self._num_clients, self._size, self._seed = grid, num_clients, size, seed
        self._on_client_failure, self._observer, self._exchanging = on_client_failure, observer, exchanging
        self._remember, self._check, self._on_failure = remember, check, on_failure
        self._clients = _partition_ids(grid, num_clients, start_timeout)
        self._nodes = {client: node for node, client in self._clients.items()}
        self._rounds_done = 0
        self.bytes_down, self.bytes_up = 0, 0
        self.failures: list[Failure] = []

    def state_dict(self) -> dict[str, Any]:
        """Rounds done, bytes and failures so far: plain values."""
        return {
            "rounds": self._rounds_done,
            "bytes": [self.bytes_down, self.bytes_up],
            "failures": [asdict(failure) for failure in self.failures],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._rounds_done = state["rounds"]
        self.bytes_down, self.bytes_up = state["bytes"]
        self.failures = [Failure(**failure) for failure in state["failures"]]

    @property
    def current_round(self) -> int:
        """The round that is under way, or comes next; from 1."""
        return self._rounds_done + 1

    def participants(self, server_round: int) -> list[int]:
        """Partition ids of a round's clients, ascending."""
        if self._size == self._num_clients:
            return list(range(self._num_clients))
        drawn = numpy_stream(self._seed, "participation", server_round).choice(
            self._num_clients, self._size, replace=False
        )
        return sorted(int(client) for client in drawn)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the current round's clients, in the order of their partition ids."""
        return [self._nodes[client] for client in self.participants(self.current_round)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The good replies, in the order of the partition ids.

        Args:
            messages: At most one to each client.
            timeout: Seconds until replies count as missing.

        Raises:
            ClientFailure: A client failed and the policy is `fail`, or all of them failed.
        """
        messages = sorted(messages, key=self._receiver)
        if not messages:
            return []
        receivers = [self._receiver(message) for message in messages]
        assert len(set(receivers)) == len(receivers), "a client gets two messages at once"
        self.bytes_down += sum(map(content_bytes, messages))
        ask = partial(self._ask, timeout=timeout)
        by_client = dict(zip(receivers, messages, strict=True))
        replies = ask(messages) if self._remember is None else self._remember(by_client, ask)
        answered = {self._sender(reply): reply for reply in replies}
        good = [answered[k] for k in receivers if k in answered and not answered[k].has_error()]
        failures = [
            self._failure(client, *_kind_and_reason(answered.get(client)))
            for client in receivers
            if client not in answered or answered[client].has_error()
        ]
        self.bytes_up += sum(map(content_bytes, good))
        if failures and (self._on_client_failure == "fail" or not good):
            raise ClientFailure(failures)
        if _asks_for_training(messages[0]):
            if self._observer is not None:
                self._observer(self.current_round, unpack_updates(good))
            self._rounds_done += 1
        return good

    def set_run(self, run: Run) -> None:
        """Of the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Of the grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, as its own constructor makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not offered: a failure policy needs messages and replies together."""
        raise NotImplementedError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered: a failure policy needs messages and replies together."""
        raise NotImplementedError("use send_and_receive")

    def client_of(self, message: Message) -> int:
        """Partition id of the client that a message is for."""
        return self._receiver(message)

    def _receiver(self, message: Message) -> int:
        return self._clients[message.metadata.dst_node_id]

    def _sender(self, reply: Message) -> int:
        return self._clients[reply.metadata.src_node_id]

    def _failure(self, client: int, kind: Kind, reason: str, retried: bool = False) -> Failure:
        """Put a failure on the list, and tell who listens."""
        failure = Failure(self.current_round, client, kind, reason, retried)
        self.failures.append(failure)
        if self._on_failure is not None:
            self._on_failure(failure)
        return failure

    def _ask(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """All replies; an update that does not fit becomes an error, before anybody can keep or use it."""
        sent = {self._receiver(message): message for message in messages}
        replies = self._exchange(messages, timeout)
        if self._check is None:
            return replies
        for place, reply in enumerate(replies):
            client = self._sender(reply)
            if not reply.has_error() and _asks_for_training(sent[client]):
                wrong = self._check(client, reply.content)
                if wrong is not None:
                    reason = f"client {client}'s update was refused: {wrong}"
                    replies[place] = failed(sent[client], reason, "refused")
        return replies

    def _exchange(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """All replies, each shown once."""
        if isinstance(self._grid, LiveGrid):
            self._grid.on_retry = lambda node, kind, reason: self._failure(
                self._clients[node], kind, f"{reason}; it was asked again", retried=True
            )
        if self._exchanging is None:
            return list(self._grid.send_and_receive(messages, timeout=timeout))
        with self._exchanging(len(messages)) as phase:

            def show(reply: Message) -> None:
                phase.advance(note=f"client {self._sender(reply)}")

            if isinstance(self._grid, LiveGrid):
                self._grid.on_reply = show
                return list(self._grid.send_and_receive(messages, timeout=timeout))
            replies = list(self._grid.send_and_receive(messages, timeout=timeout))
            for reply in replies:
                show(reply)
            return replies


def _partition_ids(grid: Grid, num_clients: int, timeout: float) -> Mapping[int, int]:
    """Partition id of each node id, asked from the nodes where the grid does not know.

    Raises:
        RuntimeError: Nodes that do not come, or do not answer.
        ConfigError: Other partition ids than 0..num_clients-1.
    """
    if isinstance(grid, LiveGrid) and grid.partition_ids is not None:
        found = grid.partition_ids
    else:
        end = time.monotonic() + timeout
        while len(nodes := list(grid.get_node_ids())) < num_clients:
            if time.monotonic() > end:
                raise RuntimeError(f"{len(nodes)} of {num_clients} clients are there after {timeout:g} s")
            time.sleep(0.1)
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        found = {}
        for reply in grid.send_and_receive(questions, timeout=timeout):
            if reply.has_error():
                node = reply.metadata.src_node_id
                raise RuntimeError(f"node {node} does not tell its partition id: {_reason(reply)}")
            found[reply.metadata.src_node_id] = partition_id(reply.content)
        if len(found) < len(nodes):
            raise RuntimeError(f"{len(found)} of {len(nodes)} nodes told their partition id in {timeout:g} s")
    if sorted(found.values()) != list(range(num_clients)):
        raise ConfigError("num_clients", num_clients, f"the number of nodes, which is {len(found)}")
    return found


def _asks_for_training(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == MessageType.TRAIN


def _kind_and_reason(reply: Message | None) -> tuple[Kind, str]:
    """What became of a client, and that in one line."""
    return ("late", _reason(None)) if reply is None else (kind_of_error(reply.error), _reason(reply))


def _reason(reply: Message | None) -> str:
    """Why a reply is a failure, in one line."""
    if reply is None:
        return "no reply within the timeout"
    return " ".join((reply.error.reason or f"error {reply.error.code}").split())
