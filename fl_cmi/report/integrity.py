"""Checksums of what a run has left in its folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_cmi.checkpoint.store import seal
from fl_cmi.files import sha256_of
from fl_cmi.report.summary import write_json

__all__ = ["NAME", "read_integrity", "results", "write_integrity"]

NAME = "integrity.json"

GROWING = (".log", ".txt")
"""Ends of the names of files that others write to after the run: they are not checked."""


def write_integrity(run_dir: Path) -> None:
    """Write the checksums, as the last of a run's files: a folder that has them is complete."""
    files = {
        str(path.relative_to(run_dir)): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in results(run_dir)
    }
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    write_json(run_dir / NAME, {"files": files, "config": seal(summary["config"])})


def results(run_dir: Path) -> Iterator[Path]:
    """The files that a run answers for."""
    for path in sorted(run_dir.iterdir()):
        own = path.name == NAME or path.name.startswith(".") or path.name.endswith(GROWING)
        if path.is_file() and not own:
            yield path


def read_integrity(run_dir: Path) -> dict[str, Any]:
    """What a run has written about its files.

    Raises:
        ValueError: If it is not there or says something else.
    """
    try:
        found = json.loads((run_dir / NAME).read_text(encoding="utf-8"))
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in found["files"].items()}
        return {"files": files, "config": found["config"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{NAME} is missing or broken: the run is not finished ({error})") from None
