"""The tables that end a run."""

from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fl_cmi.report.attacks import attack_lines, client_marks
from fl_cmi.report.compression import report_line
from fl_cmi.report.measured import measured_rows
from fl_cmi.report.units import byte_size, duration, percent
from fl_cmi.report.workers import worker_rows

__all__ = ["print_distillation", "print_summary"]

NAME_WIDTH, VALUE_WIDTH = 24, 13


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print what `summary.json` says: clients, bounds, student, gap, seconds, bytes, disclosures, failures.

    Args:
        summary: The run's summary; where it has no value (no ensemble, no average), the row says `-`.
        console: Where to; everything fits 80 columns.
    """
    partition = summary["partition"]
    console.print()
    console.print(
        Text(f"{summary['strategy']}, {_rounds(summary['rounds'])}, seed {summary['seed']}", style="bold")
    )
    console.print(Text(f"partition {partition['name']}, {partition['hash'][:12]}", style="dim"))
    cost = _cost(summary["seconds"], summary.get("workers"))
    for way, label in (("up", "bytes up from clients"), ("down", "bytes down to clients")):
        cost.add_row(label, byte_size(summary["bytes"][way]), f"{summary['bytes'][way]:,} bytes")
    _tables(console, _clients(summary["clients"]), _results(summary), _synthetic(summary), cost)
    if summary.get("compressed"):
        _lines(console, "Compressed", [report_line(summary["compressed"])])
    if summary.get("attacks"):
        _lines(console, "Attacks", attack_lines(summary["attacks"]))
    _lines(console, "What left each client", summary.get("disclosed", []))
    failures = summary.get("failures", [])
    lost = any(not row.get("retried") for row in failures)
    told = [
        f"round {row['round']}, client {row['client']}, {row['kind']}: {row['message']}" for row in failures
    ]
    _lines(console, "Failures", told, style="bold red" if lost else "bold")
    if served := summary.get("served"):
        _lines(
            console,
            "Clients' answers by machine",
            [f"{machine}: {number:,}" for machine, number in served.items()],
        )
    console.print()


def print_distillation(summary: dict[str, Any], console: Console) -> None:
    """Print what `summary.json` of an un-federated run says: teacher, student, images, cost.

    Args:
        summary: The run's summary.
        console: Where to; everything fits 80 columns.
    """
    teacher, student = summary["teacher"], summary["student"]
    console.print()
    console.print(Text(f"data-free distillation, seed {summary['seed']}", style="bold"))
    results = _table()
    results.add_column("Model", min_width=NAME_WIDTH)
    results.add_column("test accuracy", justify="right", min_width=VALUE_WIDTH)
    results.add_column("", style="dim", overflow="fold")
    results.add_row("teacher", percent(teacher["accuracy"]), f"{teacher['architecture']}, the bound")
    results.add_row(
        Text("student, at the end", style="bold"),
        Text(percent(student["accuracy_last"]), style="bold"),
        f"{student['architecture']}, the result",
    )
    results.add_row(
        f"student, best look ({student['epoch_best']})",
        percent(student["accuracy_best"]),
        "chosen on test data: not a result",
    )
    results.add_row("agreement", percent(summary["agreement"]), "same class as the teacher")
    results.add_row("gap", percent(summary["gap"]).replace("%", " "), "points: teacher - student")
    cost = _cost(summary["seconds"], summary.get("workers"))
    cost.add_row("images synthesized", f"{summary['images']:,}", "")
    cost.add_row("teacher passes", f"{summary['teacher_passes']:,}", "batches")
    _tables(console, results, _synthetic(summary), cost)
    console.print()


def _tables(console: Console, *tables: Table | None) -> None:
    for table in tables:
        if table is not None:
            console.print()
            console.print(table)


def _synthetic(summary: dict[str, Any]) -> Table | None:
    """What the synthetic images are worth; None of a run without any."""
    rows = measured_rows(summary.get("synthetic"))
    if not rows:
        return None
    table = _table()
    table.add_column("Synthetic images", min_width=NAME_WIDTH)
    table.add_column("", justify="right", min_width=VALUE_WIDTH)
    table.add_column("", style="dim", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _clients(clients: list[dict[str, Any]]) -> Table:
    table = _table()
    table.add_column("Client", justify="right", min_width=6)
    table.add_column("test accuracy", justify="right")
    table.add_column("examples", justify="right")
    marks = client_marks(clients)
    for mark in marks:
        table.add_column(mark, justify="right")
    table.add_column("architecture", overflow="fold")
    for number, row in enumerate(clients):
        cells = (
            str(row["client"]),
            percent(row["accuracy"]),
            f"{row['num_examples']:,}",
            *(mark[number] for mark in marks.values()),
            str(row["architecture"]),
        )
        table.add_row(*map(Text, cells))
    return table


def _results(summary: dict[str, Any]) -> Table:
    student = summary["student"]
    average = summary.get("average", {}).get("accuracy")
    mixed = len({row["architecture"] for row in summary["clients"]}) > 1
    table = _table()
    table.add_column("Model", min_width=NAME_WIDTH)
    table.add_column("test accuracy", justify="right", min_width=VALUE_WIDTH)
    table.add_column("", style="dim", overflow="fold")
    table.add_row(
        "parameter average",
        percent(average),
        "architectures differ" if average is None and mixed else "of the clients",
    )
    table.add_row("ensemble", percent(summary.get("ensemble", {}).get("accuracy")), "the student's bound")
    table.add_row(
        Text("student, last round", style="bold"),
        Text(percent(student["accuracy_last"]), style="bold"),
        "the result",
    )
    if summary.get("own_tests") is not None:
        table.add_row("own tests", percent(summary["own_tests"]), "each client on its own ones")
    if student.get("accuracy_best") is not None:
        table.add_row(
            f"student, best round ({student['round_best']})",
            percent(student["accuracy_best"]),
            "chosen on test data: not a result",
        )
    gap = summary.get("gap")
    # Two spaces stand where the other rows have their percent sign.
    table.add_row("gap", percent(gap).replace("%", " "), "points: ensemble - student")
    return table


def _cost(phases: dict[str, float], workers: dict[str, Any] | None) -> Table:
    table = _table()
    table.add_column("Cost", min_width=NAME_WIDTH)
    table.add_column("", justify="right", min_width=VALUE_WIDTH)
    table.add_column("", style="dim", justify="right")
    seconds = dict(phases)
    total = seconds.pop("total", None)
    for phase, value in seconds.items():
        table.add_row(
            Text(phase), duration(value), f"{100 * value / total:.0f} % of the time" if total else ""
        )
    if total is not None:
        table.add_row("total", duration(total), f"{total:,.1f} seconds", style="bold")
    for row in worker_rows(workers):
        table.add_row(*map(Text, row))
    return table


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number} rounds"


def _lines(console: Console, title: str, lines: list[str], style: str = "bold") -> None:
    console.print()
    console.print(Text(title, style=style))
    for line in lines or ["none"]:
        # `Text`, not markup: a reason such as "[Errno 2]" must come out as it is.
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
