"""What a sweep of federated runs found: tidy CSV, tables in markdown and LaTeX, plots."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_cmi.report.metrics import MetricsLog
from simulations.known import NOTHING, Known, joined
from simulations.lines import METRICS, Rows, lines_of, setting_of, spread
from simulations.plots import draw
from simulations.sweep import Cell, Result, Value

__all__ = ["KEYS", "row_of", "write_results"]

KEYS = ("method", "partition", "alpha", "clients", "seed")
"""Columns that tell one run from another."""

FORMATS: dict[str, tuple[float, int]] = {
    "accuracy": (100, 2),
    "own_tests": (100, 2),
    "ensemble": (100, 2),
    "gap": (100, 2),
    "average": (100, 2),
    "megabytes": (1, 1),
    "server_wall_s": (1, 0),
    "server_cpu_s": (1, 0),
}
"""Columns of the table: factor and decimals; `own_tests` where a run has it."""

HEADS = {
    "accuracy": "student %",
    "own_tests": "own tests %",
    "ensemble": "ensemble %",
    "gap": "gap",
    "average": "average %",
    "megabytes": "MB",
    "server_wall_s": "server s",
    "server_cpu_s": "server CPU s",
}


def row_of(cell: Cell, result: Result) -> dict[str, Any]:
    """One line of the CSV; shares are fractions of 1, seconds are those of the whole run."""
    if isinstance(result, str):
        return {**cell.where, "failure": result}
    server, seconds, sent = result["server_seconds"], result["seconds"], result["bytes"]
    return {
        **cell.where,
        "accuracy": result["student"]["accuracy_last"],
        "accuracy_best_round": result["student"]["accuracy_best"],
        "ensemble": result["ensemble"]["accuracy"],
        "average": result["average"]["accuracy"],
        "gap": result["gap"],
        "own_tests": result["own_tests"],
        "rounds": result["rounds"],
        "bytes_up": sent["up"],
        "bytes_down": sent["down"],
        "megabytes": (sent["up"] + sent["down"]) / 1e6,
        "budget_cpu_s": result["config"]["strategy"].get("budget_s"),
        "server_wall_s": server["wall"],
        "server_cpu_s": server["cpu"],
        "local_s": seconds.get("local"),
        "total_s": seconds["total"],
        "teacher_cache": result["teacher_cache"],
        "dropped_clients": sum(not failure.get("retried") for failure in result["failures"]),
        "partition_hash": result["partition"]["hash"],
        "threads": result["threads"]["server"],
        "device": result["device"],
        "commit": result["commit"],
        "digest": result["digest"],
        "failure": "",
    }


def write_results(
    out: Path, command: str, results: Sequence[tuple[Cell, Result]], known: Known = NOTHING
) -> str:
    """Write `results.csv`, `rounds.csv` where there are several, `table.md`, `table.tex` and plots; the markdown.

    Args:
        out: The folder.
        command: What made them.
        results: Of all runs so far.
        known: Runs that were made before.
    """
    rows = [row_of(cell, result) for cell, result in results]
    if known.rows:
        rows = sorted(joined(known.rows, rows, KEYS), key=place)
    write_csv(out / "results.csv", rows)
    rounds = [
        {**cell.where, "round": event["round"], "bytes": event["bytes"], "accuracy": event["accuracy"]}
        for cell, result in results
        if not isinstance(result, str) and result["rounds"] > 1
        for event in MetricsLog.read(cell.folder / "metrics.jsonl")
        if event["event"] == "round" and "accuracy" in event
    ]
    if known.rounds:
        rounds = sorted(joined(known.rounds, rounds, KEYS), key=place)
    if rounds:
        write_csv(out / "rounds.csv", rounds)
    text = markdown(command, rows)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "table.tex").write_text(latex(command, rows), encoding="utf-8")
    draw(out, [row for row in rows if not row["failure"]], rounds)
    return text


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where it stands among rows of several sweeps."""
    return (row["partition"], row["alpha"] or 0.0, row["clients"], row["seed"])


