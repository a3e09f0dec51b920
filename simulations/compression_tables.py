"""What the sweep of compressions found: tidy CSV, and markdown tables of accuracies and of the executed int8 models."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.known import Row, joined
from simulations.lines import spread
from simulations.sweep import Cell, Result

__all__ = ["KEYS", "accuracies", "executed", "row_of", "write_tables"]

Results = Sequence[tuple[Cell, Result]]
Group = tuple[str, ...]

KEYS = ("training", "model", "images", "bits", "seed")
"""Columns that tell one run from another."""

SPEEDS = (1, 64)
"""Batch sizes of which the speed is told."""


def write_tables(out: Path, command: str, results: Results, known: Sequence[Row] = ()) -> str:
    """Write `results.csv` and `table.md`, with the rows that are known from before; the markdown."""
    rows = joined(known, [row_of(cell, result) for cell, result in results], KEYS)
    names = list(dict.fromkeys(name for row in rows for name in row))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    text = "\n".join([f"`{command}`", "", accuracies(rows), executed(rows)])
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def row_of(cell: Cell, result: Result) -> dict[str, Any]:
    """One line of the CSV: shares are fractions of 1, latencies milliseconds."""
    if isinstance(result, str):
        return {**cell.where, "failure": result}
    before, after, how = result["model"], result["student"], result["compression"]
    return {
        **cell.where,
        "fp32": before["accuracy"],
        "calibrated": after["accuracy_calibrated"],
        "fine_tuned": after["accuracy_last"] if how["kd"] else "",
        "kd_steps": how["kd"]["steps"] if how["kd"] else "",
        "images_number": result["calibration"]["images"],
        "executed": how["executed"],
        "bytes": after["bytes"],
        "ratio": result["ratio"],
        **{
            f"{name}_ms_{size}": taken
            for name, side in (("fp32", before), ("small", after))
            for size, taken in (side["latency_ms"] or {}).items()
        },
        "threads": result["threads"],
        "total_s": result["seconds"]["total"],
        "commit": result["commit"],
        "failure": "",
    }


def accuracies(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model and set of images, a column for each number of bits; what failed says so."""
    columns = list(dict.fromkeys(row["bits"] for row in rows))
    lines = [
        "Test accuracy in percent, `calibration only / fine-tuned`, mean +- standard deviation over seeds:",
        "",
        "| training | model | images | fp32 | " + " | ".join(columns) + " |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for group, found in grouped(rows, ("training", "model", "images")).items():
        full = {row["seed"]: row["fp32"] for row in found if not row["failure"]}
        fields = [entry([row for row in found if row["bits"] == bits]) for bits in columns]
        lines.append(f"| {' | '.join([*group, spread(list(full.values()), 100, 1), *fields])} |")
    return "\n".join(lines) + "\n"


def entry(rows: Sequence[Mapping[str, Any]]) -> str:
    """One field of the table."""
    done = [row for row in rows if not row["failure"]]
    if not done:
        return "failed" if rows else "-"
    said = spread([row["calibrated"] for row in done], 100, 1)
    if all(row["fine_tuned"] != "" for row in done):
        said += " / " + spread([row["fine_tuned"] for row in done], 100, 1)
    return said + (f" ({len(rows) - len(done)} failed)" if len(done) < len(rows) else "")


def executed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of what runs at its bits: accuracy lost, how many times as small its file is, and how many times as fast."""
    real = [row for row in rows if not row["failure"] and row["executed"]]
    if not real:
        return ""
    lines = [
        "Executed int8: points lost, file smaller by, times as fast as fp32 (other jobs may run beside it):",
        "",
        "| training | model | images | lost | smaller | " + " | ".join(f"batch {n}" for n in SPEEDS) + " |",
        "|---" * (5 + len(SPEEDS)) + "|",
    ]
    figures: list[tuple[Callable[[Mapping[str, Any]], float], int]] = [
        (lambda row: 100 * (row["fp32"] - row["calibrated"]), 2),
        (lambda row: row["ratio"], 2),
    ]
    for group, found in grouped(real, ("training", "model", "images")).items():
        fields = [spread([figure(row) for row in found], 1, places) for figure, places in figures]
        fields += [spread([row[f"fp32_ms_{n}"] / row[f"small_ms_{n}"] for row in found]) for n in SPEEDS]
        lines.append(f"| {' | '.join([*group, *fields])} |")
    return "\n".join(lines) + "\n"


def grouped(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> dict[Group, list[Mapping[str, Any]]]:
    """Rows that are alike in these columns, in the order in which they come."""
    found: dict[Group, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in by), []).append(row)
    return found
