"""What the package's own grids share: a grid carries messages between Flower's server and its clients."""

import logging
import math
import time
import traceback
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_cmi.flower.failure import Kind, failed, kind_of_exception

__all__ = ["Deadline", "LiveGrid", "PartitionGrid", "answer", "own_copy"]

log = logging.getLogger(__name__)


class LiveGrid(Grid):
    """A grid that tells of each reply, good or not, the moment it is there.

    Attributes:
        on_reply: Called with every reply of `send_and_receive`.
        on_retry: Called with the node id, the kind and a line when a client is asked again.
        partition_ids: Partition id of each node id, where the grid knows; elsewhere the nodes have to be
            asked.
        served: Good replies by the address of the machine they came from, on a cluster; elsewhere nothing.
    """

    on_reply: Callable[[Message], None] | None = None
    on_retry: Callable[[int, Kind, str], object] | None = None
    partition_ids: Mapping[int, int] | None = None
    served: Mapping[str, int] = MappingProxyType({})

    def report(self, reply: Message) -> Message:
        """Pass `reply` to who listens, and on."""
        if self.on_reply is not None:
            self.on_reply(reply)
        return reply

    def client_states(self) -> dict[int, RecordDict] | None:
        """What clients keep from message to message, those that keep something; None where the grid cannot tell."""
        return None

    def restore_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Give clients what they kept; only where `client_states` tells it."""
        raise NotImplementedError(f"{type(self).__name__} does not reach what clients keep")

    def rest(self) -> None:
        """Give back what is set aside for clients, until the next message; nothing, where nothing is."""


class PartitionGrid(LiveGrid):
    """A grid that runs the clients itself; its node ids are the partition ids.

    Every client has a context that lasts from message to message. It is kept only where the client answered
    well: one that raised finds its context as it was before.

    Args:
        num_clients: Number of clients.
    """

    def __init__(self, num_clients: int) -> None:
        # Flower's messages take their sender from a global of the process.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self._run = Run.create_empty(run_id=1)
        self.partition_ids = {client: client for client in range(num_clients)}

    def set_run(self, run: Run) -> None:
        """Take over Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

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

    def get_node_ids(self) -> Iterable[int]:
        """All clients."""
        return list(self.partition_ids or ())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not offered: messages are sent and answered in one call."""
        raise NotImplementedError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered: messages are sent and answered in one call."""
        raise NotImplementedError("use send_and_receive")

    @abstractmethod
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One reply per message, in their order; failures and timeouts are replies with an error.

        Args:
            messages: To the clients.
            timeout: Seconds until all replies have to be there.
        """

    def fresh_context(self, client: int) -> Context:
        """The context of a client that was never asked."""
        config = {"partition-id": client, "num-partitions": len(self.partition_ids or ())}
        return Context(run_id=1, node_id=client, node_config=config, state=RecordDict(), run_config={})

    def context_with(self, client: int, state: RecordDict) -> Context:
        """The context of a client that keeps this."""
        context = self.fresh_context(client)
        context.state = state
        return context


@dataclass(frozen=True)
class Deadline:
    """When waiting ends.

    Args:
        seconds: Length of the wait, infinite for none.
        end: Its end on the monotonic clock.
    """

    seconds: float
    end: float

    @classmethod
    def within(cls, *timeouts: float | None) -> "Deadline":
        """The earliest of some timeouts in seconds, from now; None never ends."""
        seconds = min((timeout for timeout in timeouts if timeout is not None), default=math.inf)
        return cls(seconds, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self.end - time.monotonic())

    @property
    def missed(self) -> str:
        """The reason of a failure."""
        return f"no reply within {self.seconds:g} s"


def number(messages: Iterable[Message]) -> list[Message]:
    """The messages, each with an id, which Flower leaves to the grid."""
    messages = list(messages)
    for message in messages:
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return messages


def delivered(metadata: Metadata, content: RecordDict) -> Message:
    """A message as its receiver gets it."""
    return Message(content=content, metadata=metadata)


def answer(app: ClientApp, message: Message, context: Context) -> tuple[Message, str]:
    """The app's reply and "", or a reply with an error of one line and the traceback."""
    try:
        reply = app(message=message, context=context)
        if not isinstance(reply, Message):
            raise TypeError(f"the client app returned {type(reply).__name__}, not a Message")
    except (Exception, SystemExit) as error:  # whatever a client raises is the server's to judge
        return failed(message, told(error), kind_of_exception(error)), traceback.format_exc()
    return reply, ""


def told(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def own_copy(records: RecordDict) -> RecordDict:
    """A copy whose records can be changed without changing the original's; arrays are shared."""
    copy = RecordDict()
    for name, record in records.items():
        items = {key: list(value) if isinstance(value, list) else value for key, value in record.items()}
        copy[name] = ArrayRecord(items) if isinstance(record, ArrayRecord) else type(record)(items)
    return copy
