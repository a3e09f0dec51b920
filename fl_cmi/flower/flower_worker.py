"""What runs in the processes of Flower's simulation engine.

The engine itself stops no client, and it asks the client of a dead process again. So each process watches itself: it
ends when the run is over, and when its client has had its time. A file in the run's own folder tells the server, and
the same client when it is asked again.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import ray
from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from fl_cmi.flower.backend import MakeApp
from fl_cmi.flower.failure import Kind, cause_of_death, failed, kind_of_error, kind_of_exception
from fl_cmi.flower.grid import Deadline, told

__all__ = ["Lifeline", "Work", "forwarding_app", "plainly"]

POLL = 0.2
"""Seconds between two looks at the folder."""

MARKED = re.compile(r"<<(\w+)\|(.*?)>>", re.DOTALL)
"""A client's exception within what the engine makes of it: kind and line."""


@dataclass(frozen=True)
class Lifeline:
    """Files by which server and clients tell each other what Flower's engine does not.

    Args:
        folder: Holds them; seen by all processes.
        client_timeout: Seconds for each client, None for no limit.
    """

    folder: str
    client_timeout: float | None

    def tie(self) -> None:
        """Let clients run."""
        self._running.touch()

    def cut(self) -> None:
        """Let every process of a client end."""
        self._running.unlink(missing_ok=True)

    @property
    def holds(self) -> bool:
        """Whether clients may run."""
        return self._running.exists()

    def give_up(self, message_id: str) -> None:
        """Let nobody work on a message any more."""
        self._late(message_id).touch()

    def given_up(self, message_id: str) -> bool:
        """Whether the client of a message has had its time."""
        return self._late(message_id).exists()

    @property
    def _running(self) -> Path:
        return Path(self.folder, "running")

    def _late(self, message_id: str) -> Path:
        return Path(self.folder, f"late-{message_id}")


@dataclass(frozen=True)
class Work:
    """What a process needs to be any client.

    Args:
        make_app: Makes the client app from the next two.
        config_json: The run's config.
        partition: Which images are whose, in the object store.
        lifeline: Without which processes end.
    """

    make_app: MakeApp
    config_json: str
    partition: ray.ObjectRef
    lifeline: Lifeline


def forwarding_app(work: Work) -> ClientApp:
    """A small stand-in for the client app: the engine pickles its app with every message."""
    app = ClientApp()
    forward = partial(_forward, work=work)
    app.train()(forward)
    app.query()(forward)
    return app


def plainly(reply: Message, message: Message) -> Message:
    """A reply of the engine to `message`, its error, if there is one, told as by the other backends."""
    if not reply.has_error():
        return reply
    said = reply.error.reason or ""
    marked = MARKED.search(said)
    if marked is not None:
        kind: Kind = marked[1]  # type: ignore[assignment]
        return failed(message, marked[2], kind)
    kind = kind_of_error(reply.error)
    kind, said = cause_of_death(said) if kind == "died" else (kind, said)
    return failed(message, said, kind)


def _forward(message: Message, context: Context, work: Work) -> Message:
    """Be the client, for as long as it may take."""
    lifeline, message_id = work.lifeline, str(message.metadata.message_id)
    if not lifeline.holds:
        raise RuntimeError("the run is over")
    if lifeline.given_up(message_id):
        raise TimeoutError("the run has gone on without this client")
    training = message.metadata.message_type.startswith(MessageType.TRAIN)
    try:
        with _watch(lifeline).over(
            message_id, Deadline.within(lifeline.client_timeout if training else None)
        ):
            return _app(work.make_app, work.config_json, work.partition)(message=message, context=context)
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"<<{kind_of_exception(error)}|{told(error)}>>") from error


@lru_cache(maxsize=1)
def _app(make_app: MakeApp, config_json: str, partition: ray.ObjectRef) -> ClientApp:
    """The client app, made once per process."""
    return make_app(config_json, ray.get(partition))


class _Watch:
    """Ends this process when the run is over or a client has had its time, whatever it is doing.

    Args:
        lifeline: Of the run.
    """

    def __init__(self, lifeline: Lifeline) -> None:
        self.lifeline = lifeline
        self._lock = threading.Lock()
        self._message_id, self._deadline = "", Deadline.within()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def over(self, message_id: str, deadline: Deadline) -> Iterator[None]:
        """Watch over the work on a message."""
        self._message_id, self._deadline = message_id, deadline
        try:
            yield
        finally:
            with self._lock:
                self._deadline = Deadline.within()

    def _look(self) -> None:
        while self.lifeline.holds:
            with self._lock:
                if not self._deadline.left:
                    self.lifeline.give_up(self._message_id)
                    os._exit(1)
            time.sleep(POLL)
        os._exit(1)


@lru_cache(maxsize=1)
def _watch(lifeline: Lifeline) -> _Watch:
    """This process's own."""
    return _Watch(lifeline)
