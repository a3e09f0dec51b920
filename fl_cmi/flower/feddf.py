"""FedDF: each architecture's average is distilled from all clients, on images that the server has of its own."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fl_cmi.bank import Draws, Shuffled
from fl_cmi.checkpoint.state import Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.distillation.budget import Budget, Clock, checked_budget, clock_called
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.early_stopping import EarlyStopping, Stopped
from fl_cmi.distillation.proxy import NoiseDraws, Unlabelled, surest
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.flower.prototypes import Prototypes
from fl_cmi.flower.records import to_record, unpack_updates
from fl_cmi.rng import stream
from fl_cmi.sides import ServerSide
from fl_cmi.types import Architecture, ConfigError, Images, Update

__all__ = ["FedDF", "worth_keeping"]


class FedDF(FedAvg):
    """Clients -> average per architecture -> each average distilled on proxy images from all clients.

        w_p = sum_k n_k w_k / sum_k n_k            over the clients of architecture p
        L   = KL( softmax(mean_k t_k) || softmax(s_p) )     on unlabelled images; the best validated student is kept

    The server's held-out images are split once: a labelled part for validation, the rest unlabelled. A student without
    clients of its architecture goes on from where it was. Every client gets the student of its architecture.

    References:
        T. Lin, L. Kong, S. Stich, M. Jaggi, *Ensemble Distillation for Robust Model Fusion in Federated Learning*,
        NeurIPS 2020, arXiv 2006.07242.

    Args:
        combine: Rule of the ensemble; the paper's AVGLOGITS is `mean_logits`.
        distiller: Teaches the images to a student; the paper has KL at T = 1.
        stopping: How long.
        side: What the server knows of the run; it needs held-out images.
        validation_share: Part of the held-out images, in (0, 1), whose labels are used.
        inputs: What is distilled on: the other `held_out` images, or `noise`.
        surest: Share in (0, 1] of the proxy images, those on which the ensemble is surest; None: all.
        drop_worst: Whether clients that fare badly on the validation images are left out of average and ensemble.
        students: Distil `all` architectures, or only the global model's own (`student`); the others stay averages.
        budget_s: Seconds, > 0, of a round's distillation, for each student an equal share of what is left; None: no
            limit.
        budget_clock: What they are counted by: `wall`, or `cpu` (all threads of the process).
    """

    mixed_architectures = sends_own_architecture = whole_models = True

    def __init__(
        self,
        combine: Combine,
        distiller: Distiller,
        stopping: EarlyStopping,
        side: ServerSide,
        validation_share: float = 0.1,
        inputs: Literal["held_out", "noise"] = "held_out",
        surest: float | None = None,
        drop_worst: bool = False,
        students: Literal["all", "student"] = "all",
        budget_s: float | None = None,
        budget_clock: str = "wall",
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        if not 0 < validation_share < 1:
            raise ConfigError("strategy.validation_share", validation_share, "a share in (0, 1)")
        if inputs not in ("held_out", "noise"):
            raise ConfigError("strategy.inputs", inputs, "held_out or noise")
        if surest is not None and not 0 < surest <= 1:
            raise ConfigError("strategy.surest", surest, "a share in (0, 1], or null for all")
        if surest is not None and inputs == "noise":
            raise ConfigError("strategy.surest", surest, "null, because strategy.inputs=noise has no end")
        if students not in ("all", "student"):
            raise ConfigError("strategy.students", students, "all or student")
        if distiller.targets.needs_pool or distiller.loss.needs_pool:
            raise ConfigError("strategy.distiller", "...", "targets and loss that need no pool of images")
        self.combine, self.distiller, self.stopping, self.side = combine, distiller, stopping, side
        self.inputs, self.surest, self.drop_worst, self.students = inputs, surest, drop_worst, students
        self.budget_s, self.clock = checked_budget(budget_s), clock_called(budget_clock)
        self.validation, self.proxy = split(side, validation_share)
        self.prototypes = Prototypes(side)
        self.teacher_passes = 0
        distiller.check(side.untrained_ensemble(combine), side.student())

    @property
    def disclosed(self) -> tuple[str, ...]:
        """What the server needs beside the updates."""
        labelled = f"server needs {len(self.validation):,} labelled images of its own (early stopping)"
        if self.inputs == "noise":
            return (labelled,)
        return (f"server needs {len(self.proxy):,} unlabelled images of its own (proxy data)", labelled)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; each client gets the student of its own architecture."""
        messages = super().configure_train(server_round, arrays, config, grid)
        return self.prototypes.addressed(messages, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, then distil."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        begin, side, prototypes = self.clock(), self.side, self.prototypes
        updates = self.kept(unpack_updates(valid))
        teachers = [side.teacher(update) for update in updates]
        ensemble = Ensemble(teachers, self.combine, precision=side.precision).to(side.device)
        side.log.write(
            "ensemble", round=server_round, clients=len(ensemble), bn_layers=ensemble.batch_norm_counts
        )
        renewed = prototypes.average(updates)
        kinds = [prototypes.own]
        if self.students == "all":
            kinds += [kind for kind in renewed if kind != prototypes.own]
        draws = self.draws(ensemble)
        seconds = shares(self.budget_s, len(kinds), self.clock, begin)
        for number, (kind, share) in enumerate(zip(kinds, seconds, strict=True)):
            stopped = self.distil(kind, number, ensemble, draws, server_round, Budget(share, self.clock))
            side.log.write("feddf", round=server_round, student=number, **vars(stopped))
        self.teacher_passes += ensemble.passes
        metrics = {"teacher-passes": float(ensemble.passes), "students": float(len(kinds))}
        return to_record(prototypes.states[prototypes.own]), MetricRecord(metrics)

    def distil(
        self,
        kind: Architecture,
        number: int,
        ensemble: Ensemble,
        draws: Draws,
        server_round: int,
        budget: Budget,
    ) -> Stopped:
        """Teach one architecture's student and keep what it has become."""
        side = self.side
        student = self.prototypes.model(kind)
        with side.progress.phase("distillation"):
            stopped = self.stopping(
                self.distiller.begin(student, server_round),
                ensemble,
                draws,
                self.validate,
                partial(stream, side.seed, "feddf", "round", server_round, "student", number, "lesson"),
                budget,
            )
        self.prototypes.states[kind] = {
            name: value.detach().cpu().clone() for name, value in student.state_dict().items()
        }
        return stopped

    def state_dict(self, scene: Scene) -> Tree:
        """What a round leaves to the next."""
        return {
            "prototypes": self.prototypes.state_dict(),
            "passes": self.teacher_passes,
            "combine": state_of(self.combine, scene),
        }

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.prototypes.load_state_dict(state["prototypes"])
        self.teacher_passes = state["passes"]
        restore(self.combine, state["combine"], scene)

    def draws(self, ensemble: Ensemble) -> Draws:
        """What a round is distilled on."""
        if self.inputs == "noise":
            return NoiseDraws(ensemble, self.side.task)
        proxy = self.proxy if self.surest is None else surest(ensemble, self.proxy, self.surest)
        return Shuffled(Unlabelled(proxy))

    def validate(self, model: nn.Module) -> float:
        """Accuracy on the validation images."""
        return accuracy(predict(model, self.validation, self.side.device), self.validation)

    def kept(self, updates: list[Update]) -> list[Update]:
        """The clients that are averaged and teach."""
        if not self.drop_worst:
            return updates
        side = self.side
        found = [self.validate(side.teacher(update).model.to(side.device)) for update in updates]
        return [updates[k] for k in worth_keeping(found, side.task.num_classes)]


def shares(total: float | None, students: int, clock: Clock, begin: float) -> Iterator[float | None]:
    """Seconds for each student in turn: an equal share of what is left, so that only the last can be late.

    Args:
        total: From `begin` on; None: no limit.
        students: How many.
        clock: Of the budget.
        begin: When it began, before clients and images were chosen.
    """
    for number in range(students):
        yield None if total is None else (total - (clock() - begin)) / (students - number)


def split(side: ServerSide, validation_share: float) -> tuple[Images, Images]:
    """The server's own images: for validation, and for distillation."""
    images = side.held_out
    if images is None or len(images) < 2:
        number = 0 if images is None else len(images)
        allowed = "at least 2 images, because strategy=feddf distils on images of the server's own"
        raise ConfigError("held_out", number, allowed)
    order = torch.randperm(len(images), generator=stream(side.seed, "feddf", "validation"))
    number = min(max(1, round(validation_share * len(images))), len(images) - 1)
    return images.subset(order[:number]), images.subset(order[number:])


def worth_keeping(accuracies: list[float], num_classes: int) -> list[int]:
    """The clients that `drop_worst` leaves: positions, ascending.

    Out go those below 1.2 times chance, then of the rest those below the mean of the rest by more than 1.5 of its
    standard deviations (divided by their number). If nobody passes the first test, everybody stays.
    """
    passed = [k for k, value in enumerate(accuracies) if value >= 1.2 / num_classes]
    if not passed:
        return list(range(len(accuracies)))
    rest = torch.tensor([accuracies[k] for k in passed], dtype=torch.float64)
    least = rest.mean() - 1.5 * rest.std(correction=0)
    # A hair's breadth of tolerance, so that equal clients all stay.
    return [k for k in passed if accuracies[k] >= least - 1e-12]
