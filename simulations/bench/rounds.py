"""A federated round by the clock, over the training in it.

Clients tell how long their training took, in the same rounds, so whatever slows the machine slows both. What remains is
the package's own: sending, building models, picking images, checking and averaging what came back. The global model's
test is no part of it. On Ray the training would take at least as long as bare processes need that are handed the
clients one after the other.
"""

import heapq
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from torch import nn

from fl_cmi.compose import Config, build, client_side, compose_config, dataset, make_partition, server_side
from fl_cmi.flower.backend import Backend, flower_log
from fl_cmi.flower.client import client_app
from fl_cmi.flower.grid import LiveGrid
from fl_cmi.flower.local_backend import LocalBackend
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.ray_backend import RayBackend
from fl_cmi.flower.ray_session import ClientResources, num_actors_that_fit, ray_session
from fl_cmi.flower.receipt import Receipt
from fl_cmi.flower.records import METRICS, to_record
from fl_cmi.partition import Partition
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.session import Session
from fl_cmi.sides import ClientSide
from fl_cmi.training import LocalTraining
from fl_cmi.types import Images
from simulations.bench.figures import Figure, Scale, Times, at_most

__all__ = ["app", "local_figures", "ray_figures"]

SECONDS = "training-seconds"
"""The metric in which a client tells how long it trained."""


def local_figures(scale: Scale) -> Iterator[Figure]:
    """In this process."""
    config = federation(scale)
    times = round_times(config, LocalBackend(), 1, scale.repeat(7, 3))
    yield at_most("federated round, 10 of 100 clients, s: backend=local, its training", times, 1.05)


def ray_figures(scale: Scale) -> Iterator[Figure]:
    """On as many actors as there are cores, at most one for each client of a round."""
    config = federation(scale)
    with ray_session():
        chosen = config["clients_per_round"]
        actors = num_actors_that_fit(ClientResources(), chosen)
        times = round_times(config, RayBackend(num_actors=actors), actors, scale.repeat(7, 3))
    name = f"federated round, 10 of 100 clients, s: backend=ray, its training on {actors} processes"
    yield at_most(name, times, 1.15)


def federation(scale: Scale) -> Config:
    """10 of 100 clients with the convnet on Fashion-MNIST, 600 images each."""
    size = ["data=fashion_mnist", "num_clients=100", "clients_per_round=10", "partition=iid"]
    if scale.tiny:
        size = ["data=digits", "num_clients=4", "clients_per_round=2", "partition=iid"]
    epochs = scale.choose(5, 1)
    return compose_config([*size, "strategy=fedavg", f"local.epochs={epochs}", "device=cpu"])


def round_times(config: Config, backend: Backend, workers: int, rounds: int) -> Times:
    """Seconds by the clock of whole rounds and of the training in them; a first round is not counted."""
    data = dataset(config)
    partition = make_partition(config, data)
    side = server_side(config, data, Progress(), MetricsLog(Path(os.devnull)), partition)
    whole, training, told = list[float](), list[float](), list[float]()

    def listen(reply: Message) -> None:
        told.append(float(reply.content.metric_records[METRICS][SECONDS]))

    def serve(grid: Grid) -> None:
        assert isinstance(grid, LiveGrid)
        view = Participation(
            grid,
            num_clients=config["num_clients"],
            clients_per_round=config["clients_per_round"],
            seed=0,
            check=Receipt(side),
        )
        grid.on_reply = listen
        begun = time.perf_counter()

        def over(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            nonlocal begun
            if server_round > 1:
                whole.append(time.perf_counter() - begun)
                training.append(makespan(told, workers))
            told.clear()
            begun = time.perf_counter()
            return MetricRecord({})

        with flower_log(logging.ERROR):  # clients' own evaluation is meant to be off
            strategy = build(config["strategy"], "strategy")
        strategy.start(
            grid=view,
            initial_arrays=to_record(side.student().state_dict()),
            num_rounds=rounds + 1,
            timeout=1e9,
            train_config=ConfigRecord(),
            evaluate_fn=over,
        )

    backend.run(json.dumps(config), partition, config["num_clients"], serve, app)
    return Times(whole, training)


def makespan(durations: Sequence[float], workers: int) -> float:
    """When the last of so many workers is done that take these tasks one after the other, in seconds."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


class Timed:
    """Local training that tells how long it took.

    Args:
        local: The training.
    """

    def __init__(self, local: LocalTraining) -> None:
        self.local, self.remembers_visits = local, local.remembers_visits

    def __call__(
        self,
        model: nn.Module,
        images: Images,
        rng: torch.Generator,
        device: torch.device,
        proximal_mu: float = 0.0,
        session: Session | None = None,
        rounds: int = 0,
    ) -> dict[str, float]:
        """As `LocalTraining`, and the seconds."""
        start = time.perf_counter()
        metrics = self.local(model, images, rng, device, proximal_mu, session, rounds)
        return {**metrics, SECONDS: time.perf_counter() - start}


def app(config_json: str, partition: Partition) -> ClientApp:
    """The package's own clients, with a clock in their hands."""
    return client_app(config_json, partition, timed_side)


@lru_cache(maxsize=1)
def timed_side(config_json: str) -> ClientSide:
    """What clients know, with a clock around local training."""
    side = client_side(config_json)
    return replace(side, local=Timed(side.local))  # type: ignore[arg-type]
