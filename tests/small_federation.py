"""A federation of four clients with small models, run in this process, for the tests of whole strategies."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.client import client_app
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.records import from_record, to_record
from fl_cmi.partition import Partition
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.sides import ClientSide, ServerSide
from fl_cmi.training import LocalTraining
from fl_cmi.types import Images, State, Task, Update

CLASSES = 3
TASK = Task((1, 2, 2), CLASSES, (0.5,), (0.25,))
CPU = torch.device("cpu")
SIZES = (3, 5, 4, 8)
"""Images of each client."""

EDGES = np.cumsum((0, *SIZES))
PARTITION = Partition("by hand", {}, tuple(np.arange(a, b) for a, b in zip(EDGES, EDGES[1:], strict=False)))


class Classifier(nn.Module):
    """Pixels -> linear -> (batch norm) -> linear, with the parts that methods look for."""

    def __init__(self, norm: bool = False, width: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.num_features = width
        self.classifier = nn.Linear(width, CLASSES)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng))

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.embed(x.flatten(1)))
        return found

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.features(x))
        return found


def made_up() -> Images:
    rng = torch.Generator().manual_seed(3)
    number = int(EDGES[-1])
    return Images(torch.rand(number, 1, 2, 2, generator=rng), torch.arange(number) ** 2 % CLASSES, CLASSES)


def full_batches(steps: int = 2, momentum: float = 0.0, start: str = "broadcast") -> LocalTraining:
    """Training whose result does not depend on the order of the images."""
    optimizer = partial(torch.optim.SGD, lr=0.3, momentum=momentum)
    return LocalTraining(optimizer, start=start, steps=steps, batch_size=100)  # type: ignore[arg-type]


@dataclass
class Played:
    """What a run left.

    Args:
        states: The global model at the start and after each round.
        updates: What arrived, round by round.
        grid: Counts bytes.
    """

    states: list[State]
    updates: list[list[Update]] = field(default_factory=list)
    grid: Participation | None = None


@dataclass
class Federation:
    """Clients and server of one method.

    Args:
        sharing: The client's half.
        local: Local training.
        make: Makes every model.
        clients_per_round: None: all four.
        mixed: Client id -> its model, where they differ.
    """

    sharing: Sharing
    local: LocalTraining
    make: Callable[[], nn.Module] = Classifier
    clients_per_round: int | None = None
    seed: int = 0
    mixed: Callable[[int], nn.Module] | None = None

    def build(self, client: int) -> nn.Module:
        return self.make() if self.mixed is None else self.mixed(client)

    @property
    def server(self) -> ServerSide:
        log = MetricsLog(Path(os.devnull))
        return ServerSide(
            TASK,
            made_up(),
            self.make,
            self.build,
            2,
            True,
            self.seed,
            CPU,
            Progress(quiet=True),
            log,
            self.sharing,
        )

    def side(self, config_json: str) -> ClientSide:
        return ClientSide(
            made_up(), self.build, self.local, self.local.start, self.seed, CPU, True, 1, self.sharing
        )

    def play(self, strategy: Strategy, rounds: int) -> Played:
        played = Played([])
        played.grid = Participation(
            LocalGrid(client_app("{}", PARTITION, self.side), len(SIZES), reraise=True),
            num_clients=len(SIZES),
            seed=self.seed,
            clients_per_round=self.clients_per_round,
            observer=lambda _, updates: played.updates.append(updates),
        )

        def keep(server_round: int, arrays: ArrayRecord) -> None:
            played.states.append(from_record(arrays))

        initial = to_record(self.make().state_dict())
        strategy.start(played.grid, initial, num_rounds=rounds, evaluate_fn=keep)
        return played


def flat(state: State) -> Tensor:
    """All numbers in a row, by name."""
    return torch.cat([state[name].double().flatten() for name in sorted(state)])
