"""A grid on Ray actors.

The content of a round's messages is put into the object store once, however many clients get it, and its
arrays travel as arrays. Each client's context stays in the store and never passes through the server. An
actor that dies is replaced and its message given to another one; replies come back in the order of the
messages.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from fl_cmi.flower.failure import BackendFailure, cause_of_death, failed
from fl_cmi.flower.grid import Deadline, PartitionGrid, answer, delivered, number
from fl_cmi.flower.ray_arrays import send_arrays_as_arrays

__all__ = ["RayGrid"]

log = logging.getLogger(__name__)

START_LIMIT = 300.0
"""Seconds after which actors that do not come up are given up: others hold the cluster's resources."""

ActorHandle = Any
"""Ray has no type for the handle of an actor."""


@ray.remote(max_restarts=0)
class Worker:
    """A process that runs the client app.

    Args:
        make_app: Makes the app.
        args: Its arguments.
    """

    def __init__(self, make_app: Callable[..., ClientApp], *args: Any) -> None:
        send_arrays_as_arrays()
        self._app = make_app(*args)

    def ready(self) -> None:
        """Answer once the process is up."""

    def run(
        self, metadata: Metadata, content: RecordDict, context: Context
    ) -> tuple[tuple[Message, str], Context]:
        """What `answer` gives, and the context as the client left it."""
        return answer(self._app, delivered(metadata, content), context), context


@dataclass
class Job:
    """A message on its way.

    Args:
        position: Its place among the messages.
        message: To a client.
        content: Its content in the object store.
        retries: How often it may be given to another actor yet.
        actor: Who works on it.
        context: The client's context afterwards, in the object store.
        deadline: Until when it has to be done.
    """

    position: int
    message: Message
    content: ray.ObjectRef
    retries: int
    actor: ActorHandle = None
    context: Any = None
    deadline: Deadline = field(default_factory=Deadline.within)

    @property
    def client(self) -> int:
        """Partition id of the receiver."""
        return int(self.message.metadata.dst_node_id)