def write_csv(path: Path, rows: Rows) -> None:
    """A line a row; columns in the order in which they first come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "failure"))
    with path.open("w", encoding="utf-8", newline="") as file:
        ends = ["failure"] if any("failure" in row for row in rows) else []
        writer = csv.DictWriter(file, [*columns, *ends])
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Rows, plus_minus: str = "+-") -> tuple[list[str], list[list[str]], dict[str, Value]]:
    """Heads, lines of text, and what is the same for all lines."""
    lines = lines_of(rows)
    first = lines[0].setting
    same = {key: first[key] for key in first if all(line.setting[key] == first[key] for line in lines)}
    heads = [key for key in first if key not in same]
    columns = [name for name in FORMATS if name != "own_tests" or any(line.values(name) for line in lines)]
    tested = [name for name in METRICS if name in columns]
    found = [
        [
            *(str(line.setting[key]) for key in heads),
            line.method,
            f"{len(line.rows)} ({line.failed} failed)" if line.failed else str(len(line.rows)),
            *(spread(line.values(name), *FORMATS[name], plus_minus) for name in columns),
            *("-" if (p := line.p[name]) is None else f"{p:.3f}" for name in tested),
        ]
        for line in lines
    ]
    last = [METRICS[name] for name in tested]
    return [*heads, "method", "seeds", *(HEADS[name] for name in columns), *last], found, same


EXPLANATION = (
    "Accuracy on test images after the last round, mean +- standard deviation over seeds; gap: points below the"
    " ensemble of the last round's clients; MB: sent to and from all clients; server: synthesis, distillation and"
    " averaging of all rounds; p: paired t-test against the best other method with no larger budget (of all others, for"
    " a method without one) over the seeds on which both started from the same clients, 3 or more."
)

OWN_TESTS = (
    " Own tests: FedGen's metric, every client with its own batch norm on test images of labels that it owns."
)


def markdown(command: str, rows: Rows) -> str:
    """The table with what it takes to make it again, and the failures."""
    heads, lines, same = table(rows)
    budgets = sorted({row["budget_cpu_s"] for row in rows if row.get("budget_cpu_s")})
    facts = [f"{key} {value}" for key, value in same.items() if value != ""]
    if budgets:
        facts.append(f"{' or '.join(f'{b:g}' for b in budgets)} CPU seconds of the server in a round")
    hours = sum(row.get("total_s") or 0.0 for row in rows) / 3600
    explanation = EXPLANATION + (OWN_TESTS if HEADS["own_tests"] in heads else "")
    text = [f"`{command}`", "", f"{'; '.join(facts)}; {hours:.1f} hours of runs. {explanation}", ""]
    text += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", "Partitions (sha256):", ""]
    good = [row for row in rows if not row["failure"]]
    text += dict.fromkeys(f"- {place_of(row)}: `{row['partition_hash'][:16]}`" for row in good)
    commits = Counter(row["commit"] for row in good)
    if len(commits) > 1:
        told = (f"`{(commit or 'none')[:12]}` {number}" for commit, number in commits.items())
        text += ["", f"Runs by version of the code (commit; the CSV has each run's): {', '.join(told)}."]
    failed = [row for row in rows if row["failure"]]
    if failed:
        text += ["", "Failed:", ""]
        text += [f"- {row['method']}, {place_of(row)}: {row['failure']}" for row in failed]
    return "\n".join(text) + "\n"


def place_of(row: Mapping[str, Any]) -> str:
    """Setting and seed in words."""
    at = {**setting_of(row), "seed": row["seed"]}
    return " ".join(f"{key} {value}" for key, value in at.items() if value != "")


def latex(command: str, rows: Rows) -> str:
    """The table for `booktabs`; failures are in the column of seeds."""
    heads, lines, _ = table(rows, r"$\pm$")
    words = heads.index("seeds") + 1
    text = [f"% {command}", rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(heads) - words)}}}"]
    text += [r"\toprule", " & ".join(map(escaped, heads)) + r" \\", r"\midrule"]
    before = None
    for line in lines:
        setting = line[: heads.index("method")]
        if before is not None and setting != before:
            text.append(r"\midrule")
        before = setting
        text.append(" & ".join(map(escaped, line)) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """As LaTeX wants it."""
    return text.replace("%", r"\%").replace("_", r"\_")
