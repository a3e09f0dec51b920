"""What the server's workers did, in words."""

from typing import Any

from fl_cmi.report.units import duration

__all__ = ["worker_rows"]


def worker_rows(told: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Rows of a name, a value and a remark; none of a run without workers."""
    if told is None:
        return []
    busy = "" if told["utilization"] is None else f", {100 * told['utilization']:.0f} % busy"
    replaced = f", {told['replaced']} replaced" if told["replaced"] else ""
    rows = [
        ("workers", str(told["number"]), f"{told['batches']:,} batches{busy}{replaced}"),
        ("CPU time of workers", duration(told["cpu_seconds"]), "added up"),
    ]
    if told["gpu_seconds"]:
        rows.append(("GPU time of workers", duration(told["gpu_seconds"]), "added up"))
    return rows
