"""Plots of a sweep: accuracy against alpha, clients, rounds, bytes and the server's seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

__all__ = ["draw"]

Rows = Sequence[Mapping[str, Any]]

COLORS = (
    *("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989"),
    *("#7d6b00", "#0a7d8c", "#57606a", "#cf222e", "#1f2328"),
)
MARKERS = "osD^vPX*"
SETTING = ("partition", "alpha", "clients")
MANY = 30
"""Points of a line above which it has no markers, and a band for its deviation."""


def draw(out: Path, rows: Rows, rounds: Rows) -> None:
    """Write `accuracy_<against>.png` for each quantity of which there are several values.

    Args:
        out: The folder.
        rows: Of finished runs.
        rounds: Of their rounds, where there are several.
    """
    for column, log in (("alpha", True), ("clients", True)):
        given = [row for row in rows if row[column] != ""]
        if len({row[column] for row in given}) > 1:
            plot(out, given, column, "alpha" if column == "alpha" else "clients", log, ticks=True)
    if rows:
        plot(out, rows, "server_cpu_s", "CPU seconds of the server", log=False, points=True)
    if rounds:
        plot(out, rounds, "round", "round", log=False)
        plot(
            out,
            [{**row, "megabytes": row["bytes"] / 1e6} for row in rounds],
            "megabytes",
            "MB sent",
            log=False,
        )
    elif rows:
        plot(out, rows, "megabytes", "MB sent", log=False, points=True)


def plot(
    out: Path, rows: Rows, column: str, label: str, log: bool, ticks: bool = False, points: bool = False
) -> None:
    """One figure, a panel for every setting of the rest, a line or a point for every method."""
    rest = [key for key in SETTING if key != column]
    panels = list(dict.fromkeys(tuple(row[key] for key in rest) for row in rows))
    methods = best_first(rows)
    figure = Figure(figsize=(1.8 + 3.6 * len(panels), 3.6), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        here = [row for row in rows if tuple(row[key] for key in rest) == panel]
        for place, method in enumerate(methods):
            own = [row for row in here if row["method"] == method]
            if own:
                series(axes, own, column, method, place, points)
        if log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(sorted({row[column] for row in here}))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel(label)
        axes.set_title(", ".join(f"{key} {v}" for key, v in zip(rest, panel, strict=True) if v != ""), size=9)
        axes.grid(color="#eaeef2")
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.set_ylabel("test accuracy")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    lines = [handles[method] for method in methods]
    figure.legend(lines, methods, loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(out / f"accuracy_{column}.png", format="png")


def best_first(rows: Rows) -> list[str]:
    """The methods by their mean accuracy, so that the legend is read like the plot, from above."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(str(row["method"]), []).append(row["accuracy"])
    return sorted(found, key=lambda method: -fmean(found[method]))


def series(axes: Axes, rows: Rows, column: str, method: str, place: int, points: bool) -> None:
    """A method's mean over seeds and its standard deviation, at each value of the column or at the mean of it."""
    color, marker = COLORS[place % len(COLORS)], MARKERS[place // len(COLORS) % len(MARKERS)]
    style: dict[str, Any] = {"color": color, "label": method, "linewidth": 1.4}
    groups: dict[Any, list[float]] = {}
    for row in rows:
        # Bytes of a round differ a little between seeds; rounds belong together.
        key = "all" if points else row["round"] if column == "megabytes" else row[column]
        groups.setdefault(key, []).append(row["accuracy"])
    at = {key: key for key in groups}
    if points:
        at = {"all": fmean(row[column] for row in rows)}
    elif column == "megabytes":
        at = {key: fmean(row[column] for row in rows if row["round"] == key) for key in groups}
    order = sorted(groups, key=lambda key: at[key])
    errors = [stdev(groups[key]) if len(groups[key]) > 1 else 0.0 for key in order]
    x, y = [at[key] for key in order], [fmean(groups[key]) for key in order]
    if len(order) > MANY:
        axes.plot(x, y, **style)
        low, high = ([a + sign * b for a, b in zip(y, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    else:
        spread = errors if any(errors) else None
        axes.errorbar(x, y, yerr=spread, capsize=2, marker=marker, markersize=4, **style)
