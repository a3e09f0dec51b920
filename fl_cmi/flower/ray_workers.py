"""The server's workers on Ray: actors that make and label batches of images.

They live for a round. Between rounds their resources are the clients', whose actors give them back in turn.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from fl_cmi.checks import pick_device
from fl_cmi.flower.failure import cause_of_death
from fl_cmi.flower.ray_grid import START_LIMIT
from fl_cmi.flower.ray_session import ClientResources, num_that_fit, ray_session
from fl_cmi.memory import keep_freed_memory
from fl_cmi.synthesis.crew import WorkerFailure
from fl_cmi.synthesis.maker import Equipment, Maker, Moment, Order, Packed, Piece
from fl_cmi.types import ConfigError

__all__ = ["RayWorkers"]

log = logging.getLogger(__name__)

REPEATS = 2
"""How often a batch is made again because its worker died."""

QUEUE = 2
"""Batches that a worker has before it: one to make, and one so that it need not wait. A quick one stops there."""

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
"""Of a process, or of a machine with what was made there."""

ActorHandle = Any
"""Ray has no type for the handle of an actor."""


@ray.remote(max_restarts=0)
class Worker:
    """A process with a maker.

    Args:
        equipment: Of the round.
        state: What its synthesizer remembers, or None.
        device: As the user named it; each machine finds its own.
        num_threads: Of torch.
    """

    def __init__(self, equipment: Equipment, state: Packed | None, device: str, num_threads: int) -> None:
        keep_freed_memory()
        torch.set_num_threads(num_threads)
        self._maker = Maker(equipment, pick_device(device), state)

    def ready(self) -> None:
        """Answer once the process is up."""

    def make(self, moment: Moment, order: Order) -> Piece:
        """One batch."""
        return self._maker(moment, order)


class RayWorkers:
    """So many actors, each of which has its batches in its queue; one that dies is replaced, and begins where it was.

    They use the Ray that this process is in, or else one of their own on this machine.

    Args:
        number: Of workers, >= 1.
        num_cpus: CPUs that Ray sets aside for each, > 0; the whole ones among them, at least 1, are its threads.
        num_gpus: GPUs likewise.
        device: Where they work: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, number: int, num_cpus: float = 1, num_gpus: float = 0, device: str = "auto") -> None:
        self.number, self.num_gpus, self.num_replaced = number, num_gpus, 0
        self.resources, self.device = ClientResources(num_cpus, num_gpus), device
        self.num_threads = max(1, int(num_cpus))
        self.actors: dict[int, ActorHandle] = {}
        self.states: dict[int, Packed] = {}
        self.equipment: ray.ObjectRef | None = None

    @contextmanager
    def hired(self) -> Iterator[None]:
        """As `fl_cmi.synthesis.crew.Workers`."""
        with ray_session():
            fitting = num_that_fit(self.resources, "server.worker_cpus", "server.worker_")
            if self.number > fitting:
                each = f"{self.resources.num_cpus:g} CPU and {self.num_gpus:g} GPU each"
                raise ConfigError("server.workers", self.number, f"at most {fitting} with {each}, or null")
            try:
                yield
            finally:
                self.rest()

    def begin(self, equipment: Equipment, states: Mapping[int, Packed]) -> None:
        """Start the actors; the equipment is put into the object store once."""
        self.equipment, self.states = ray.put(equipment), dict(states)
        for worker in range(self.number):
            self._start(worker)
        try:
            self._await(*range(self.number))
        except DEATHS as error:
            said = str(error).strip().splitlines()[-1]
            raise WorkerFailure(f"the workers' processes die while they start: {said}") from error

    def make(self, moment: Moment, orders: Sequence[Order]) -> Iterator[Piece]:
        """Pieces in the order of the orders, whichever comes first."""
        now, sent = ray.put(moment), 0
        coming: dict[int, ray.ObjectRef] = {}
        for place, order in enumerate(orders):
            until = min(place + QUEUE * self.number, len(orders))
            coming |= self._send(now, orders[sent:until])
            sent = until
            for left in reversed(range(REPEATS + 1)):
                try:
                    piece = ray.get(coming.pop(order.number))
                    break
                except RayTaskError as error:
                    if isinstance(error.cause, FloatingPointError | ConfigError):
                        raise error.cause from error
                    raise
                except DEATHS as error:
                    self._replace(order, error, left)
                    # What else it had in its queue is lost, too.
                    again = [other for other in orders[place:sent] if other.worker == order.worker]
                    coming |= self._send(now, again)
            self.states[order.worker] = piece.state
            yield piece

    def _send(self, moment: ray.ObjectRef, orders: Sequence[Order]) -> dict[int, ray.ObjectRef]:
        """Give orders to their workers; the pieces to come, by number."""
        return {order.number: self.actors[order.worker].make.remote(moment, order) for order in orders}

    def rest(self) -> None:
        """End all actors."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors, self.states, self.equipment = {}, {}, None

    def _start(self, worker: int) -> None:
        """Start the actor of this number, with what its synthesizer remembers."""
        self.actors[worker] = Worker.options(**self.resources.by_name).remote(  # type: ignore[attr-defined]
            self.equipment, self.states.get(worker), self.device, self.num_threads
        )

    def _await(self, *workers: int) -> None:
        """Wait until these actors are up: there has to be room for them, and others may have taken it."""
        try:
            ray.get([self.actors[worker].ready.remote() for worker in workers], timeout=START_LIMIT)
        except GetTimeoutError as error:
            why = "the cluster may be taken by others"
            raise WorkerFailure(f"no place for the server's workers in {START_LIMIT:g} s; {why}") from error

    def _replace(self, order: Order, error: Exception, left: int) -> None:
        """Start another actor in the place of one that has died."""
        kind, _ = cause_of_death(f"{type(error).__name__}: {error}")
        reason = "its machine ran out of memory; fewer workers need less" if kind == "memory" else "killed"
        said = f"worker {order.worker}: its process died at batch {order.number} ({reason})"
        if not left:
            raise WorkerFailure(f"{said}, for the {REPEATS + 1}. time") from error
        log.warning("%s; it begins that batch again", said)
        self.num_replaced += 1
        ray.kill(self.actors[order.worker])
        self._start(order.worker)
        with suppress(*DEATHS):  # told again when its batch is asked for
            self._await(order.worker)
