"""The results of many runs as CSV, a line a run, and as markdown, a line a method."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from simulations.lines import spread

__all__ = ["COLUMNS", "write_tables"]

Results = Sequence[tuple[str, int, dict[str, Any] | str]]
"""Method, seed, and the run's summary or why it failed."""

COLUMNS: dict[str, str] = {
    "accuracy": "student",
    "agreement": "agreement",
    "diversity": "diversity",
    "balance": "balance",
    "frechet": "Frechet",
    "precision": "precision",
    "recall": "recall",
    "confidence": "confidence",
    "seconds": "wall s",
    "teacher_passes": "teacher passes",
    "images": "images",
}
"""Of the CSV, and how they are called in the markdown table."""

PERCENT = {"accuracy", "agreement", "precision", "recall", "confidence"}


def row_of(summary: dict[str, Any]) -> dict[str, float]:
    """The columns of one run; shares are fractions of 1, seconds of the wall clock in what the budget is for."""
    synthetic, seconds = summary["synthetic"], summary["seconds"]
    measures = ("diversity", "balance", "frechet", "precision", "recall", "confidence")
    return {
        "accuracy": summary["student"]["accuracy_last"],
        "agreement": summary["agreement"],
        **{name: synthetic[name] for name in measures},
        "seconds": seconds.get("synthesis", 0.0) + seconds.get("distillation", 0.0),
        "teacher_passes": summary["teacher_passes"],
        "images": summary["images"],
    }


def write_tables(folder: Path, teacher: dict[str, Any], results: Results, budget: float) -> str:
    """Write `synthesizers.csv` and `synthesizers.md` into `folder`; returns the latter's text.

    Args:
        folder: Made where missing.
        teacher: The summary of the run that trained the teacher.
        results: Of all runs so far.
        budget: Seconds each had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "synthesizers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["method", "seed", *COLUMNS, "failure"])
        writer.writeheader()
        for method, seed, result in results:
            found = {"failure": result} if isinstance(result, str) else row_of(result)
            writer.writerow({"method": method, "seed": seed, **found})
    text = markdown(teacher, results, budget)
    (folder / "synthesizers.md").write_text(text, encoding="utf-8")
    return text


def markdown(teacher: dict[str, Any], results: Results, budget: float) -> str:
    """The table by method, the best student first, then the failures."""
    rows: dict[str, list[dict[str, float]]] = {}
    for method, _, result in results:
        if not isinstance(result, str):
            rows.setdefault(method, []).append(row_of(result))
    ordered = sorted(rows.items(), key=lambda item: -fmean(row["accuracy"] for row in item[1]))
    real = teacher["synthetic"]["diversity_real"]
    lines = [
        f"Teacher {100 * teacher['teacher']['accuracy']:.2f} %, {budget:g} CPU s of synthesis and distillation each,"
        f" {teacher['threads']} threads; diversity of real images {real:.3g}. Accuracy of the last step on test"
        " images; mean +- standard deviation over seeds.",
        "",
        "| method | seeds | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---|" * (1 + len(COLUMNS)),
    ]
    for method, found in ordered:
        cells = [entry(name, [row[name] for row in found]) for name in COLUMNS]
        lines.append(f"| {method} | {len(found)} | " + " | ".join(cells) + " |")
    failed = [(method, seed, result) for method, seed, result in results if isinstance(result, str)]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {method}, seed {seed}: {reason}" for method, seed, reason in failed]
    return "\n".join(lines) + "\n"


def entry(name: str, values: list[float]) -> str:
    """One field of the table."""
    places = 2 if name in PERCENT else 3 if name in ("balance", "diversity", "frechet") else 0
    return spread(values, 100 if name in PERCENT else 1, places)
