"""A line of the table of speeds, and how two ways to do the same are timed."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import cuda

__all__ = ["Clock", "Figure", "Scale", "Times", "at_least", "at_most", "in_turn", "seconds", "wall_clock"]

Clock = Callable[[], float]
"""Seconds, from any beginning."""


@dataclass(frozen=True)
class Scale:
    """How long a benchmark may take.

    Args:
        quick: Small sizes and few pairs, for a look; else the sizes that the goals are about.
        tiny: Sizes at which no number means anything, for tests.
        pairs: Timings of each way; None for each figure's own.
        large: Also what needs much memory.
    """

    quick: bool = False
    tiny: bool = False
    pairs: int | None = None
    large: bool = False

    def choose(self, full: int, quick: int, tiny: int = 1) -> int:
        """A size."""
        return tiny if self.tiny else quick if self.quick else full

    def repeat(self, full: int, quick: int) -> int:
        """How often."""
        return self.choose(full, quick) if self.pairs is None else self.pairs


@dataclass(frozen=True)
class Figure:
    """One line.

    Args:
        name: What was measured, and in which unit.
        ours: Ours, in that unit.
        reference: What it is compared with.
        ratio: Of the two, the one that the goal is about.
        goal: Such as `>= 2.5`; empty where there is none.
        reached: Whether the ratio is within the goal; None where there is none.
    """

    name: str
    ours: float
    reference: float
    ratio: float
    goal: str = ""
    reached: bool | None = None

    def as_json(self) -> dict[str, str | float | bool | None]:
        """By the names of the table's columns."""
        return {
            "figure": self.name,
            "ours": self.ours,
            "reference": self.reference,
            "ratio": self.ratio,
            "goal": self.goal,
            "pass": self.reached,
        }


@dataclass(frozen=True)
class Times:
    """Seconds of the two ways.

    Args:
        ours: Ours.
        reference: The other way.
        in_turn: Whether the n-th times of both are a pair; else only the medians can be compared.
    """

    ours: Sequence[float]
    reference: Sequence[float]
    in_turn: bool = True

    @property
    def speedups(self) -> list[float]:
        """How often ours fits into the other, ascending: in each pair, or by the medians."""
        pairs = zip(self.ours, self.reference, strict=True) if self.in_turn else [self.medians]
        return sorted(other / own for own, other in pairs)

    @property
    def medians(self) -> tuple[float, float]:
        """Of ours and of the other."""
        return statistics.median(self.ours), statistics.median(self.reference)


def in_turn(
    ours: Callable[[], object], reference: Callable[[], object], pairs: int, clock: Clock = time.process_time
) -> Times:
    """Time both ways alternately, so that a machine that gets slower does so for both; each runs once before."""
    ours(), reference()
    times = [(seconds(ours, clock), seconds(reference, clock)) for _ in range(pairs)]
    own, other = zip(*times, strict=True)
    return Times(own, other)


def seconds(work: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Of one call; by default CPU time of all threads of the process, which others on the machine change little."""
    start = clock()
    work()
    return clock() - start


def wall_clock() -> float:
    """Seconds by the clock on the wall; what was given to a GPU is done."""
    if cuda.is_available():
        cuda.synchronize()
    return time.perf_counter()


def at_least(name: str, times: Times, goal: float | None, per: int = 1) -> Figure:
    """How many times as fast ours is, the median over the pairs; seconds are divided by `per`."""
    ratio = statistics.median(times.speedups)
    return _figure(name, times, ratio, per, "" if goal is None else f">= {goal:g}", ratio >= (goal or 0))


def at_most(name: str, times: Times, goal: float | None, per: int = 1) -> Figure:
    """How many times as long ours takes, the median over the pairs; seconds are divided by `per`."""
    ratio = statistics.median([1 / speedup for speedup in times.speedups])
    return _figure(name, times, ratio, per, "" if goal is None else f"<= {goal:g}", ratio <= (goal or 0))


def _figure(name: str, times: Times, ratio: float, per: int, goal: str, reached: bool) -> Figure:
    own, other = times.medians
    return Figure(name, own / per, other / per, ratio, goal, reached if goal else None)
