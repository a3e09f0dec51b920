"""What a worker and the server know of a run, besides a method's own parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fl_cmi.attacks.attack import Attack
from fl_cmi.distillation.budget import Clock
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.federated.buffers import weighted_mean
from fl_cmi.federated.sharing import Sharing
from fl_cmi.precision import Precision, exact
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.crew import Crew, clocks_of
from fl_cmi.training import LocalTraining
from fl_cmi.types import Images, State, Task, Teacher, Update, same_architecture

__all__ = ["ClientSide", "ServerSide"]


@dataclass(frozen=True)
class ClientSide:
    """What a worker process needs to run any client.

    Args:
        train: The whole training set, from which a client takes its part.
        build: Client id -> its model before the first round.
        local: Local training.
        start: Where it begins: `broadcast` (the server's model), `scratch`, or `own` (the client's last one).
        seed: Of the run.
        device: Where to train.
        share_label_counts: Whether clients tell how many images of each class they have.
        num_threads: Threads of one client.
        sharing: What clients do besides training, and what they share.
        attack: What bad clients do.
        bad_clients: Their partition ids, ascending.
    """

    train: Images
    build: Callable[[int], nn.Module]
    local: LocalTraining
    start: str
    seed: int
    device: torch.device
    share_label_counts: bool
    num_threads: int
    sharing: Sharing = field(default_factory=Sharing)
    attack: Attack = field(default_factory=Attack)
    bad_clients: tuple[int, ...] = ()

    def attack_of(self, client: int) -> Attack:
        """What a client does; honest work, but for bad clients."""
        return self.attack if client in self.bad_clients else Attack()


@dataclass(frozen=True)
class ServerSide:
    """What the server needs of the run beyond the method's own parameters.

    Args:
        task: What the models have to fit.
        test: Test images, for reporting only.
        student: Makes the initial global model.
        build: Client id -> its model before the first round.
        num_architectures: Number of client ids after which architectures repeat.
        share_label_counts: Whether updates carry label counts.
        seed: Of the run.
        device: Where to synthesize and distil.
        progress: Shows phases.
        log: Writes `metrics.jsonl`.
        sharing: What clients do besides training, and what they share.
        held_out: Training images that no client got, or None.
        crew: Makes and labels batches of images for the server; None: the server does so itself.
        precision: Of the networks while the server synthesizes, labels and distils.
        num_teachers: Clients that take part in a round.
    """

    task: Task
    test: Images
    student: Callable[[], nn.Module]
    build: Callable[[int], nn.Module]
    num_architectures: int
    share_label_counts: bool
    seed: int
    device: torch.device
    progress: Progress
    log: MetricsLog
    sharing: Sharing = field(default_factory=Sharing)
    held_out: Images | None = None
    crew: Crew | None = None
    precision: Precision = exact
    num_teachers: int = 1

    @property
    def clocks(self) -> Mapping[str, Clock]:
        """What the server's work is counted by."""
        return clocks_of(self.crew)

    def teacher(self, update: Update) -> Teacher:
        """Rebuild a client's network from what it sent."""
        model = self.build(update.client)
        model.load_state_dict(update.state)
        self.sharing.method.attach(model, update.extra)
        return Teacher(update.client, update.num_examples, update.class_counts, model)

    def untrained_ensemble(self, combine: Combine) -> Ensemble:
        """Teachers of the clients' architectures, to find out early what a method would miss.

        Two at least where a round has several: some methods are for a single one.
        """
        number = max(self.num_architectures, min(2, self.num_teachers))
        counts = torch.zeros(self.task.num_classes, dtype=torch.int64) if self.share_label_counts else None
        ensemble = Ensemble([self.teacher(self.untrained(k, counts)) for k in range(number)], combine)
        ensemble.label(torch.zeros(2, *self.task.shape))
        return ensemble

    def untrained(self, client: int, counts: Tensor | None) -> Update:
        """What a client without images would send."""
        model = self.build(client)
        return Update(client, 1, counts, model.state_dict(), self.sharing.method.records(model, self.task))

    def average(self, updates: Sequence[Update]) -> State | None:
        """`sum_k n_k w_k / sum_k n_k` over parameters and buffers; None where architectures differ."""
        states = [update.state for update in updates]
        if not same_architecture(states):
            return None
        return weighted_mean(states, [update.num_examples for update in updates])

    def test_accuracy(self, model: nn.Module) -> float:
        """Share of test images that `model` gets right, in [0, 1]."""
        return accuracy(predict(model, self.test, self.device), self.test)
