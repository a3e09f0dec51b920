"""What a compression says in the end."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_cmi.report.units import byte_size, percent

__all__ = ["print_compression", "report_line"]


def report_line(summary: dict[str, Any]) -> str:
    """A line such as `W4A4 simulated: 83.10 % -> 82.95 %, 97.2 kB -> 13.4 kB (7.3 x)`, or why there is none."""
    if "failure" in summary:
        return f"failed: {summary['failure']}"
    bits, model, student = summary["compression"], summary["model"], summary["student"]
    how = "int8 kernels" if bits["executed"] else "simulated"
    if bits["executed"] and bits["int8_kernels"] < bits["layers"]:
        how += f" in {bits['int8_kernels']} of {bits['layers']} layers"
    if (ends := bits.get("ends")) is not None and {ends} != {bits["w"], bits["a"]}:
        how += f", ends at {ends} bits"
    how += ", fine-tuned" if bits["kd"] else ""
    return (
        f"W{bits['w']}A{bits['a']} {how}: {percent(model['accuracy'])} -> {percent(student['accuracy_last'])},"
        f" {byte_size(model['bytes'])} -> {byte_size(student['bytes'])} ({summary['ratio']:.1f} x)"
    )


def print_compression(summary: dict[str, Any], console: Console) -> None:
    """Print the model before and after, and where the images came from.

    Args:
        summary: As `python -m fl_cmi.compress` wrote it.
        console: Where to.
    """
    bits, model, student = summary["compression"], summary["model"], summary["student"]
    images = summary["calibration"]
    where = (images["synthesizer"] or images["source"]) + (
        f" ({', '.join(images['terms'])})" if images["terms"] else ""
    )
    control = "" if images["data_free"] else ": real data, a control"
    console.print()
    console.print(Text(report_line(summary), style="bold"))
    console.print(Text(f"calibrated on {images['images']:,} images, {where}{control}", style="dim"))
    for warning in summary.get("warnings", ()):
        console.print(Text(f"warning: {warning}", style="bold red"))
    if summary.get("recalibrated"):
        before = percent(summary["recalibrated"]["accuracy_before"])
        console.print(Text(f"batch norm estimated anew on them; before, the model had {before}", style="dim"))
    console.print()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "float 32", "compressed"):
        table.add_column(title, justify="left" if not title else "right")
    table.add_row("test accuracy", percent(model["accuracy"]), percent(student["accuracy_last"]))
    if bits["kd"]:
        table.add_row("calibration only", "", percent(student["accuracy_calibrated"]))
    table.add_row("file", byte_size(model["bytes"]), byte_size(student["bytes"]))
    for size in model["latency_ms"] or ():
        note = "" if bits["executed"] else " (simulation)"
        table.add_row(
            f"CPU, batch of {size}",
            f"{model['latency_ms'][size]:.2f} ms",
            f"{student['latency_ms'][size]:.2f} ms{note}",
        )
    console.print(table)
    console.print()
