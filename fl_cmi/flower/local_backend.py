"""Clients one after the other in this process: starts at once, and a debugger reaches everything."""

import logging
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_cmi.flower.backend import MakeApp, Serve, check_timeouts, flower_log
from fl_cmi.flower.client import client_app
from fl_cmi.flower.failure import failed
from fl_cmi.flower.grid import Deadline, PartitionGrid, answer, delivered, number, own_copy
from fl_cmi.partition import Partition
from fl_cmi.types import ConfigError

__all__ = ["LocalBackend", "LocalGrid"]

log = logging.getLogger(__name__)


class LocalBackend:
    """Runs the clients in this process, one at a time.

    Args:
        timeout: Seconds for all replies of a round. A client cannot be interrupted here: one that is late
            counts as failed when it has ended, and those after it are not started.
        reraise: Let a client's exception through instead of turning it into a failed reply, for a debugger.
        client_timeout: None: a client that hangs hangs the run.
    """

    makes_room = True
    """For workers of the server, on a Ray that no client is in."""

    def __init__(
        self, timeout: float | None = None, reraise: bool = False, client_timeout: float | None = None
    ) -> None:
        check_timeouts(timeout, client_timeout)
        if client_timeout is not None:
            allowed = "null with backend=local, where nobody could stop a client that hangs; or backend=ray or flower"
            raise ConfigError("client_timeout", client_timeout, allowed)
        self.timeout, self.reraise = timeout, reraise

    def run(
        self,
        config_json: str,
        partition: Partition,
        num_clients: int,
        serve: Serve,
        make_app: MakeApp = client_app,
    ) -> None:
        """As `fl_cmi.flower.backend.Backend`."""
        with flower_log():
            serve(LocalGrid(make_app(config_json, partition), num_clients, self.timeout, self.reraise))


class LocalGrid(PartitionGrid):
    """Calls the client app directly.

    Args:
        app: The app of all clients.
        num_clients: Number of clients.
        timeout: As for `LocalBackend`.
        reraise: As for `LocalBackend`.
    """

    def __init__(
        self, app: ClientApp, num_clients: int, timeout: float | None = None, reraise: bool = False
    ) -> None:
        super().__init__(num_clients)
        self._app, self._timeout, self._reraise = app, timeout, reraise
        self._contexts = {client: self.fresh_context(client) for client in range(num_clients)}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The clients' replies, in the order of the messages."""
        deadline = Deadline.within(timeout, self._timeout)
        return [self.report(self._ask(message, deadline)) for message in number(messages)]

    def client_states(self) -> dict[int, RecordDict]:
        """Of all contexts that are not empty."""
        return {client: context.state for client, context in self._contexts.items() if len(context.state)}

    def restore_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Into the contexts."""
        for client, state in states.items():
            self._contexts[client] = self.context_with(client, state)

    def _ask(self, message: Message, deadline: Deadline) -> Message:
        if not deadline.left:
            return failed(message, f"{deadline.missed} (never started)", "late")
        client = message.metadata.dst_node_id
        kept = self._contexts[client]
        context = Context(
            kept.run_id, kept.node_id, dict(kept.node_config), own_copy(kept.state), kept.run_config
        )
        given = delivered(message.metadata, own_copy(message.content))
        if self._reraise:
            reply, trace = self._app(message=given, context=context), ""
        else:
            reply, trace = answer(self._app, given, context)
        if trace:
            log.error("client %d raised\n%s", client, trace)
        if not deadline.left:
            return failed(message, deadline.missed, "late")
        if not reply.has_error():
            self._contexts[client] = context
        return reply
