"""A round in which clients only load the model and give it back: what carrying it costs.

Four ways to carry 11.7 million parameters to the clients and back: this package's grid on Ray, bare Ray actors that
are handed dictionaries of arrays, Flower's own engine with this package's arrays (`backend=flower`), and the same with
Flower's arrays, as any app of Flower's has it. The server packs the global model, and averages what it got.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import nn

from fl_cmi.compose import compose_config, make_model
from fl_cmi.flower.arrays import view_of
from fl_cmi.flower.flower_backend import FlowerBackend
from fl_cmi.flower.ray_backend import RayBackend
from fl_cmi.flower.ray_session import ClientResources, num_actors_that_fit, ray_session
from fl_cmi.flower.records import ARRAYS, METRICS, load_record, to_record
from fl_cmi.memory import keep_freed_memory
from fl_cmi.partition import Partition
from fl_cmi.types import State, Task
from simulations.bench.figures import Figure, Scale, Times, at_least, at_most, seconds

__all__ = ["empty_round", "figures"]

Round = Callable[[], object]


def figures(scale: Scale) -> Iterator[Figure]:
    """Ours over bare actors, and Flower's engine over ours."""
    for clients in (10, 100) if scale.large else (10,):
        pairs = scale.repeat(7, 3)
        ours, bare, flower, plain = empty_round(clients, pairs)
        what = f"empty round, 11.7 M parameters, {clients} clients, s"
        yield at_most(f"{what}: ray, bare Ray actors", Times(ours, bare), 1.3)
        yield at_least(f"{what}: ray, backend=flower", Times(ours, flower, in_turn=False), 3.0)
        yield at_least(f"{what}: ray, Flower's engine and arrays", Times(ours, plain, in_turn=False), None)


def empty_round(clients: int, rounds: int) -> tuple[list[float], ...]:
    """Seconds by the clock of rounds of our grid and of bare actors, taken in turn; then of both of Flower's."""
    keep_freed_memory()
    state = model().state_dict()
    nobody = Partition("nobody", {}, tuple(np.arange(0) for _ in range(clients)))
    ours, bare, flower, plain = (list[float]() for _ in range(4))

    def serve(grid: Grid) -> None:
        own = partial(round_on, grid, clients, state)
        with bare_round(clients, state) as other:
            own(), other(), own(), other()
            for _ in range(rounds):
                ours.append(seconds(own, time.perf_counter))
                bare.append(seconds(other, time.perf_counter))

    def serve_flower(grid: Grid) -> None:
        while len(list(grid.get_node_ids())) < clients:
            time.sleep(0.1)
        own = partial(round_on, grid, clients, state)
        other = partial(round_on, grid, clients, state, plain=True)
        own(), other()
        for _ in range(rounds):
            flower.append(seconds(own, time.perf_counter))
            plain.append(seconds(other, time.perf_counter))

    with ray_session():
        # Idle actors of either kind take no time, so both can hold all CPUs, a half of each.
        workers = num_actors_that_fit(ClientResources(1), clients)
        half = {"num_cpus": 0.5}
        RayBackend(num_actors=workers, client_resources=half).run("", nobody, clients, serve, app)
    gc.collect()
    FlowerBackend().run("", nobody, clients, serve_flower, app)
    return ours, bare, flower, plain


def round_on(grid: Grid, clients: int, state: State, plain: bool = False) -> dict[str, NDArray[Any]]:
    """One round as a strategy does it: pack, exchange, unpack, average; plain: with Flower's own arrays."""
    arrays = ArrayRecord(state) if plain else to_record(state)
    content = RecordDict({ARRAYS: arrays, "config": ConfigRecord({"plain": plain})})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    assert len(replies) == clients and not any(reply.has_error() for reply in replies)
    records = [reply.content.array_records[ARRAYS] for reply in replies]
    return average(
        [
            {name: array.numpy() if plain else view_of(array) for name, array in record.items()}
            for record in records
        ]
    )


@lru_cache(maxsize=1)
def model() -> nn.Module:
    """A ResNet-18 for 1,000 classes, made once per process."""
    node = compose_config(["model=resnet18"])["model"]
    return make_model(node, Task((3, 32, 32), 1000, (0.5,) * 3, (0.25,) * 3), 0)


def app(config_json: str, partition: Partition) -> ClientApp:
    """Clients that load the model and give it back."""
    keep_freed_memory()
    torch.set_num_threads(1)
    found = ClientApp()
    found.train()(give_back)
    return found


def give_back(message: Message, context: Context) -> Message:
    """As the package's own client receives and sends, or plainly as Flower's examples do."""
    net = model()
    received, plain = message.content.array_records[ARRAYS], message.content.config_records["config"]["plain"]
    if plain:
        net.load_state_dict(received.to_torch_state_dict())
    else:
        load_record(received, net.state_dict())
    sent = ArrayRecord(net.state_dict()) if plain else to_record(net.state_dict())
    numbers = MetricRecord({"num-examples": 1, "partition-id": int(context.node_config["partition-id"])})
    return Message(RecordDict({ARRAYS: sent, METRICS: numbers}), reply_to=message)


@contextmanager
def bare_round(clients: int, state: State) -> Iterator[Round]:
    """The same by Ray alone."""
    workers = num_actors_that_fit(ClientResources(1), clients)
    actors = [BareActor.options(num_cpus=0.5).remote() for _ in range(workers)]  # type: ignore[attr-defined]
    yield partial(bare_exchange, actors, clients, state)
    for actor in actors:
        ray.kill(actor)


@ray.remote
class BareActor:
    """A client with nothing but Ray between it and the server."""

    def __init__(self) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)

    def run(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Load the model and give it back."""
        net = model()
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                np.copyto(tensor.numpy(), arrays[name])
        return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def bare_exchange(actors: Sequence[Any], clients: int, state: State) -> dict[str, NDArray[Any]]:
    """Put the model into the object store once, give it to actors as they get free, average what they return."""
    stored = ray.put({name: tensor.numpy() for name, tensor in state.items()})
    waiting, busy, found = list(range(clients)), dict[Any, Any](), list[dict[str, NDArray[Any]]]()
    for actor in actors:
        if waiting:
            waiting.pop()
            busy[actor.run.remote(stored)] = actor
    while busy:
        (done,), _ = ray.wait(list(busy))
        actor = busy.pop(done)
        if waiting:
            waiting.pop()
            busy[actor.run.remote(stored)] = actor
        found.append(ray.get(done))
    return average(found)


def average(clients: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The plain mean."""
    mean = {name: values / len(clients) for name, values in clients[0].items()}
    for client in clients[1:]:
        for name, values in client.items():
            mean[name] += values / len(clients)
    return mean
