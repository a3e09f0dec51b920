"""The pictures of a run: who has which classes, how accuracy and losses went, what the synthesizer made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from fl_cmi.files import whole
from fl_cmi.report.units import percent

__all__ = ["curves", "partition_heatmap", "synthetic_grid"]

INK, FAINT, EMPTY = "#1f2328", "#8b949e", 0.93
STUDENT, ENSEMBLE, AVERAGE = "#0969da", "#1a7f37", "#bc4c00"
TERM_COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#7d6b00", "#0a7d8c", "#57606a")
NO_TERMS = {"event", "round", "epoch", "step", "client", "accuracy", "seconds", "images", "num_images"}


def partition_heatmap(
    counts: Int[np.ndarray, "clients classes"], class_names: Sequence[str], path: Path
) -> None:
    """Draw clients x classes, the number of images in each cell where it fits, and each client's size.

    Shades go with the square root of the number, so that small holdings are seen; white is none.

    Args:
        counts: Images of each class that each client holds (K, C).
        class_names: C names.
        path: The PNG to write.
    """
    num_clients, num_classes = counts.shape
    cell = (min(0.62, 12 / num_classes), min(0.34, 12 / num_clients))
    width, height = max(2.5, num_classes * cell[0]), max(1.0, num_clients * cell[1])
    figure = _figure(width + 2.6, height + 1.9)
    axes = figure.add_subplot()
    norm = PowerNorm(0.5, vmin=0, vmax=max(1, int(counts.max(initial=0))))
    held = np.ma.masked_equal(counts, 0)
    image = axes.imshow(held, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    fits = max(map(len, class_names)) * 0.09 < cell[0]
    slant = {} if fits else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    _ticks(axes.set_xticks, class_names, most=int(width / 0.2), **slant)
    _ticks(axes.set_yticks, [str(client) for client in range(num_clients)], most=int(height / 0.2))
    axes.set_ylabel("client")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, num_classes) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, num_clients) - 0.5, minor=True)
    if cell[1] > 0.17:
        axes.grid(which="minor", color="#eaeef2", linewidth=1.2)
        sizes = axes.secondary_yaxis("right")
        sizes.set_yticks(range(num_clients), [f"{size:,}" for size in counts.sum(axis=1)])
        sizes.tick_params(length=0, labelcolor=FAINT)
        sizes.spines[:].set_visible(False)
        axes.annotate("images", (1, 1), (5, 5), "axes fraction", "offset points", color=FAINT)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("#d0d7de")
    axes.set_title("Training images by client and class", loc="left", fontweight="bold", pad=10)
    if cell[0] > 0.4 and cell[1] > 0.17:
        _numbers(axes, counts, norm)
    else:
        bar = figure.colorbar(image, ax=axes, fraction=0.3 / (width + 1), pad=0.02, aspect=16)
        bar.ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelcolor=FAINT)
    _save(figure, path)


def curves(
    rows: list[dict[str, Any]],
    path: Path,
    ensemble: float | None = None,
    average: float | None = None,
    teacher: float | None = None,
) -> None:
    """Draw the student's accuracy above the loss terms, over the epochs of all rounds laid end to end.

    Args:
        rows: Events as logged. `evaluate`: `round`, `accuracy` and, within a round, `epoch`. `round`: perhaps
            `accuracy`, for rounds without evaluations. `synthesis`, `distillation`: `round`, `epoch`, and any terms.
        path: The PNG to write.
        ensemble: Accuracy of the clients' ensemble in the last round, a horizontal line.
        average: Accuracy of the clients' parameter average in the last round, another one.
        teacher: Accuracy of the one teacher of an un-federated run.
    """
    rows = [row for row in rows if row["event"] in ("evaluate", "round", "synthesis", "distillation")]
    epochs = any(row.get("epoch") is not None for row in rows)
    start, end = _round_spans(rows)
    terms = _terms(rows, start, end)
    figure = _figure(9.0, 6.6 if terms else 3.8)
    panels = figure.subplots(2 if terms else 1, 1, sharex=True, squeeze=False)[:, 0]
    inside = {row["round"] for row in rows if row["event"] == "evaluate"}
    looks = [row for row in rows if row["event"] == "evaluate" or row["round"] not in inside]
    scored = [(_place(row, start, end), row) for row in looks if "accuracy" in row]
    bounds = (("ensemble (bound)", ensemble), ("teacher (bound)", teacher))
    levels = [(name, level, ENSEMBLE, "--") for name, level in bounds if level is not None]
    levels += [("average of the clients", average, AVERAGE, ":")] if average is not None else []
    _accuracies(panels[0], scored, levels)
    if terms:
        _losses(panels[1], terms)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eaeef2")
        axes.set_axisbelow(True)
        for border in list(start.values())[1:] if epochs else []:
            axes.axvline(border, color="#d0d7de", linewidth=0.8, zorder=0)
    label = "epoch" if len(start) < 2 else f"epoch, {len(start)} rounds end to end"
    panels[-1].set_xlabel(label if epochs else "round")
    panels[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels()
    _save(figure, path)


def synthetic_grid(
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    class_names: Sequence[str],
    path: Path,
    per_class: int = 10,
) -> None:
    """Draw a row of images for each class, its name at the left; a class without images has empty places.

    Args:
        x: Images in [0, 1], enlarged by whole factors, not smoothed; neither gray nor RGB: their channels' mean.
        y: The class that each was made for.
        class_names: Names of all classes.
        path: The PNG to write.
        per_class: Images per row, spread evenly over those there are, in their order.
    """
    channels, height, width = x.shape[1:]
    x = x if channels in (1, 3) else x.float().mean(dim=1, keepdim=True)
    most = 64 if len(class_names) <= 20 else 32
    scale = max(1, most // max(height, width))
    cell_h, cell_w, space = height * scale, width * scale, 3
    canvas = np.ones((len(class_names) * (cell_h + space), per_class * (cell_w + space), 3), dtype=np.float32)
    for row in range(len(class_names)):
        members = (y == row).nonzero().flatten()
        chosen = members[
            np.linspace(0, max(0, len(members) - 1), min(per_class, len(members))).astype(np.int64)
        ]
        pictures = x[chosen].detach().cpu().float().clamp(0, 1).expand(-1, 3, -1, -1)
        big = (
            pictures.repeat_interleave(scale, dim=2)
            .repeat_interleave(scale, dim=3)
            .permute(0, 2, 3, 1)
            .numpy()
        )
        for column in range(per_class):
            top, left = row * (cell_h + space), column * (cell_w + space)
            picture = big[column] if column < len(big) else EMPTY
            canvas[top : top + cell_h, left : left + cell_w] = picture
    _place_pixels(canvas[:-space, :-space], class_names, cell_h + space, path)


def _place_pixels(canvas: np.ndarray, names: Sequence[str], pitch: int, path: Path) -> None:
    """Save `canvas` pixel by pixel, `names` at its left, one every `pitch` pixels."""
    dpi, margin, size = 100, 12, min(10.0, 0.5 * pitch)
    figure = Figure(dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    texts = [figure.text(0, 0, name, size=size, color=INK, ha="right", va="center") for name in names]
    left = margin + int(max(text.get_window_extent().width for text in texts)) + 10
    width, height = left + canvas.shape[1] + margin, canvas.shape[0] + 2 * margin
    # Half a pixel more, or the conversion to inches and back may round one away.
    figure.set_size_inches((width + 0.5) / dpi, (height + 0.5) / dpi)
    for row, text in enumerate(texts):
        middle = margin + row * pitch + pitch / 2 - 1
        text.set_position(((left - 10) / width, 1 - middle / height))
    figure.figimage(canvas, xo=left, yo=margin, origin="upper", resize=False)
    with whole(path) as draft:
        figure.savefig(draft, format="png", dpi=dpi)


def _accuracies(
    axes: Axes, scored: list[tuple[float, dict[str, Any]]], levels: list[tuple[str, float, str, str]]
) -> None:
    if scored:
        places, accuracies = [place for place, _ in scored], [row["accuracy"] for _, row in scored]
        marker = "o" if len(scored) <= 60 else ""
        axes.plot(
            places, accuracies, color=STUDENT, marker=marker, markersize=3.5, linewidth=1.6, label="student"
        )
        last = axes.annotate(
            percent(accuracies[-1]), (places[-1], accuracies[-1]), xytext=(6, -3), textcoords="offset points"
        )
        last.set(color=STUDENT, fontweight="bold", annotation_clip=False)
    else:
        axes.text(0.5, 0.5, "no evaluation logged", transform=axes.transAxes, ha="center", color=FAINT)
    for name, level, color, style in levels:
        axes.axhline(level, color=color, linestyle=style, linewidth=1.4, label=f"{name} {percent(level)}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_ylabel("test accuracy")
    shown = [row["accuracy"] for _, row in scored] + [level for _, level, _, _ in levels]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    # Whole tens around what is shown, and a bit above the line at 100 %.
    top = min(1.0, np.ceil(10 * high + 0.2) / 10)
    axes.set_ylim(max(0.0, min(np.floor(10 * low - 0.2) / 10, top - 0.2)), top + 0.005)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2)


def _losses(axes: Axes, terms: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    values = np.array([value for line in terms.values() for _, value in line if not np.isnan(value)])
    sizes = np.abs(values[values != 0])
    # Terms differ by orders of magnitude, and some, such as a disagreement, are negative.
    if len(sizes) and sizes.max() > 20 * sizes.min():
        if values.min() > 0:
            axes.set_yscale("log")
        else:
            _symmetric_log(axes, values, smallest=max(sizes.min(), sizes.max() / 1e4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for number, ((event, term), line) in enumerate(terms.items()):
        axes.plot(
            *zip(*line, strict=True),
            color=TERM_COLORS[number % len(TERM_COLORS)],
            linestyle="--" if event == "distillation" else "-",
            marker="o" if len(line) == 1 else "",
            markersize=3.5,
            linewidth=1.3,
            label=term if event == "synthesis" else f"{event}: {term}",
        )
    axes.set_ylabel("loss term")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, borderaxespad=0.2)


def _symmetric_log(axes: Axes, values: np.ndarray, smallest: float) -> None:
    """Logarithmic both ways from the power of ten below `smallest`, which the ticks start with."""
    first, last = int(np.floor(np.log10(smallest))), int(np.ceil(np.log10(np.abs(values).max())))
    powers = 10.0 ** np.arange(first, last + 1)
    low, high = values.min(), values.max()
    axes.set_yscale("symlog", linthresh=powers[0], linscale=0.5)
    axes.set_yticks(
        [*(-power for power in powers[::-1] if -power >= low), 0, *(p for p in powers if p <= high)]
    )
    axes.minorticks_off()


def _round_spans(rows: list[dict[str, Any]]) -> tuple[dict[int, float], dict[int, float]]:
    """Where each round starts and ends on the common axis: as long as its last epoch, 1 if it has none."""
    lengths: dict[int, float] = {}
    for row in rows:
        lengths[row["round"]] = max(lengths.get(row["round"], 0), row.get("epoch") or 0)
    start, end, at = {}, {}, 0.0
    for number in sorted(lengths):
        start[number] = at
        at = end[number] = at + max(1, lengths[number])
    return start, end


def _place(row: dict[str, Any], start: dict[int, float], end: dict[int, float]) -> float:
    """Where a row is on the common axis; one without an epoch belongs to its round's end."""
    epoch = row.get("epoch")
    return end[row["round"]] if epoch is None else start[row["round"]] + epoch