class RayGrid(PartitionGrid):
    """Runs the client app in a pool of processes; Ray has to be up.

    Args:
        make_app: Importable by name in other processes; makes the client app from `args`.
        args: Arguments of `make_app`; object references are given as what they refer to.
        num_clients: Number of clients.
        num_actors: Clients at work at once.
        actor_options: Ray's options for an actor, such as `num_cpus`.
        retries: How often a client is asked again after its process died; it then does its work twice.
        timeout: Seconds for all replies of a `send_and_receive`; who is late is killed.
        client_timeout: Seconds for one reply, from when an actor begins with it.
    """

    def __init__(
        self,
        make_app: Callable[..., ClientApp],
        args: tuple[Any, ...],
        num_clients: int,
        num_actors: int,
        actor_options: dict[str, float] | None = None,
        retries: int = 1,
        timeout: float | None = None,
        client_timeout: float | None = None,
    ) -> None:
        super().__init__(num_clients)
        send_arrays_as_arrays()
        self._make_app, self._args = make_app, args
        self._options, self._retries = actor_options or {}, retries
        self._timeout, self._client_timeout = timeout, client_timeout
        self._contexts = {client: ray.put(self.fresh_context(client)) for client in range(num_clients)}
        self._idle: list[ActorHandle] = []
        self._starting: dict[ray.ObjectRef, ActorHandle] = {}
        self._busy: dict[ray.ObjectRef, Job] = {}
        self._stillborn = 0
        self._last_sign = time.monotonic()
        self._num_actors = num_actors
        for _ in range(num_actors):
            self._start_actor()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The clients' replies, in the order of the messages."""
        messages = number(messages)
        deadline = Deadline.within(timeout, self._timeout)
        todo = deque(self._jobs(messages))
        replies: dict[int, Message] = {}
        self._last_sign = time.monotonic()
        try:
            while todo or self._busy:
                while todo and self._idle:
                    self._dispatch(todo.popleft())
                done = self._wait(deadline)
                for reference in done:
                    if reference in self._starting:
                        self._actor_came_up(reference)
                        continue
                    job = self._busy.pop(reference)
                    reply = self._collect(reference, job)
                    if reply is None:
                        todo.appendleft(job)
                    else:
                        replies[job.position] = self.report(reply)
                for job in self._overdue():
                    replies[job.position] = self.report(failed(job.message, job.deadline.missed, "late"))
                if not done and not deadline.left:
                    for job in self._busy.values():
                        replies[job.position] = self.report(failed(job.message, deadline.missed, "late"))
                    for job in todo:
                        reason = f"{deadline.missed} (never started)"
                        replies[job.position] = self.report(failed(job.message, reason, "late"))
                    break
        finally:
            self._abandon()
        return [replies[position] for position in range(len(messages))]

    def client_states(self) -> dict[int, RecordDict]:
        """Of all contexts that are not empty, fetched from the object store."""
        contexts = zip(self._contexts, ray.get(list(self._contexts.values())), strict=True)
        return {client: context.state for client, context in contexts if len(context.state)}

    def restore_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Into the object store."""
        for client, state in states.items():
            self._contexts[client] = ray.put(self.context_with(client, state))

    def close(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *self._starting.values(), *(job.actor for job in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._starting, self._busy = [], {}, {}

    def _jobs(self, messages: list[Message]) -> list[Job]:
        """The messages with their contents in the object store, each distinct one once."""
        stored: dict[int, ray.ObjectRef] = {}
        for message in messages:
            if id(message.content) not in stored:
                stored[id(message.content)] = ray.put(message.content)
        return [Job(k, m, stored[id(m.content)], self._retries) for k, m in enumerate(messages)]

    def _dispatch(self, job: Job) -> None:
        """Give a job to an idle actor."""
        job.actor = self._idle.pop()
        reply, job.context = job.actor.run.options(num_returns=2).remote(
            job.message.metadata, job.content, self._contexts[job.client]
        )
        job.deadline = Deadline.within(self._client_timeout)
        self._busy[reply] = job

    def _overdue(self) -> list[Job]:
        """Jobs that have had their time: their actors are replaced, and nobody waits for them any more."""
        late = {reference: job for reference, job in self._busy.items() if not job.deadline.left}
        # A reply may have come since the last look; it counts.
        there = ray.wait(list(late), num_returns=len(late), timeout=0)[0] if late else []
        for reference in there:
            del late[reference]
        for reference, job in late.items():
            del self._busy[reference]
            self._replace(job.actor)
        return list(late.values())

    def _wait(self, deadline: Deadline) -> list[ray.ObjectRef]:
        """What has finished: at least one reply or one actor, unless the deadline has come."""
        # Without work under way, only actors are awaited, and those may never come.
        ends = [job.deadline.left for job in self._busy.values()] or [START_LIMIT]
        patience = min(deadline.left, *ends)
        running = [*self._busy, *self._starting]
        timeout = None if patience == float("inf") else patience
        done, _ = ray.wait(running, num_returns=1, timeout=timeout)
        if done:
            self._last_sign = time.monotonic()
        elif deadline.left and not self._busy and time.monotonic() - self._last_sign >= START_LIMIT:
            raise BackendFailure(
                f"no Ray actor came up in {START_LIMIT:g} s; the cluster may be taken by others"
            )
        return list(done)

    def _collect(self, reference: ray.ObjectRef, job: Job) -> Message | None:
        """A job's final reply; None where its actor died and another one is to try."""
        try:
            reply, trace = ray.get(reference)
        except (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            self._replace(job.actor)
            log.warning("client %d: its process died; %d retries left; %s", job.client, job.retries, error)
            kind, reason = cause_of_death(f"{type(error).__name__}: {error}")
            if job.retries:
                job.retries -= 1
                if self.on_retry is not None:
                    self.on_retry(job.client, kind, reason)
                return None
            return failed(job.message, reason, kind)
        except RayError as error:  # such as a context lost with its machine
            self._idle.append(job.actor)
            log.error("client %d: %s", job.client, error)
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            return failed(job.message, reason, "died")
        self._idle.append(job.actor)
        if trace:
            log.error("client %d raised\n%s", job.client, trace)
        if not reply.has_error():
            self._contexts[job.client] = job.context
        return reply

    def _start_actor(self) -> None:
        """Start an actor; it gets work once it is up, since one on a lost machine may never be."""
        actor = Worker.options(**self._options).remote(  # type: ignore[attr-defined]
            self._make_app, *self._args
        )
        self._starting[actor.ready.remote()] = actor

    def _actor_came_up(self, reference: ray.ObjectRef) -> None:
        """Take an actor that is up into the pool, or replace it where it died on the way."""
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._stillborn += 1
            if self._stillborn > self._retries * self._num_actors:
                kind, reason = cause_of_death(f"{type(error).__name__}: {error}")
                told = reason if kind == "memory" else str(error).strip().splitlines()[-1]
                raise BackendFailure(f"the clients' processes die while they start: {told}") from error
            self._replace(actor)
            return
        self._stillborn = 0
        self._idle.append(actor)

    def _replace(self, actor: ActorHandle) -> None:
        """End an actor, be it dead or not, and start another one in its place."""
        ray.kill(actor)
        self._start_actor()

    def _abandon(self) -> None:
        """Replace the actors that are still at work, on jobs that nobody waits for any more."""
        for job in self._busy.values():
            self._replace(job.actor)
        self._busy = {}
