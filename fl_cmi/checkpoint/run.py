"""The checkpoints of a run: what it was begun with, how far its log reaches, how long it took, and its parts."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fl_cmi.checkpoint.state import NotResumableError
from fl_cmi.checkpoint.store import Damaged, Generation, Part, Store
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.checks import pick_device
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import commit, json_safe, versions
from fl_cmi.types import ConfigError

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)

Config = dict[str, Any]


class Checkpoints:
    """Writes a run's checkpoints, and gives a run that goes on what the last one holds.

    A checkpoint that cannot be written is told of in a line, and the run goes on without it.

    Args:
        store: Where they are.
        config: The run's.
        log: Goes on where it was when the checkpoint was taken; rows that were written already are not written again.
        progress: Its seconds go on.
        start: The checkpoint to go on from, None for a new run.

    Attributes:
        clocks: Adds to what is told about each checkpoint.
        inside: Whether what comes before a transfer is kept, so that the transfer can be.
    """

    def __init__(
        self, store: Store, config: Config, log: MetricsLog, progress: Progress, start: Generation | None
    ) -> None:
        settings = config["checkpoint"]
        self.every, self.rounds, self.keep = settings["every"], settings.get("rounds"), settings["keep"]
        self.store, self.config, self.log, self.progress, self.start = store, config, log, progress, start
        self.parts: dict[str, Part] = dict(start.parts) if start else {}
        self.about: dict[str, Any] = dict(start.about) if start else {"round": 0}
        self.pending: Generation | None = start
        self.points, self.works, self.inside = 0, True, start is not None
        self.begin = time.perf_counter()
        self.clocks: Callable[[], Mapping[str, Any]] = dict
        if start is not None:
            self.wind_back(start.about)

    def wind_back(self, about: Mapping[str, Any]) -> None:
        """Log and clocks as they were."""
        if not self.log.truncate(about["position"], about["prefix"]):
            allowed = "a run whose metrics.jsonl is as it was written"
            raise ConfigError("resume", self.store.folder.parent, allowed)
        self.log.muted = True
        for name, seconds in about["seconds"].items():
            self.progress.seconds[name] = self.progress.seconds.get(name, 0.0) + seconds
        self.begin -= about["total"]
        for name, here in surroundings(self.config).items():
            there = about["surroundings"].get(name)
            if there != here:
                logger.warning("resume: %s was %s and is %s; last bits may differ", name, there, here)

    @property
    def seconds(self) -> float:
        """Since the run began, without what a killed process did after its last checkpoint."""
        return time.perf_counter() - self.begin

    def note(self, **about: Any) -> None:
        """Plain values for all checkpoints to come."""
        self.about |= about

    def go_on(self) -> None:
        """From here on the run does what was not done before."""
        self.pending, self.log.muted = None, False

    def has(self, name: str) -> bool:
        """Whether the checkpoint to go on from has this part, and nobody has gone on yet."""
        return self.pending is not None and name in self.pending.parts

    def read(self, name: str) -> Tree:
        """A part of the checkpoint to go on from.

        Raises:
            ConfigError: If it cannot be read.
        """
        assert self.start is not None
        try:
            return self.store.read(self.start.parts[name])
        except (Damaged, OSError) as error:
            folder = self.store.folder.parent
            raise ConfigError("resume", folder, f"a run that can go on, but {error}") from None

    def commit(
        self, trees: Mapping[str, Callable[[], Tree]], drop: tuple[str, ...] = (), **about: Any
    ) -> bool:
        """Write a checkpoint; whether it was possible.

        Args:
            trees: New parts; others stay as they are.
            drop: Names of parts that are over.
            about: Plain values, kept until they are given anew.
        """
        if not self.works:
            return False
        now = {**self.about, **about}
        try:
            new = {name: self.store.write(name, tree()) for name, tree in trees.items()}
            parts = {**{name: part for name, part in self.parts.items() if name not in drop}, **new}
            position, prefix = self.log.settled()
            self.store.commit(
                parts,
                {
                    **now,
                    **self.clocks(),
                    "config": json_safe(self.config),
                    "position": position,
                    "prefix": prefix,
                    "seconds": dict(self.progress.seconds),
                    "total": self.seconds,
                    "surroundings": surroundings(self.config),
                },
            )
        except NotResumableError as error:
            self.works = False
            logger.warning("no checkpoints of this run: %s", error)
            return False
        except OSError as error:
            logger.warning("no checkpoint was written (%s); the one before stays", error)
            return False
        self.parts, self.about = parts, now
        return True

    def begin_transfer(self, trees: Mapping[str, Callable[[], Tree]]) -> None:
        """What comes before a run's only transfer is there; keep it, or go on from where it was."""
        if self.pending is None or not self.pending.parts:
            self.inside = self.commit(trees)
        if not self.has("transfer"):
            self.go_on()

    def resumed(self) -> Tree:
        """The state of the transfer that was under way, once; or None."""
        if not self.has("transfer"):
            return None
        state = self.read("transfer")
        self.go_on()
        return state

    def reached(self, state: Callable[[], Tree]) -> None:
        """After so many batches and lessons, keep the transfer's state."""
        self.points += 1
        if self.inside and self.every is not None and self.points % self.every == 0:
            self.commit({"transfer": state})

    def close(self) -> None:
        """The run is over: its checkpoints go, unless they are to be kept."""
        if self.keep:
            self.store.unlock()
        else:
            self.store.remove()


def surroundings(config: Config) -> dict[str, Any]:
    """What the last bits of a result depend on besides the configuration."""
    device = pick_device(config["device"])
    return {
        "the device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "the number of threads": torch.get_num_threads(),
        "the processor": torch.backends.cpu.get_cpu_capability(),
        "the code": commit() or versions().get("fl_cmi"),
    }
