"""Seconds that a round of synthesis and distillation may take."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fl_cmi.types import ConfigError

__all__ = ["CLOCKS", "Budget", "Clock", "checked_budget", "clock_called"]

Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` is the time of all threads of this process: equal work on a machine that others share."""


def clock_called(name: str, clocks: Mapping[str, Clock] = CLOCKS) -> Clock:
    """The clock that a user named: `wall`, or `cpu`.

    Raises:
        ConfigError: For any other name.
    """
    if name not in clocks:
        raise ConfigError("budget_clock", name, " or ".join(clocks))
    return clocks[name]


def checked_budget(seconds: Any) -> float | None:
    """The budget itself, as it came from a user.

    Raises:
        ConfigError: If it is no positive number.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError("budget_s", seconds, "a number of seconds > 0, or null for none")
    return float(seconds)


class Budget:
    """Seconds from now on, and where in them the learning rate stands. Without a limit it changes nothing.

    A schedule asks `over` between batches and between lessons and finishes the epoch at hand with one lesson more, so
    a round takes a little longer than its budget. The share of the round that a lesson's learning rate follows
    is that of the seconds since the first lesson began, not that of the steps: lessons lie end to end over [0, 1],
    each reaching the time at which it ends if it takes as long as the one before; so the last one ends at 1 (or close
    to it, where it takes longer than expected).

    Args:
        seconds: The limit, > 0, or None.
        clock: The time in seconds.
    """

    def __init__(self, seconds: float | None = None, clock: Clock = time.perf_counter) -> None:
        self.seconds, self.clock = seconds, clock
        self.start = clock()
        self.first: float | None = None
        self.length = self.taught = 0.0

    def state_dict(self) -> dict[str, float | None]:
        """Seconds spent, and what is known of lessons."""
        return {"elapsed": self.elapsed, "first": self.first, "length": self.length, "taught": self.taught}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as if the time between had not passed."""
        self.start = self.clock() - state["elapsed"]
        self.first, self.length, self.taught = state["first"], state["length"], state["taught"]

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and self.elapsed >= self.seconds

    @contextmanager
    def lesson(self, planned: tuple[float, float]) -> Iterator[tuple[float, float]]:
        """The share (from, to) of the round that the lesson inside is: as planned by steps, or by time."""
        if self.seconds is None:
            yield planned
            return
        begin = self.elapsed
        self.first = begin if self.first is None else self.first
        left = self.seconds - self.first
        share = min(1.0, (begin + self.length - self.first) / left) if left > 0 else 1.0
        before, self.taught = self.taught, max(share, self.taught)
        yield before, self.taught
        self.length = self.elapsed - begin
