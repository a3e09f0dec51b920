"""From a composed configuration to objects: the only place below the entry points that knows Hydra.

A configuration is a plain, resolved dictionary here; between processes it travels as JSON.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fl_cmi.data.dataset import Dataset
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.models.initialize import initialize
from fl_cmi.partition import Partition
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.rng import numpy_stream, stream
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, Images, State, Task, Teacher, Update

__all__ = [
    "ClientSide",
    "Config",
    "ServerSide",
    "build",
    "check",
    "client_side",
    "compose_config",
    "config_folder",
    "dataset",
    "make_partition",
    "pick_device",
    "plain_config",
    "server_side",
]

Config = dict[str, Any]


def config_folder() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "conf"


def compose_config(overrides: Sequence[str]) -> Config:
    """The configuration that `python -m fl_cmi.simulate` would run with these overrides."""
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return plain_config(hydra.compose("simulate", list(overrides)))


def plain_config(config: DictConfig) -> Config:
    """Plain, resolved, and without what only makes up others."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build(node: Any, key: str, **late: Any) -> Any:
    """Instantiate a configuration node; `late` are arguments that no YAML holds.

    Raises:
        ConfigError: As the constructor raised it, or naming `key` where the node does not fit the constructor.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all", **late)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        if isinstance(error.__cause__, TypeError):
            raise ConfigError(key, node.get("_target_"), f"other arguments: {error.__cause__}") from None
        raise


def check(config: Config) -> None:
    """Raise ConfigError for a top-level value out of range."""

    def integer(key: str, least: int | None, optional: bool = False) -> None:
        value = config[key]
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            raise ConfigError(key, value, "an integer" + ("" if least is None else f" >= {least}"))

    integer("seed", None)
    integer("rounds", 1)
    integer("num_clients", 1)
    integer("clients_per_round", 1, optional=True)
    integer("server_threads", 1, optional=True)
    integer("client_threads", 1)
    if (config["clients_per_round"] or 1) > config["num_clients"]:
        raise ConfigError("clients_per_round", config["clients_per_round"], f"at most {config['num_clients']} clients")
    if config["on_client_failure"] not in ("fail", "drop"):
        raise ConfigError("on_client_failure", config["on_client_failure"], "fail or drop")
    if not isinstance(config["share_label_counts"], bool):
        raise ConfigError("share_label_counts", config["share_label_counts"], "true or false")
    pick_device(config["device"])


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError("device", name, "auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", name, "auto or cpu, because this machine has no CUDA device")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("device", name, "auto, cpu or cuda")
    return device


@functools.lru_cache(maxsize=1)
def _dataset(node: str) -> Dataset:
    found = build(json.loads(node), "data")
    assert isinstance(found, Dataset)
    return found


def dataset(config: Config) -> Dataset:
    """The data set, loaded once per process."""
    return _dataset(json.dumps(config["data"], sort_keys=True))


def make_partition(config: Config, data: Dataset) -> Partition:
    """Deal the training images to the clients, by the run's own stream."""
    if config["num_clients"] > len(data.train):
        raise ConfigError("num_clients", config["num_clients"], f"at most the {len(data.train)} training images")
    rng = numpy_stream(config["seed"], "partition")
    procedure = build(config["partition"], "partition")
    found = procedure(data.train.y.numpy(), config["num_clients"], rng)
    assert isinstance(found, Partition)
    return found


def task(data: Dataset) -> Task:
    """What every model of the run has to fit."""
    return Task(data.train.shape, data.train.num_classes, data.mean, data.std)


def make_model(node: Config, what: Task, seed: int) -> nn.Module:
    """A model with the initial weights that its architecture has in every client of this run."""
    make = build(node, "model")
    model = make(shape=what.shape, num_classes=what.num_classes, mean=what.mean, std=what.std)
    initialize(model, stream(seed, "model"))
    return model


@dataclass(frozen=True)
class Clients:
    """The architectures of the clients, dealt in turn.

    Args:
        nodes: Their configurations; client k gets number k modulo their count.
        task: What they have to fit.
        seed: Of the run.
    """

    nodes: Sequence[Config]
    task: Task
    seed: int

    def __call__(self, client: int) -> nn.Module:
        """Client `client`'s model as it is before the first round."""
        return make_model(self.nodes[client % len(self.nodes)], self.task, self.seed)

    @classmethod
    def of(cls, config: Config, data: Dataset) -> "Clients":
        """As `teachers.architectures` says."""
        nodes = config["teachers"]["architectures"]
        if not nodes:
            raise ConfigError("teachers.architectures", nodes, "a list of at least one model")
        return cls(nodes, task(data), config["seed"])


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
    """

    train: Images
    build: Callable[[int], nn.Module]
    local: LocalTraining
    start: str
    seed: int
    device: torch.device
    share_label_counts: bool
    num_threads: int


@functools.lru_cache(maxsize=1)
def client_side(config_json: str) -> ClientSide:
    """Build a worker's side, once per process."""
    config: Config = json.loads(config_json)
    data = dataset(config)
    local = build(config["local"], "local")
    return ClientSide(
        data.train,
        Clients.of(config, data),
        local,
        local.start,
        config["seed"],
        pick_device(config["device"]),
        config["share_label_counts"],
        config["client_threads"],
    )


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

    def teacher(self, update: Update) -> Teacher:
        """Rebuild a client's network from what it sent."""
        model = self.build(update.client)
        model.load_state_dict(update.state)
        return Teacher(update.client, update.num_examples, update.class_counts, model)

    def untrained_ensemble(self, combine: Combine) -> Ensemble:
        """Teachers of the clients' architectures, to find out early what a method would miss."""
        counts = torch.zeros(self.task.num_classes, dtype=torch.int64) if self.share_label_counts else None
        ensemble = Ensemble([Teacher(k, 1, counts, self.build(k)) for k in range(self.num_architectures)], combine)
        ensemble.label(torch.zeros(2, *self.task.shape))
        return ensemble

    def average(self, updates: Sequence[Update]) -> State | None:
        """`sum_k n_k w_k / sum_k n_k` over parameters and buffers; None where architectures differ."""
        shapes = [{name: value.shape for name, value in update.state.items()} for update in updates]
        if any(other != shapes[0] for other in shapes):
            return None
        total = sum(update.num_examples for update in updates)
        return {
            name: sum(u.state[name].double() * (u.num_examples / total) for u in updates).to(value.dtype)  # type: ignore[union-attr]
            for name, value in updates[0].state.items()
        }

    def test_accuracy(self, model: nn.Module) -> float:
        """Share of test images that `model` gets right, in [0, 1]."""
        return accuracy(predict(model, self.test, self.device), self.test)


def server_side(config: Config, data: Dataset, progress: Progress, log: MetricsLog) -> ServerSide:
    """Build the server's side."""
    what = task(data)
    clients = Clients.of(config, data)
    return ServerSide(
        what,
        data.test,
        functools.partial(make_model, config["model"], what, config["seed"]),
        clients,
        min(len(clients.nodes), config["num_clients"]),
        config["share_label_counts"],
        config["seed"],
        pick_device(config["device"]),
        progress,
        log,
    )
