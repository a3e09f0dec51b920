"""The server's half of a run: Flower's own rounds on a grid, the global model scored after each."""

from dataclasses import asdict, dataclass, field

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_cmi.compose import Config
from fl_cmi.distillation.budget import CLOCKS
from fl_cmi.flower.participation import Participation, Remember
from fl_cmi.flower.records import from_record, to_record
from fl_cmi.flower.scores import Scores
from fl_cmi.sides import ServerSide
from fl_cmi.types import State, Update

__all__ = ["Outcome", "serve"]

NO_TIMEOUT = 1e9  # seconds; a backend's own timeout decides


@dataclass
class Outcome:
    """What a run produced.

    Args:
        student: The global model after the last round.
        accuracies: Its test accuracy after each round, in [0, 1]; see `Scores` for clients that keep a part of
            it, and for strategies whose predictions are not the global model's.
        own_tests: Accuracy on the clients' own test images after each round, where it is measured.
        updates: What the clients of the last round sent, by partition id.
        bytes_up: Payload that clients sent, over all rounds.
        bytes_down: Payload that clients received, over all rounds.
        failures: Clients that failed and were dropped.
        server_seconds: What the server did between the clients' replies and the new global model, over all rounds:
            seconds by the `wall` and of the `cpu` (all threads of this process).
    """

    student: State = field(default_factory=dict)
    accuracies: list[float] = field(default_factory=list)
    own_tests: list[float] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    failures: list[dict[str, object]] = field(default_factory=list)
    server_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))


def serve(
    grid: Grid,
    strategy: Strategy,
    side: ServerSide,
    config: Config,
    threads: int,
    scores: Scores | None = None,
    remember: Remember | None = None,
) -> Outcome:
    """Run all rounds of `strategy` on `grid`; `scores` measures each (None: accuracy alone)."""
    measure = Scores(side) if scores is None else scores
    # Thread counts belong to the calling thread, and Flower's engine calls from a thread of its own.
    torch.set_num_threads(threads)
    outcome = Outcome()
    begun: dict[str, float] = {}
    initial = side.student().state_dict()

    def observe(server_round: int, updates: list[Update]) -> None:
        outcome.updates = updates
        begun.update({name: clock() for name, clock in CLOCKS.items()})

    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        for name, clock in CLOCKS.items():
            outcome.server_seconds[name] += clock() - begun[name]
        outcome.student = from_record(arrays, initial)
        with side.progress.phase("evaluation"):
            found = measure(outcome.student, outcome.updates)
        outcome.accuracies.append(found["accuracy"])
        if "own_tests" in found:
            outcome.own_tests.append(found["own_tests"])
        side.log.write("round", round=server_round, bytes=view.bytes_up + view.bytes_down, **found)
        return MetricRecord({**found})

    view = Participation(
        grid,
        num_clients=config["num_clients"],
        clients_per_round=config["clients_per_round"],
        seed=config["seed"],
        on_client_failure=config["on_client_failure"],
        observer=observe,
        remember=remember,
        exchanging=lambda clients: side.progress.phase("local", total=clients),
    )
    strategy.start(
        grid=view,
        initial_arrays=to_record(initial),
        num_rounds=config["rounds"],
        timeout=NO_TIMEOUT,
        train_config=ConfigRecord(),
        evaluate_fn=score,
    )
    outcome.bytes_up, outcome.bytes_down = view.bytes_up, view.bytes_down
    outcome.failures = [asdict(failure) for failure in view.failures]
    return outcome
