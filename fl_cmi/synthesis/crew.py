"""The server's side of several makers: who makes which batch, in which order they count, and what they cost."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fl_cmi.checkpoint.state import NotResumableError, Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.distillation.budget import CLOCKS, Clock
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.maker import Equipment, Moment, Order, Packed, Piece, packed, unpacked
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import ConfigError, Task

__all__ = ["Crew", "Spent", "WorkerFailure", "Workers", "clocks_of"]


class WorkerFailure(RuntimeError):  # noqa: N818 - like those of clients
    """The end of a run because its workers cannot work; the message is one line."""


class Workers(Protocol):
    """So many makers somewhere.

    Attributes:
        number: How many.
        num_gpus: GPUs that are set aside for each.
        num_replaced: How many have died and were replaced so far.
    """

    number: int
    num_gpus: float
    num_replaced: int

    def hired(self) -> AbstractContextManager[None]:
        """Inside, they can be had; afterwards nothing of them is left.

        Raises:
            ConfigError: Where there is no room for them.
        """
        ...

    def begin(self, equipment: Equipment, states: Mapping[int, Packed]) -> None:
        """A round begins: each gets the equipment, and the state of its own number, if there is one."""
        ...

    def make(self, moment: Moment, orders: Sequence[Order]) -> Iterator[Piece]:
        """Pieces in the order of the orders; each worker does its own one after the other.

        Raises:
            FloatingPointError: As the maker, in the place of its piece.
            WorkerFailure: If workers die again and again.
        """
        ...

    def rest(self) -> None:
        """The round is over: what is set aside for them is given back."""
        ...


@dataclass
class Spent:
    """What the crew's work has cost so far.

    Args:
        batches: Made and taken.
        cpu_s: CPU seconds of the workers.
        gpu_s: Seconds of work times the GPUs set aside for it.
        busy_s: Seconds of work, added up over the workers.
        open_s: Seconds in which the server waited for batches, or took them, once.
    """

    batches: int = 0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    busy_s: float = 0.0
    open_s: float = 0.0

    def add(self, piece: Piece, num_gpus: float, waited_s: float) -> None:
        """A batch was taken, so long after the one before."""
        self.batches += 1
        self.cpu_s += piece.cpu_s
        self.gpu_s += piece.wall_s * num_gpus
        self.busy_s += piece.wall_s
        self.open_s += waited_s


class Crew:
    """Several workers who make the batches of a round between two lessons.

    Worker w of N makes batch b if b mod N = w, with a synthesizer of its own, from the batch's own random stream; and
    batches are taken in the order of their numbers. So the result depends on N, and on nothing else about the workers.

    Args:
        workers: Where they are.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.states: dict[int, Packed] = {}
        self.spent = Spent()
        self.cpu_s = 0.0  # in this process's life, unlike what was spent
        self.equipment: Equipment | None = None
        self.at_work = False

    @property
    def number(self) -> int:
        """Of workers."""
        return self.workers.number

    def check(self, synthesizer: Synthesizer, schedule: object, task: Task) -> None:
        """Raise ConfigError where the batches of this schedule or of this synthesizer cannot be spread."""
        if not getattr(schedule, "collects", False):
            name = type(schedule).__name__
            why = f"{name} needs each batch before the next; schedule=grow_pool collects them"
            raise ConfigError("server.workers", self.number, f"null, because {why}")
        try:
            state_of(synthesizer, Scene(task, torch.device("cpu")))
        except NotResumableError as error:
            raise ConfigError("server.workers", self.number, f"null, because {error}") from None

    def begin(self, ensemble: Ensemble, synthesizer: Synthesizer, task: Task) -> None:
        """A round begins."""
        self.equipment, self.at_work = Equipment(ensemble, synthesizer, task), False

    def make(self, first: int, seeds: Sequence[int], student: nn.Module) -> Iterator[Piece]:
        """The batches of numbers `first`, `first + 1` ..., one for each seed.

        Args:
            first: Number of the first batch in the round.
            seeds: Of the batches' random streams.
            student: As it is now; all the batches see it so.
        """
        assert self.equipment is not None, "begin() comes first"
        start = time.perf_counter()
        if not self.at_work:
            self.workers.begin(on_cpu(self.equipment), self.states)
            self.at_work = True
        moment = Moment(copy.deepcopy(student).cpu(), self.equipment.ensemble.combine)
        orders = [Order(b, b % self.number, seed) for b, seed in enumerate(seeds, first)]
        for piece in self.workers.make(moment, orders):
            self.states[piece.order.worker] = piece.state
            self.cpu_s += piece.cpu_s
            now = time.perf_counter()
            self.spent.add(piece, self.workers.num_gpus, now - start)
            start = now
            yield piece

    def end(self) -> None:
        """The round is over: the workers rest, and what is said of its teachers' layers is forgotten."""
        assert self.equipment is not None, "begin() comes first"
        if self.at_work:
            self.workers.rest()
        ensemble, task, device = self.equipment.ensemble, self.equipment.task, torch.device("cpu")
        here, later = Scene(task, device, ensemble.layers), Scene(task, device)
        for worker, state in self.states.items():
            own = copy.deepcopy(self.equipment.synthesizer)
            restore(own, unpacked(state), here)
            self.states[worker] = packed(state_of(own, later))
        self.equipment, self.at_work = None, False

    def state_dict(self, scene: Scene) -> Tree:
        """What each worker's synthesizer remembers after the batches that were taken, and what was spent."""
        states = {worker: unpacked(state) for worker, state in sorted(self.states.items())}
        return {"states": states, "spent": asdict(self.spent), "replaced": self.workers.num_replaced}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`, before the round's first batch."""
        assert not self.at_work, "workers have a state of their own"
        self.states = {worker: packed(tree) for worker, tree in state["states"].items()}
        self.spent, self.workers.num_replaced = Spent(**state["spent"]), state["replaced"]

    def told(self) -> dict[str, Any]:
        """What the summary says of the crew; `utilization` is the share of the open time that a worker was busy."""
        spent = self.spent
        full = self.number * spent.open_s
        return {
            "number": self.number,
            "batches": spent.batches,
            "cpu_seconds": spent.cpu_s,
            "gpu_seconds": spent.gpu_s,
            "busy_seconds": spent.busy_s,
            "utilization": spent.busy_s / full if full else None,
            "replaced": self.workers.num_replaced,
        }


def clocks_of(crew: Crew | None) -> Mapping[str, Clock]:
    """The clocks of a run: that of the CPU counts the workers' batches, when they are taken."""
    return CLOCKS if crew is None else {**CLOCKS, "cpu": lambda: CLOCKS["cpu"]() + crew.cpu_s}


def on_cpu(equipment: Equipment) -> Equipment:
    """The equipment as every machine can take it."""
    if equipment.ensemble.num_examples_K.device.type == "cpu":
        return equipment
    return Equipment(copy.deepcopy(equipment.ensemble).cpu(), equipment.synthesizer, equipment.task)
