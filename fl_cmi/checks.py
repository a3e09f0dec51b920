"""Whether a configuration makes sense as a whole, before anything is built from it."""

from collections.abc import Sequence
from typing import Any

import torch

from fl_cmi.nodes import check_nodes
from fl_cmi.types import ConfigError

__all__ = [
    "ONLY_DISTILL",
    "ONLY_SIMULATE",
    "check",
    "check_distillation",
    "check_integer",
    "check_server",
    "check_truth",
    "pick_device",
]

Config = dict[str, Any]

ONLY_DISTILL = ("teacher", "threads")
ONLY_SIMULATE = ("partition", "teachers", "strategy", "rounds", "num_clients")
"""Top-level keys by which a configuration of another program is known."""


def check(config: Config) -> None:
    """Raise ConfigError for a top-level value of a federated run that is out of range."""
    refuse(config, ONLY_DISTILL, "distill")
    check_integer(config, "seed", None)
    check_integer(config, "rounds", 1)
    check_integer(config, "evaluate_every", 1)
    check_integer(config, "num_clients", 1)
    check_integer(config, "held_out", 0)
    check_integer(config, "clients_per_round", 1, optional=True)
    check_integer(config, "server_threads", 1, optional=True)
    check_integer(config, "client_threads", 1)
    if (config["clients_per_round"] or 1) > config["num_clients"]:
        most = f"at most {config['num_clients']} clients"
        raise ConfigError("clients_per_round", config["clients_per_round"], most)
    check_drawn(config, config["clients_per_round"] or config["num_clients"])
    if config["on_client_failure"] not in ("fail", "drop"):
        raise ConfigError("on_client_failure", config["on_client_failure"], "fail or drop")
    starts = ("previous", "average", "prototype", "scratch")
    if config["student_start"] not in starts:
        raise ConfigError("student_start", config["student_start"], f"one of {', '.join(starts)}")
    check_truth(config, "share_label_counts", "own_tests", "save_pool")
    pick_device(config["device"])
    check_nodes(config)


def check_drawn(config: Config, most: int) -> None:
    """Raise ConfigError where the synthesizer is to draw more teachers than a round has."""
    number = (config["synthesizer"] or {}).get("teachers")
    if isinstance(number, int) and number > most:
        allowed = f"an integer from 1 to {most}, the number of teachers, or null for all"
        raise ConfigError("synthesizer.teachers", number, allowed)


def check_distillation(config: Config) -> None:
    """Raise ConfigError for a value of an un-federated run that is out of range."""
    refuse(config, ONLY_SIMULATE, "simulate")
    check_integer(config, "seed", None)
    check_integer(config, "threads", 1, optional=True)
    checkpoint, train = config["teacher"]["checkpoint"], config["teacher"]["train"]
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise ConfigError("teacher.checkpoint", checkpoint, "a .safetensors file, or null")
    if train not in (None, True, False):
        raise ConfigError(
            "teacher.train", train, "true, false, or null for true where no checkpoint is given"
        )
    if train is (checkpoint is not None):
        given = "without" if checkpoint is None else "with"
        raise ConfigError(
            "teacher.train", train, f"the contrary, {given} teacher.checkpoint: exactly one of the two"
        )
    pick_device(config["device"])
    check_nodes(config)


def check_server(config: Config) -> None:
    """Raise ConfigError for values of `server` that make no sense."""
    settings = config["server"]
    if not isinstance(settings, dict) or set(settings) != {"workers", "worker_cpus", "worker_gpus"}:
        raise ConfigError("server", settings, "its keys, with values of their own")
    workers, cpus, gpus = (settings[key] for key in ("workers", "worker_cpus", "worker_gpus"))
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ConfigError("server.workers", workers, "an integer >= 1, or null for none")
    for key, value in (("worker_cpus", cpus), ("worker_gpus", gpus)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < float("inf") or (value > 1 and value != int(value)):
            raise ConfigError(f"server.{key}", value, "a whole number or a fraction of 1, not negative")
    if cpus == 0:
        raise ConfigError("server.worker_cpus", cpus, "a number > 0")


def refuse(config: Config, keys: Sequence[str], program: str) -> None:
    """Raise ConfigError for a top-level key that only another program reads; a preset of its may bring it."""
    for key in keys:
        if key in config:
            raise ConfigError(
                key, "...", f"nothing here; it is for python -m fl_cmi.{program}, as are its presets"
            )


def check_integer(config: Config, key: str, least: int | None, optional: bool = False) -> None:
    """Raise ConfigError unless the top-level value is an integer of at least `least`, or null where `optional`."""
    value = config[key]
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise ConfigError(key, value, "an integer" + ("" if least is None else f" >= {least}"))


def check_truth(config: Config, *keys: str) -> None:
    """Raise ConfigError unless these top-level values are true or false."""
    for key in keys:
        if not isinstance(config[key], bool):
            raise ConfigError(key, config[key], "true or false")


def pick_device(name: Any) -> torch.device:
    """`auto` is CUDA where there is one."""
    if not isinstance(name, str):
        raise ConfigError("device", name, "auto, cpu or cuda")
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
