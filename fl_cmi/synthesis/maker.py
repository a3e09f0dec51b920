"""One of several makers of images: what it gets, what it does with it, and what it gives back."""

import time
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load, save
from torch import nn

from fl_cmi.checkpoint.state import Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree, pack, unpack
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.synthesis.inversion import Inverted
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import Task

__all__ = ["Equipment", "Maker", "Moment", "Order", "Packed", "Piece", "packed", "unpacked"]

Packed = tuple[bytes, str]
"""A state on its way between processes: its tensors as safetensors, its shape as JSON."""


def packed(tree: Tree) -> Packed:
    """A state, to be sent or kept."""
    tensors, shape = pack(tree)
    return save(tensors), shape


def unpacked(state: Packed) -> Tree:
    """The state that was packed."""
    return unpack(load(state[0]), state[1])


@dataclass(frozen=True)
class Equipment:
    """What every maker needs for a round.

    Args:
        ensemble: The teachers.
        synthesizer: As configured; each maker has its own, with what it remembers from batch to batch.
        task: What the models have to fit.
    """

    ensemble: Ensemble
    synthesizer: Synthesizer
    task: Task


@dataclass(frozen=True)
class Moment:
    """What changes from lesson to lesson.

    Args:
        student: For terms that ask it.
        combine: The ensemble's rule, with what it has learnt.
    """

    student: nn.Module
    combine: Combine


@dataclass(frozen=True)
class Order:
    """A batch to be made.

    Args:
        number: Its number in the round, from 0.
        worker: Who makes it, from 0.
        seed: Of the batch's own random stream.
    """

    number: int
    worker: int
    seed: int


@dataclass(frozen=True)
class Piece:
    """A batch that was made; its tensors are on the CPU.

    Args:
        order: What was asked for.
        made: The images, labelled.
        passes: Forward passes of single teachers that it took.
        state: What the maker's synthesizer remembers after it.
        wall_s: Seconds that it took.
        cpu_s: CPU seconds of all threads that it took.
    """

    order: Order
    made: Inverted
    passes: int
    state: Packed
    wall_s: float
    cpu_s: float


class Maker:
    """Makes batches in a round, one after the other, with a synthesizer of its own.

    Args:
        equipment: Taken over, not copied.
        device: Where to work.
        state: What the synthesizer remembers of earlier batches; None: of none.
    """

    def __init__(self, equipment: Equipment, device: torch.device, state: Packed | None = None) -> None:
        self.ensemble = equipment.ensemble.to(device)
        self.synthesizer, self.task = equipment.synthesizer, equipment.task
        self.scene = Scene(self.task, device, self.ensemble.layers)
        if state is not None:
            restore(self.synthesizer, unpacked(state), self.scene)

    def __call__(self, moment: Moment, order: Order) -> Piece:
        """Make one batch, and let the ensemble label it.

        Raises:
            FloatingPointError: As the synthesizer.
        """
        wall, cpu, passes = time.perf_counter(), time.process_time(), self.ensemble.passes
        self.ensemble.combine = moment.combine
        student = moment.student.to(self.scene.device)
        rng = torch.Generator().manual_seed(order.seed)
        made = self.synthesizer(self.ensemble, student, self.task, rng).labelled(self.ensemble)
        assert made.labels is not None
        state = packed(state_of(self.synthesizer, self.scene))
        return Piece(
            order,
            replace(made, x=made.x.cpu(), y=made.y.cpu(), labels=made.labels.cpu()),
            self.ensemble.passes - passes,
            state,
            time.perf_counter() - wall,
            time.process_time() - cpu,
        )
