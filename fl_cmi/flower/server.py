"""The server's half of a run: Flower's own rounds on a grid, the global model scored after each."""

from dataclasses import asdict

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_cmi.checkpoint.run import Checkpoints
from fl_cmi.compose import Config
from fl_cmi.flower.grid import LiveGrid
from fl_cmi.flower.outcome import Outcome
from fl_cmi.flower.participation import Participation, Remember
from fl_cmi.flower.receipt import Receipt
from fl_cmi.flower.records import from_record, to_record
from fl_cmi.flower.rounds import Rounds
from fl_cmi.flower.scores import Scores
from fl_cmi.sides import ServerSide
from fl_cmi.types import Update

__all__ = ["serve"]

NO_TIMEOUT = 1e9  # seconds; a backend's own timeout decides


def serve(
    grid: Grid,
    strategy: Strategy,
    side: ServerSide,
    config: Config,
    threads: int,
    scores: Scores | None = None,
    remember: Remember | None = None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Run all rounds of `strategy` on `grid`; `scores` measures each (None: accuracy alone).

    With `checkpoints` they are kept as they end, and those that are there already are not run again.
    """
    measure = Scores(side) if scores is None else scores
    # Thread counts belong to the calling thread, and Flower's engine calls from a thread of its own.
    torch.set_num_threads(threads)
    outcome = Outcome()
    begun: dict[str, float] = {}
    initial = side.student().state_dict()
    keeper = None if checkpoints is None else Rounds(checkpoints, side, strategy, measure, outcome, config)

    def observe(server_round: int, updates: list[Update]) -> None:
        outcome.updates = updates
        begun.update({name: clock() for name, clock in side.clocks.items()})
        if side.crew is not None and isinstance(grid, LiveGrid):
            grid.rest()
        if keeper is not None:
            keeper.clients_done(server_round, begun)

    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0 or (keeper is not None and server_round <= keeper.done):
            return None
        for name, clock in side.clocks.items():
            outcome.server_seconds[name] += clock() - begun[name]
        outcome.student = from_record(arrays, initial)
        measure.remember(outcome.updates)
        found: dict[str, float] = {}
        if server_round % config["evaluate_every"] == 0 or server_round == config["rounds"]:
            with side.progress.phase("evaluation"):
                found = measure(outcome.student, outcome.updates)
        outcome.accuracies.append(found.get("accuracy"))
        if "own_tests" in found:
            outcome.own_tests.append(found["own_tests"])
        side.log.write("round", round=server_round, bytes=view.bytes_up + view.bytes_down, **found)
        if keeper is not None and server_round < config["rounds"]:
            keeper.round_done(server_round, arrays)
        return MetricRecord({**found}) if found else None

    view = Participation(
        grid,
        num_clients=config["num_clients"],
        clients_per_round=config["clients_per_round"],
        seed=config["seed"],
        on_client_failure=config["on_client_failure"],
        observer=observe,
        remember=remember if keeper is None else keeper.remembering(remember),
        check=Receipt(side),
        on_failure=lambda failure: side.log.write("failure", **asdict(failure)),
        exchanging=lambda clients: side.progress.phase("local", total=clients),
    )
    (strategy if keeper is None else keeper.attach(view, grid)).start(
        grid=view,
        initial_arrays=to_record(initial),
        num_rounds=config["rounds"],
        timeout=NO_TIMEOUT,
        train_config=ConfigRecord(),
        evaluate_fn=score,
    )
    outcome.bytes_up, outcome.bytes_down = view.bytes_up, view.bytes_down
    outcome.failures = [asdict(failure) for failure in view.failures]
    if isinstance(grid, LiveGrid):
        outcome.served = {machine: number for machine, number in sorted(grid.served.items()) if number}
    return outcome