def _terms(
    rows: list[dict[str, Any]], start: dict[int, float], end: dict[int, float]
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The course of each loss term: (event, term) -> places and values."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["event"] in ("synthesis", "distillation"):
            for name, value in row.items():
                if name not in NO_TERMS and isinstance(value, int | float):
                    line = found.setdefault((row["event"], name), [])
                    several = end[row["round"]] - start[row["round"]] > 1
                    if several and line and line[-1][0] <= start[row["round"]]:
                        # A gap between rounds: synthesis starts afresh, nothing leads from one to the next.
                        line.append((start[row["round"]], float("nan")))
                    line.append((_place(row, start, end), float(value)))
    return dict(sorted(found.items(), key=lambda item: item[0][0] != "synthesis"))


def _numbers(axes: Axes, counts: np.ndarray, norm: PowerNorm) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if float(norm(count)) > 0.7 else INK
            axes.text(column, row, str(count), ha="center", va="center", size=8, color=color)


def _ticks(setter: Any, names: Sequence[str], most: int, **style: Any) -> None:
    """Label every n-th place, so that at most `most` labels are there."""
    step = -(-len(names) // max(1, most))
    setter(range(0, len(names), step), list(names)[::step], **style)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with whole(path) as draft:
        figure.savefig(draft, format="png")
