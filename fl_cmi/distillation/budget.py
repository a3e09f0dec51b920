"""Seconds that a round of synthesis and distillation may take."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fl_cmi.types import ConfigError

__all__ = ["CLOCKS", "Budget", "Clock", "checked_budget", "clock_called"]

Clock = Callable[[], float]

PIECE = 10
"""Steps of distillation between two looks at the clock."""

KNOWN = ("first", "length", "taught", "batch", "learning", "whole")
"""Of a budget, besides the seconds spent."""

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

    Where a pool grows, synthesis ends in time for a lesson (`due`), and lessons end with the time (`over`), so a round
    takes longer than its budget by a few steps at most, unless a batch takes more than half of it. A generator that is
    trained first has half of the budget. Other schedules finish the iteration at hand, with one lesson.

    The share of the round that a lesson's learning rate follows is that of the seconds since the first lesson began,
    not that of the steps: lessons lie end to end over [0, 1], each reaching the time at which it ends if it takes as
    long as the one before; so the last one ends at 1 (or close to it, where it takes longer than expected).

    Args:
        seconds: The limit, > 0, or None.
        clock: The time in seconds.
    """

    def __init__(self, seconds: float | None = None, clock: Clock = time.perf_counter) -> None:
        self.seconds, self.clock = seconds, clock
        self.start = clock()
        self.first: float | None = None
        self.length = self.taught = 0.0
        self.batch = self.learning = 0.0
        self.whole = None if seconds is None else seconds / 2

    def state_dict(self) -> dict[str, float | None]:
        """Seconds spent, and what is known of batches and lessons."""
        return {name: getattr(self, name) for name in ("elapsed", *KNOWN)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as if the time between had not passed."""
        self.start = self.clock() - state["elapsed"]
        for name in KNOWN:
            setattr(self, name, state[name])

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and self.elapsed >= self.seconds

    @property
    def closing(self) -> bool:
        """Whether the time is up, or would be before another lesson, because the ensemble's rule learns first."""
        return self.seconds is not None and self.elapsed + self.learning >= self.seconds

    @property
    def due(self) -> bool:
        """Whether another batch, at worst as slow as the slowest, would take of the next lesson's time.

        That is what the last lesson took, or half of all, and what the ensemble's rule took to learn before it.
        """
        # Without lessons batches have all the time.
        another = self.batch + self.learning + self.whole if self.whole else 0.0
        return self.seconds is not None and self.elapsed + another >= self.seconds

    @contextmanager
    def learns(self) -> Iterator[None]:
        """Inside, the ensemble's rule learns."""
        begin = self.elapsed
        yield
        self.learning = self.elapsed - begin

    def pieces(self, steps: int, planned: tuple[float, float]) -> Iterator[tuple[int, tuple[float, float]]]:
        """A lesson of so many steps in one piece, or in short ones, of which only the first may begin too late.

        Args:
            steps: Of all pieces, >= 0.
            planned: The share (from, to) of the round, by steps.

        Yields:
            A piece's steps, and its share by steps or by time.
        """
        begin, piece = self.elapsed, PIECE if self.seconds is not None else max(1, steps)
        for first in range(0, steps, piece):
            if first and self.over:
                break
            with self.lesson(planned) as share:
                yield min(piece, steps - first), share
        self.whole = self.elapsed - begin

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
