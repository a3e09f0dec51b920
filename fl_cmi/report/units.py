"""How numbers read in the table and in the HTML page: percent, points, seconds, bytes."""

__all__ = ["byte_size", "duration", "percent"]


def percent(fraction: float | int | None) -> str:
    """A fraction of 1 as percent, `0.8341` -> `83.41 %`; `-` for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def duration(seconds: float | int) -> str:
    """Seconds to a person: `0.04 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 0.95:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def byte_size(num_bytes: int) -> str:
    """Bytes in decimal units: `312 B`, `4.1 kB`, `12.3 MB`, `1.2 GB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
