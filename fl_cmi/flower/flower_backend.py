"""Flower's own simulation engine, the reference: slower, and guarded against its ways to hang.

Its entry point is deprecated, and there is no other one in Python. What is guarded: it starts the server
before the nodes and before the engine is up, and leaves it waiting where the engine fails; a client that
hangs keeps the engine from ending; a process that dies takes its place in the pool with it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from tempfile import TemporaryDirectory

import ray
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import telemetry
from flwr.supercore.run import Run

from fl_cmi.flower.backend import MakeApp, Serve, check_timeouts, flower_log
from fl_cmi.flower.client import client_app
from fl_cmi.flower.failure import failed
from fl_cmi.flower.flower_worker import Lifeline, Work, forwarding_app, plainly
from fl_cmi.flower.grid import Deadline, LiveGrid
from fl_cmi.flower.ray_session import ClientResources, num_actors_that_fit, ray_session
from fl_cmi.interrupt import raise_in, signals_given_to
from fl_cmi.partition import Partition
from fl_cmi.types import ConfigError

__all__ = ["FlowerBackend"]

POLL = 0.1
"""Seconds between two looks for replies, as in Flower's own grid."""


class FlowerBackend:
    """Runs the clients in Flower's simulation engine.

    Args:
        client_resources: What Ray sets aside for one client: `num_cpus` (1) and `num_gpus` (0).
        retries: How often a client is asked again after its process died.
        timeout: Seconds for all replies of a round.
        client_timeout: Seconds for each client, from when a process begins with it.
    """

    def __init__(
        self,
        client_resources: Mapping[str, float] | None = None,
        retries: int = 1,
        timeout: float | None = None,
        client_timeout: float | None = None,
    ) -> None:
        if retries < 0:
            raise ConfigError("backend.retries", retries, "an integer >= 0")
        check_timeouts(timeout, client_timeout)
        self.client_resources = ClientResources.of(client_resources)
        self.retries, self.timeout, self.client_timeout = retries, timeout, client_timeout

    def run(
        self,
        config_json: str,
        partition: Partition,
        num_clients: int,
        serve: Serve,
        make_app: MakeApp = client_app,
    ) -> None:
        """As `fl_cmi.flower.backend.Backend`; `serve` runs in another thread, and Ray ends with the run."""
        from flwr.simulation import run_simulation

        # Flower reads the variable when it is first imported, which may have been before this package was.
        telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]

        with (
            flower_log(),
            _without_deprecation(),
            TemporaryDirectory(prefix="fl_cmi-") as folder,
            ray_session(),
        ):
            num_actors_that_fit(self.client_resources, num_clients)
            lifeline = Lifeline(folder, self.client_timeout)
            lifeline.tie()
            server = _Server(serve, self.timeout, lifeline)
            work = Work(make_app, config_json, ray.put(partition), lifeline)
            # Options for actors pass through the resources; without these a dead process stays in the pool.
            resources = {
                **self.client_resources.by_name,
                "max_restarts": -1,
                "max_task_retries": self.retries,
            }
            engine_error: Exception | None = None
            try:
                with signals_given_to(server.interrupt):
                    run_simulation(
                        server_app=server.app,
                        client_app=forwarding_app(work),
                        num_supernodes=num_clients,
                        backend_config={"client_resources": resources},
                    )
            except Exception as error:  # weighed below against the server's own
                engine_error = error
            finally:
                server.stop()
            cause = server.error or engine_error
            if cause is not None:
                raise cause


class _Server:
    """The server's thread, seen from the engine's.

    Args:
        serve: The server.
        timeout: Seconds for all replies of a round.
        lifeline: Without which clients end.
    """

    def __init__(self, serve: Serve, timeout: float | None, lifeline: Lifeline) -> None:
        self.error: BaseException | None = None
        self._thread: int | None = None
        self.app = ServerApp()
        self.app.main()(self._main)
        self._serve, self._timeout, self._lifeline = serve, timeout, lifeline
        self._stop, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._num_threads = torch.get_num_threads()

    def stop(self) -> None:
        """Let the server end at its next look for replies, and wait for that."""
        self._stop.set()
        self._idle.wait()

    def interrupt(self, exception: type[BaseException]) -> None:
        """Let the server end wherever it is, and the clients, for which the engine would wait."""
        if self.error is None:
            self.error = exception()
            self._stop.set()
            self._lifeline.cut()
            if self._thread is not None:
                raise_in(self._thread, exception)

    def _main(self, grid: Grid, context: Context) -> None:
        self._idle.clear()
        self._thread = threading.get_ident()
        # A thread of its own would count its own number of threads, and sums depend on it.
        torch.set_num_threads(self._num_threads)
        engine = EngineGrid(grid, self._stop, self._timeout, self._lifeline)
        try:
            self._serve(engine)
        except EngineStoppedError:
            pass  # the engine's own error is the one to tell
        except BaseException as error:  # raised again in the caller's thread
            self.error = error
        finally:
            self._thread = None
            if engine.clients_hang:
                self._lifeline.cut()  # the engine would wait for them
            self._idle.set()


class EngineStoppedError(RuntimeError):
    """The engine has ended; there are no clients to wait for."""


class EngineGrid(LiveGrid):
    """Flower's grid, with replies as they come and an end to waiting when the engine has ended.

    Args:
        grid: Flower's.
        stop: Set when the engine has ended.
        timeout: Seconds for all replies of a `send_and_receive`.
        lifeline: Tells which clients have had their time.

    Attributes:
        clients_hang: Whether a client did not answer in time.
    """

    def __init__(self, grid: Grid, stop: threading.Event, timeout: float | None, lifeline: Lifeline) -> None:
        self._grid, self._stop, self._timeout, self._lifeline = grid, stop, timeout, lifeline
        self.clients_hang = False

    def set_run(self, run: Run) -> None:
        """Of Flower's grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Of Flower's grid."""
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

    def get_node_ids(self) -> Iterable[int]:
        """The nodes registered so far."""
        self._check()
        return list(self._grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Of Flower's grid."""
        return list(self._grid.push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Of Flower's grid."""
        return list(self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """One reply per message, in the order in which they come; those missing at the end with an error."""
        messages = list(messages)
        # Queries come first, and wait for processes to start: that is not the clients' time.
        starting = any(m.metadata.message_type.startswith(MessageType.QUERY) for m in messages)
        deadline = Deadline.within(timeout, None if starting else self._timeout)
        waiting = dict(zip(self.push_messages(messages), messages, strict=True))
        replies: list[Message] = []
        while waiting and deadline.left:
            self._check()
            for reply in self.pull_messages(list(waiting)):
                message = waiting.pop(reply.metadata.reply_to_message_id)
                replies.append(self.report(plainly(reply, message)))
            for message_id in [key for key in waiting if self._lifeline.given_up(key)]:
                message = waiting.pop(message_id)
                missed = Deadline.within(self._lifeline.client_timeout).missed
                replies.append(self.report(failed(message, missed, "late")))
            if waiting:
                time.sleep(min(POLL, deadline.left))
        self.clients_hang |= bool(waiting)
        return replies + [
            self.report(failed(message, deadline.missed, "late")) for message in waiting.values()
        ]

    def _check(self) -> None:
        if self._stop.is_set():
            raise EngineStoppedError("Flower's simulation engine has ended")


class _without_deprecation(logging.Filter):  # noqa: N801 - used like a function
    """Leaves out Flower's remark that its entry point is deprecated."""

    def __enter__(self) -> None:
        logging.getLogger("flwr").addFilter(self)

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("flwr").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return "run_simulation" not in record.getMessage()
