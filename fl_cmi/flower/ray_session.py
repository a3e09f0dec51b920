"""Ray itself: started or joined, and asked how many clients it can hold."""

import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import ray
from ray._private.services import (
    canonicalize_bootstrap_address,
)  # Ray is pinned, and has no other name for it

from fl_cmi.interrupt import signals_wait
from fl_cmi.types import ConfigError

__all__ = ["ClientResources", "num_actors_that_fit", "num_that_fit", "ray_session"]

log = logging.getLogger(__name__)

CONNECT_LIMIT = 10.0
"""Seconds for a cluster's head to answer."""

RAY_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}


@dataclass(frozen=True)
class ClientResources:
    """What Ray sets aside for one client; it counts, but does not confine.

    Args:
        num_cpus: A whole number, or a fraction of one CPU, > 0.
        num_gpus: A whole number, or a fraction of one GPU, >= 0.
    """

    num_cpus: float = 1
    num_gpus: float = 0

    @classmethod
    def of(cls, given: Mapping[str, float] | None) -> "ClientResources":
        """From a config's mapping, checked.

        Raises:
            ConfigError: An unknown name, or an amount that Ray cannot set aside.
        """
        for name, amount in (given or {}).items():
            key = f"backend.client_resources.{name}"
            if name not in RAY_NAMES:
                raise ConfigError(key, amount, f"one of {', '.join(RAY_NAMES)}")
            if not isinstance(amount, int | float) or isinstance(amount, bool):
                raise ConfigError(key, amount, "a number")
            if not 0 <= amount < float("inf") or (amount > 1 and amount != int(amount)):
                raise ConfigError(key, amount, "a whole number or a fraction of 1, not negative")
            if name == "num_cpus" and amount == 0:
                raise ConfigError(key, amount, "a number > 0")
        return cls(**(given or {}))

    @property
    def by_name(self) -> dict[str, float]:
        """The amounts by the names of the fields, which are also Ray's names for an actor's options."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Ray, ready for use.

    A Ray that this process already uses is taken as it is and left running.

    Args:
        address: A cluster: `auto` or `host:port`. None starts a Ray on this machine that ends with the
            session, and that no other process joins by accident.

    Raises:
        ConfigError: No cluster at `address`, or one of another version.
    """
    if ray.is_initialized():
        yield
        return
    if address is not None:
        address = reachable(address)
    folder: str | None = None
    path = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), *_python_path()]))
    try:
        with signals_wait():
            context = ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Workers import what this process can import, also from a checkout that is not installed.
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        folder = context.address_info["session_dir"] if address is None else None
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        allowed = f"a running Ray cluster (auto or host:port), or null to start one; {_one_line(error)}"
        raise ConfigError("backend.address", address, allowed) from error
    try:
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            remove_session(Path(folder))


def reachable(address: str) -> str:
    """The cluster's `host:port`, where somebody answers: Ray itself would try for minutes, in many lines.

    Args:
        address: `host:port`, or `auto`, which is looked up as Ray does.

    Raises:
        ConfigError: Anything else, or no answer within `CONNECT_LIMIT`.
    """
    wanted = "a running Ray cluster (auto or host:port), or null to start one"
    try:
        means = str(canonicalize_bootstrap_address(address)) if address == "auto" else address
    except ConnectionError as error:
        raise ConfigError("backend.address", address, f"{wanted}; {_one_line(error)}") from None
    host, _, port = means.rpartition(":")
    if not (host and port.isdigit() and int(port) < 2**16) or "/" in host:
        raise ConfigError("backend.address", means, wanted)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_LIMIT).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError("backend.address", means, f"{wanted}; nobody answers there ({reason})") from None
    if os.environ.get("RAY_USE_TLS") == "1":  # the handshake needs certificates, which are Ray's to read
        return means
    with grpc.insecure_channel(means, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_LIMIT)
        except grpc.FutureTimeoutError:
            raise ConfigError("backend.address", means, f"{wanted}; what answers there is no Ray") from None
    return means


def remove_session(folder: Path) -> None:
    """Remove the folder of a Ray that has ended: sockets and logs, some 10 files for each process."""
    shutil.rmtree(folder, ignore_errors=True)
    latest = folder.with_name("session_latest")
    if latest.is_symlink() and not latest.exists():
        latest.unlink(missing_ok=True)


def num_actors_that_fit(wanted: ClientResources, num_clients: int, num_actors: int | None = None) -> int:
    """How many clients the running Ray holds at once, at most `num_clients`.

    Args:
        wanted: For one client.
        num_clients: Number of clients.
        num_actors: The user's own choice; None for as many as fit.

    Raises:
        ConfigError: Not one client fits, or fewer than `num_actors`.
    """
    fitting = num_that_fit(wanted, "backend.client_resources", "backend.client_resources.num_")
    if num_actors is not None and num_actors > fitting:
        allowed = f"at most {fitting} with {wanted.num_cpus:g} CPU and {wanted.num_gpus:g} GPU each"
        raise ConfigError("backend.num_actors", num_actors, allowed)
    chosen = min(num_actors or fitting, num_clients)
    machines = sum(node["Alive"] for node in ray.nodes())
    log.info(
        "Ray: %d clients on %d actors of %g CPU and %g GPU each, %d machine%s",
        *(num_clients, chosen, wanted.num_cpus, wanted.num_gpus, machines, "s" * (machines > 1)),
    )
    return chosen


def num_that_fit(wanted: ClientResources, key: str, prefix: str) -> int:
    """How many actors of these resources all machines of the running Ray hold at once, at least 1.

    Args:
        wanted: For one actor, which cannot be split over machines.
        key: What the user calls the resources together.
        prefix: What comes before `cpus` and `gpus` where the user names one.

    Raises:
        ConfigError: Not one fits.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: amount for name, amount in wanted.by_name.items() if amount}
    for name, amount in needed.items():
        most = max((node.get(RAY_NAMES[name], 0) for node in nodes), default=0)
        if amount > most:
            allowed = f"at most {most:g}, as no machine of this Ray has more"
            raise ConfigError(prefix + name.removeprefix("num_"), amount, allowed)
    # 1e-9 makes ten tenths one.
    fitting = sum(
        min(int(node.get(RAY_NAMES[name], 0) / amount + 1e-9) for name, amount in needed.items())
        for node in nodes
    )
    if not fitting:
        raise ConfigError(key, wanted.by_name, "what a single machine of this Ray has")
    return fitting


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
