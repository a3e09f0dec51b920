"""One round of knowledge transfer from an ensemble to a student, and what its schedule may do in it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import nn

from fl_cmi.bank import Draws, Pool
from fl_cmi.checkpoint.state import Checkpoints, Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.distillation.budget import Budget, Clock, checked_budget
from fl_cmi.distillation.distiller import Distiller, Lesson
from fl_cmi.distillation.replay import Replay
from fl_cmi.distillation.supply import Supply
from fl_cmi.ensemble import Ensemble, Learns
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Phase, Progress
from fl_cmi.rng import stream
from fl_cmi.synthesis.crew import Crew
from fl_cmi.synthesis.inversion import Inverted
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import Task

__all__ = ["Checkpoints", "Schedule", "Transfer", "transfer"]


class Schedule(Protocol):
    """How synthesis and distillation alternate in a round."""

    collects: ClassVar[bool]
    """Whether all batches between two lessons may be made at once."""

    def __call__(self, transfer: "Transfer") -> None:
        """Carry the round out."""

    def check(self, synthesizer: Synthesizer, distiller: Distiller) -> None:
        """Raise ConfigError where the schedule cannot use these."""


@dataclass
class Transfer:
    """A round's state, and the three things that a schedule does: synthesize, distil and look at the student.

    Every lesson has its own random stream, as every batch has, so leaving one out shifts no other. One that goes on
    from a checkpoint has its schedule begin anew, and does nothing for the actions that were done before; see `Replay`.

    Args:
        supply: Makes images by the teachers, and knows the student, which is taught in place.
        lesson: Teaches them.
        pool: Keeps them.
        stream: The random stream of the work of a kind and a number in this round.
        server_round: Number of the round, from 1.
        progress: Shows phases.
        log: Writes `metrics.jsonl`.
        evaluate: Test accuracy of the student, in [0, 1]; for the curve only, nothing is selected by it.
        budget: When to stop before the schedule's end.
        checkpoints: Hears of every batch and every lesson; None: nobody does.
    """

    supply: Supply
    lesson: Lesson
    pool: Pool
    stream: Callable[[str, int], torch.Generator]
    server_round: int
    progress: Progress
    log: MetricsLog
    evaluate: Callable[[nn.Module], float]
    budget: Budget = field(default_factory=Budget)
    checkpoints: Checkpoints | None = None
    num_lessons: int = 0
    loss: float = 0.0
    made: Inverted | None = None

    def __post_init__(self) -> None:
        self.replay, self.ensemble = Replay(self.budget), self.supply.ensemble

    def reached(self) -> None:
        """Tell that a batch or a lesson is done."""
        if self.checkpoints is not None:
            self.checkpoints.reached(self.state_dict)

    def phase(self, total: int) -> AbstractContextManager[Phase]:
        """The round's own phase, of so many parts unless time decides."""
        return self.progress.phase("transfer", total=total if self.budget.seconds is None else None)

    def train_generator(self) -> Inverted:
        """Synthesize one batch for the generator's sake; the pool gets nothing of it."""
        if self.replay.act():
            with self.progress.phase("synthesis"):
                self.made = self.supply.batch()
            self.reached()
        assert self.made is not None
        return self.made

    def grow(self, batches: int) -> None:
        """Put so many new batches, labelled, into the pool; fewer where a lesson is due, but the round's first one."""
        timed = self.budget.seconds is not None
        at_once = self.supply.at_once(batches, timed)
        with self.progress.phase("synthesis", total=None if timed else batches) as phase:
            for first in range(0, batches, at_once):
                if self.replay.actions and self.replay.due:
                    break
                end, coming, begin = min(first + at_once, batches), None, self.budget.elapsed
                for batch in range(first, end):
                    if self.replay.act():
                        coming = self.supply.labelled(end - batch) if coming is None else coming
                        made = next(coming)
                        assert made.labels is not None
                        self.pool.add(made.x, made.y, made.labels, made.client)
                        self.budget.batch = max(self.budget.batch, self.budget.elapsed - begin)
                        self.reached()
                    phase.advance()

    def tune(self, epoch: int) -> None:
        """Let the ensemble's rule learn from the pool, where it can; what it has come to labels the pool."""
        combine, clients = self.ensemble.combine, self.ensemble.clients
        if isinstance(combine, Learns) and self.replay.act():
            before, batch_size = combine.weights(clients), self.lesson.distiller.batch_size
            with self.progress.phase("distillation"), self.budget.learns():
                combine.learn(self.ensemble, self.pool, batch_size, epoch, self.stream("combine", epoch))
                if not torch.equal(combine.weights(clients), before):
                    self.lesson.relabel(self.ensemble, self.pool)
            where = {"round": self.server_round, "epoch": epoch + 1}
            self.log.write("weights", **where, weights=combine.weights(clients).tolist())

    @property
    def steps_of_a_pass(self) -> int:
        """Distillation steps in which as many images are drawn as the pool holds, rounded up."""
        return -(-len(self.pool) // self.lesson.distiller.batch_size)

    def distil(self, draws: Draws, steps: int, share: tuple[float, float]) -> None:
        """Teach the student for so many steps, with the learning rate of the share (from, to) of the round."""
        if not self.replay.act():
            return
        with self.progress.phase("distillation"):
            losses: list[float] = []
            rng = self.stream("distillation", self.num_lessons)
            for number, part in self.budget.pieces(steps, share):
                losses += [self.lesson(self.ensemble, draws, number, part, rng)] * number
            self.lesson.settle(draws, rng)
        if losses:
            self.loss = sum(losses) / len(losses)
            self.num_lessons += 1
            self.reached()

    def keep(self, draws: Draws, number: int) -> None:
        """Put so many images into the pool, with the ensemble's labels and its choice as their class."""
        if not self.replay.act():
            return
        rng, batch_size = self.stream("show", 0), 256
        for start in range(0, number, batch_size):
            x = draws.draw(min(batch_size, number - start), rng).x
            labels = self.ensemble.label(x)
            self.pool.add(x, labels.argmax(dim=1), labels)

    def report(self, epoch: int, look: bool) -> None:
        """Log the losses as they stand and, where wanted, the student's accuracy."""
        if not self.replay.act():
            return
        where = {"round": self.server_round, "epoch": epoch}
        self.log.write("synthesis", **where, num_images=len(self.pool), **self.supply.losses)
        self.log.write("distillation", **where, loss=self.loss)
        if look:
            with self.progress.phase("evaluation"):
                self.log.write("evaluate", **where, accuracy=self.evaluate(self.supply.student))

    def note(self) -> str:
        """The state in a line."""
        return f"pool {len(self.pool):,}  inversion {self.supply.losses['total']:.3f}  kd {self.loss:.3f}"

    @property
    def scene(self) -> Scene:
        """Where the state of the parts is taken and put back."""
        return Scene(self.supply.task, self.ensemble.num_examples_K.device, self.ensemble.layers)

    def state_dict(self) -> Tree:
        """All that the transfer has come to, and how far it is."""
        supply, scene = self.supply, self.scene
        return {
            "replay": self.replay.state_dict(),
            "counts": [supply.num_batches, self.num_lessons, supply.num_images, self.ensemble.passes],
            "losses": [self.loss, supply.losses],
            "made": None if self.made is None else self.made.state_dict(),
            "student": supply.student.state_dict(),
            "lesson": self.lesson.state_dict(),
            "synthesizer": state_of(supply.maker, scene),
            "combine": state_of(self.ensemble.combine, scene),
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Go on from `state`: to be called before the schedule."""
        supply, scene = self.supply, self.scene
        self.replay.load_state_dict(state["replay"])
        supply.num_batches, self.num_lessons, supply.num_images, passes = state["counts"]
        self.ensemble.count(passes - self.ensemble.passes)
        self.loss, supply.losses = state["losses"]
        self.made = Inverted.restored(state["made"], scene.device)
        supply.student.load_state_dict(state["student"])
        self.lesson.load_state_dict(state["lesson"])
        restore(supply.maker, state["synthesizer"], scene)
        restore(self.ensemble.combine, state["combine"], scene)
        self.pool.load_state_dict(state["pool"])


def transfer(
    ensemble: Ensemble,
    student: nn.Module,
    synthesizer: Synthesizer,
    distiller: Distiller,
    pool: Pool,
    schedule: Schedule,
    *,
    task: Task,
    seed: int,
    server_round: int,
    progress: Progress,
    log: MetricsLog,
    evaluate: Callable[[nn.Module], float],
    budget_s: float | None = None,
    clock: Clock = time.perf_counter,
    checkpoints: Checkpoints | None = None,
    crew: Crew | None = None,
) -> dict[str, float]:
    """Teach `student`, in place, what `ensemble` knows.

    The arguments are those of `Supply` and `Transfer`, but for `seed`, which is the run's, and for the budget:
    `budget_s` seconds, > 0, by `clock`; None: no limit.

    Returns:
        Teacher passes, images synthesized and the last loss of distillation.
    """
    schedule.check(synthesizer, distiller)
    synthesizer.check(ensemble)
    distiller.check(ensemble, student)
    if crew is not None:
        crew.check(synthesizer, schedule, task)
        crew.begin(ensemble, synthesizer, task)
    if isinstance(ensemble.combine, Learns):
        ensemble.combine.begin(ensemble.clients)

    def streams(what: str, number: int) -> torch.Generator:
        return stream(seed, what, "round", server_round, "number", number)

    supply = Supply(ensemble, student, synthesizer, task, partial(streams, "synthesis"), crew)
    lesson, before = distiller.begin(student, server_round), ensemble.passes
    budget = Budget(checked_budget(budget_s), clock)
    state = Transfer(
        supply, lesson, pool, streams, server_round, progress, log, evaluate, budget, checkpoints
    )
    if checkpoints is not None and (before_this := checkpoints.resumed()) is not None:
        state.load_state_dict(before_this)
    else:  # images of earlier rounds bring the labels of other teachers
        state.lesson.relabel(ensemble, pool)
    schedule(state)
    if crew is not None:
        crew.end()
    passes = ensemble.passes - before
    return {"teacher-passes": float(passes), "images": float(supply.num_images), "kd-loss": state.loss}
