"""Server strategies that distil the client ensemble instead of averaging weights."""

from collections.abc import Iterable
from typing import Literal

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fl_cmi.bank import Pool
from fl_cmi.checkpoint.state import Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.distillation.budget import checked_budget, clock_called
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.transfer import Checkpoints, Schedule, transfer
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.federated.method import ClientMethod
from fl_cmi.flower.records import to_record, unpack_updates
from fl_cmi.sides import ServerSide
from fl_cmi.synthesis.crew import Crew
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import ConfigError, State, Update, architecture, same_architecture

__all__ = ["FedCmi", "one_architecture"]


class FedCmi(FedAvg):
    """Clients -> ensemble -> contrastive model inversion -> global student.

        updates  = unpack(replies)
        ensemble = Ensemble(rebuild(updates), combine)
        transfer(ensemble -> student)         # synthesis and distillation, as `schedule` says
        return pack(student)

    Everything but `aggregate_train` is Flower's FedAvg, so the class runs in any ServerApp.

    Args:
        combine: Rule of the ensemble.
        synthesizer: Adds batches of images to the pool.
        distiller: Teaches the pool to the student.
        schedule: How the two alternate in a round.
        pool: Where the images are kept.
        student_start: Where the student of a round begins: the `previous` round's student (in round 1 the initial
            model), the clients' parameter `average` (needs one architecture), the average of those clients that train
            the student's architecture (`prototype`; without any: as `previous`), or from `scratch`.
        keep_pool: Whether a round goes on with the images of the rounds before.
        budget_s: Seconds, > 0, of a round's synthesis and distillation; None for as long as the schedule takes.
        budget_clock: What they are counted by: `wall`, or `cpu` (all threads of the process, and of its workers).
        side: What the server knows of the run.
        client: The client's half; only the side's is asked.
    """

    mixed_architectures = whole_models = True
    disclosed = ("server needs no images",)

    def __init__(
        self,
        combine: Combine,
        synthesizer: Synthesizer,
        distiller: Distiller,
        schedule: Schedule,
        pool: Pool,
        side: ServerSide,
        student_start: Literal["previous", "average", "prototype", "scratch"] = "previous",
        keep_pool: bool = False,
        budget_s: float | None = None,
        budget_clock: str = "wall",
        client: ClientMethod | None = None,
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        starts = ("previous", "average", "prototype", "scratch")
        if student_start not in starts:
            raise ConfigError("strategy.student_start", student_start, f"one of {', '.join(starts)}")
        if student_start == "average" and not one_architecture(side):
            allowed = (
                "previous, prototype or scratch, because not all clients train the student's architecture"
            )
            raise ConfigError("strategy.student_start", student_start, allowed)
        self.combine, self.synthesizer, self.distiller = combine, synthesizer, distiller
        self.schedule, self.pool, self.side = schedule, pool, side
        self.student_start, self.keep_pool = student_start, keep_pool
        self.budget_s = checked_budget(budget_s)
        self.clock = clock_called(budget_clock, side.clocks)
        self.previous: State | None = None
        self.teacher_passes = 0
        self.checkpoints: Checkpoints | None = None
        # What these models and parts cannot serve is refused before any client trains.
        schedule.check(synthesizer, distiller)
        untrained = side.untrained_ensemble(combine)
        synthesizer.check(untrained)
        distiller.check(untrained, side.student())
        if side.crew is not None:
            side.crew.check(synthesizer, schedule, side.task)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Distil the round's clients into one student."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        side = self.side
        updates = unpack_updates(valid)
        teachers = [side.teacher(update) for update in updates]
        ensemble = Ensemble(teachers, self.combine, precision=side.precision).to(side.device)
        side.log.write(
            "ensemble", round=server_round, clients=len(ensemble), bn_layers=ensemble.batch_norm_counts
        )
        if not self.keep_pool:
            self.pool.clear()
        student = self.start_student(updates)
        metrics = transfer(
            ensemble,
            student,
            self.synthesizer,
            self.distiller,
            self.pool,
            self.schedule,
            task=side.task,
            seed=side.seed,
            server_round=server_round,
            progress=side.progress,
            log=side.log,
            evaluate=side.test_accuracy,
            budget_s=self.budget_s,
            clock=self.clock,
            checkpoints=self.checkpoints,
            crew=side.crew,
        )
        self.teacher_passes += ensemble.passes
        self.previous = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
        return to_record(self.previous), MetricRecord(metrics)

    @property
    def maker(self) -> Synthesizer | Crew:
        """Who remembers what images were made."""
        return self.synthesizer if self.side.crew is None else self.side.crew

    def state_dict(self, scene: Scene) -> Tree:
        """What a round leaves to the next."""
        return {
            "previous": self.previous,
            "passes": self.teacher_passes,
            "synthesizer": state_of(self.maker, scene),
            "combine": state_of(self.combine, scene),
            "pool": self.pool.state_dict() if self.keep_pool else None,
        }

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.previous, self.teacher_passes = state["previous"], state["passes"]
        restore(self.maker, state["synthesizer"], scene)
        restore(self.combine, state["combine"], scene)
        if self.keep_pool:
            self.pool.load_state_dict(state["pool"])

    def start_student(self, updates: list[Update]) -> nn.Module:
        """The student as it begins the round."""
        student = self.side.student()
        if self.student_start == "average":
            average = self.side.average(updates)
            assert average is not None, "checked when the run began"
            student.load_state_dict(average)
        elif self.student_start != "scratch":
            own = architecture(student.state_dict())
            group = [update for update in updates if architecture(update.state) == own]
            if self.student_start == "prototype" and group:
                average = self.side.average(group)
                assert average is not None
                student.load_state_dict(average)
            elif self.previous is not None:
                student.load_state_dict(self.previous)
        return student.to(self.side.device)


def one_architecture(side: ServerSide) -> bool:
    """Whether all clients train the global model's architecture, by the names and shapes of its tensors."""
    models = [side.student(), *(side.build(client) for client in range(side.num_architectures))]
    return same_architecture(model.state_dict() for model in models)
