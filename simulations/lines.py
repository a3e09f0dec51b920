"""The lines of a table: methods in a setting over seeds, each tested against its best rival."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from scipy.stats import ttest_rel

from simulations.sweep import Value

__all__ = ["METRICS", "Line", "Rows", "lines_of", "p_value", "setting_of", "spread"]

Rows = Sequence[dict[str, Any]]

LEAST = 3
"""Seeds below which no test is made."""

METRICS = {"accuracy": "p", "own_tests": "p of own tests"}
"""What methods are tested by, and how its column is called."""


def setting_of(row: Mapping[str, Any]) -> dict[str, Value]:
    """Where a method met its rivals."""
    return {key: row[key] for key in ("partition", "alpha", "clients")}


@dataclass(frozen=True)
class Line:
    """A method in one setting, over seeds.

    Args:
        setting: Partition, alpha, clients.
        method: Its name.
        rows: Of its runs that came to an end, by seed.
        failed: How many did not.
        p: Of a two-sided paired t-test over seeds against the best rival, by metric; None where it says nothing.
    """

    setting: Mapping[str, Value]
    method: str
    rows: Mapping[int, Mapping[str, Any]]
    failed: int
    p: Mapping[str, float | None] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """One column over seeds; runs without it are left out."""
        return [float(row[name]) for row in self.rows.values() if row[name] not in (None, "")]

    @property
    def accuracy(self) -> float:
        """The mean, -1 without runs."""
        return fmean(self.values("accuracy")) if self.rows else -1.0

    @property
    def budget(self) -> float:
        """Of the server in a round, 0 without."""
        return max((row["budget_cpu_s"] or 0.0 for row in self.rows.values()), default=0.0)


def lines_of(rows: Rows) -> list[Line]:
    """The table's lines: by setting, the best student first."""
    settings = list(dict.fromkeys(tuple(setting_of(row).items()) for row in rows))
    lines = []
    for setting in settings:
        here = [row for row in rows if tuple(setting_of(row).items()) == setting]
        found = []
        for method in dict.fromkeys(str(row["method"]) for row in here):
            own = [row for row in here if row["method"] == method]
            good = {int(row["seed"]): row for row in own if not row["failure"]}
            found.append(Line(dict(setting), method, good, len(own) - len(good)))
        tested = [
            replace(line, p={name: against_best(line, found, name) for name in METRICS}) for line in found
        ]
        lines += sorted(tested, key=lambda line: -line.accuracy)
    return lines


def against_best(line: Line, lines: Iterable[Line], metric: str) -> float | None:
    """The p-value against the best of the others that had no larger budget; of all others, for a line without one.

    Pairs are runs of one seed on the same partition. Only who has enough of them with the line is a rival, and the best
    has the highest mean over them: one seed alone may be a lucky one.
    """
    budget = line.budget if line.budget else math.inf
    pairs = [
        paired(line, other, metric)
        for other in lines
        if other.method != line.method and other.budget <= budget
    ]
    tested = [pair for pair in pairs if len(pair) >= LEAST]
    if not tested:
        return None
    best = max(tested, key=lambda pair: fmean(theirs for _, theirs in pair))
    return p_value(*zip(*best, strict=True))


def paired(line: Line, other: Line, metric: str) -> list[tuple[float, float]]:
    """The metric of both where they started from the same clients, by seed."""
    both = [(line.rows[seed], other.rows[seed]) for seed in sorted(line.rows.keys() & other.rows.keys())]
    return [
        (float(ours[metric]), float(theirs[metric]))
        for ours, theirs in both
        if ours["partition_hash"] == theirs["partition_hash"]
        and not {ours[metric], theirs[metric]} & {None, ""}
    ]


def p_value(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Of the two-sided paired t-test; None for fewer than 3 pairs, or where all differences are the same."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < LEAST or max(differences) - min(differences) < 1e-12:
        return None
    return float(ttest_rel(ours, theirs).pvalue)


def spread(values: Sequence[float], factor: float = 1.0, places: int = 2, plus_minus: str = "+-") -> str:
    """The mean, with the sample's standard deviation where there are several; - for none."""
    if not values:
        return "-"
    mean = f"{factor * fmean(values):,.{places}f}"
    return mean if len(values) < 2 else f"{mean} {plus_minus} {factor * stdev(values):,.{places}f}"
