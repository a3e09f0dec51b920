"""A grid on Ray actors.

The content of a round's messages is put into the object store once, however many clients get it, and its
arrays travel as arrays. Each client's context stays in the store and never passes through the server. An
actor that dies is replaced and its message given to another one; replies come back in the order of the
messages.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from fl_cmi.flower.failure import BackendFailure, cause_of_death, failed
from fl_cmi.flower.grid import Deadline, PartitionGrid, answer, delivered, number
from fl_cmi.flower.ray_arrays import send_arrays_as_arrays
from fl_cmi.flower.ray_pool import LOOK, ActorHandle, ActorPool, Describe
from fl_cmi.flower.surroundings import Surroundings

__all__ = ["RayGrid"]

log = logging.getLogger(__name__)

START_LIMIT = 300.0
"""Seconds after which actors that do not come up are given up: others hold the cluster's resources."""

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
"""What Ray raises when a process is gone, or what it had made is gone with its machine."""


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

    def ready(self, describe: Describe | None = None) -> Surroundings | None:
        """Answer once the process is up, with what it finds around it if that is wanted."""
        return None if describe is None else describe()

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
        died_on: Address of the machine where the last one who did has died.
        context: The client's context afterwards, in the object store.
        deadline: Until when it has to be done.
    """

    position: int
    message: Message
    content: ray.ObjectRef
    retries: int
    actor: ActorHandle = None
    died_on: str = ""
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
        num_actors: Clients at work at once, at most; fewer while there is no room for more.
        actor_options: Ray's options for an actor, such as `num_cpus`.
        retries: How often a client is asked again after its process died; it then does its work twice.
        timeout: Seconds for all replies of a `send_and_receive`; who is late is killed.
        client_timeout: Seconds for one reply, from when an actor begins with it.
        describe: On a cluster: what has to be alike on all machines. What clients keep is then brought to this
            machine, where it outlives theirs, and `served` counts.
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
        describe: Describe | None = None,
    ) -> None:
        super().__init__(num_clients)
        send_arrays_as_arrays()
        self._retries, self._timeout, self._client_timeout = retries, timeout, client_timeout
        self._contexts = {client: ray.put(self.fresh_context(client)) for client in range(num_clients)}
        self._busy: dict[ray.ObjectRef, Job] = {}
        self._last_sign = time.monotonic()
        self._cluster, self._served = describe is not None, Counter[str]()
        self.served = self._served

        def make(options: Mapping[str, Any]) -> ActorHandle:
            return Worker.options(**options).remote(make_app, *args)  # type: ignore[attr-defined]

        self._pool = ActorPool(make, actor_options or {}, num_actors, retries, describe)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The clients' replies, in the order of the messages."""
        messages = number(messages)
        deadline = Deadline.within(timeout, self._timeout)
        todo = deque(self._jobs(messages))
        self._pool.fill()
        replies: dict[int, Message] = {}
        self._last_sign = time.monotonic()
        try:
            while todo or self._busy:
                while todo and self._pool.idle:
                    self._dispatch(todo.popleft())
                done = self._wait(deadline)
                for reference in done:
                    if reference in self._pool.starting:
                        self._pool.came_up(reference)
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

    def rest(self) -> None:
        """End all actors; the next message starts others."""
        self.close()

    def close(self) -> None:
        """End all actors."""
        self._pool.close()
        self._busy = {}

    def _jobs(self, messages: list[Message]) -> list[Job]:
        """The messages with their contents in the object store, each distinct one once."""
        stored: dict[int, ray.ObjectRef] = {}
        for message in messages:
            if id(message.content) not in stored:
                stored[id(message.content)] = ray.put(message.content)
        return [Job(k, m, stored[id(m.content)], self._retries) for k, m in enumerate(messages)]

    def _dispatch(self, job: Job) -> None:
        """Give a job to an idle actor."""
        job.actor = self._pool.take(but_not=job.died_on)
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
            self._pool.replace(job.actor)
        return list(late.values())

    def _wait(self, deadline: Deadline) -> list[ray.ObjectRef]:
        """What has finished: at least one reply or one actor, unless the deadline has come."""
        # Without work under way, only actors are awaited, and those may never come.
        ends = [job.deadline.left for job in self._busy.values()] or [START_LIMIT]
        patience = min(deadline.left, *ends, float("inf") if self._pool.full else LOOK)
        running = [*self._busy, *self._pool.starting]
        timeout = None if patience == float("inf") else patience
        done: list[ray.ObjectRef] = []
        if running:
            done, _ = ray.wait(running, num_returns=1, timeout=timeout)
        else:  # until a machine has room
            time.sleep(patience)
        self._pool.look()
        if done:
            self._last_sign = time.monotonic()
        elif deadline.left and not self._busy and time.monotonic() - self._last_sign >= START_LIMIT:
            raise BackendFailure(
                f"no Ray actor came up in {START_LIMIT:g} s; the cluster may be taken by others"
            )
        return done

    def _collect(self, reference: ray.ObjectRef, job: Job) -> Message | None:
        """A job's final reply; None where its actor died and another one is to try."""
        try:
            reply, trace = ray.get(reference)
            # A machine that is lost takes what lies in its object store along.
            context = ray.put(ray.get(job.context)) if self._cluster else job.context
        except DEATHS as error:
            job.died_on = self._pool.address(job.actor)
            self._pool.replace(job.actor)
            log.warning("client %d: its process died; %d retries left; %s", job.client, job.retries, error)
            kind, reason = cause_of_death(f"{type(error).__name__}: {error}")
            if job.retries:
                job.retries -= 1
                if self.on_retry is not None:
                    self.on_retry(job.client, kind, reason)
                return None
            return failed(job.message, reason, kind)
        except RayError as error:  # such as a context lost with its machine
            self._pool.idle.append(job.actor)
            log.error("client %d: %s", job.client, error)
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            return failed(job.message, reason, "died")
        self._pool.idle.append(job.actor)
        if trace:
            log.error("client %d raised\n%s", job.client, trace)
        if not reply.has_error():
            self._contexts[job.client] = context
            self._served[self._pool.address(job.actor)] += self._cluster
        return reply

    def _abandon(self) -> None:
        """Replace the actors that are still at work, on jobs that nobody waits for any more."""
        for job in self._busy.values():
            self._pool.replace(job.actor)
        self._busy = {}
