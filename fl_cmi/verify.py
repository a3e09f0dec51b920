"""`python -m fl_cmi.verify RUN_DIR`: whether a folder of results is what its run wrote.

Recomputes the checksums of all files, of the configuration, the partition and the student, and compares the numbers of
`metrics.jsonl` with those of `summary.json`. One line per finding; exit code 0 if there is none, 1 if there is, 2 for
anything that is no folder. Who changes a folder on purpose can change the checksums as well: this finds damage and
mix-ups, not forgery. And it makes the partition by whatever code the configuration names, so look at foreign folders
with care.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fl_cmi.checkpoint.store import seal
from fl_cmi.compose import Config, dataset, make_partition
from fl_cmi.files import sha256_of
from fl_cmi.report.integrity import read_integrity, results
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.summary import digest
from fl_cmi.types import ConfigError

__all__ = ["findings", "main"]


def findings(run_dir: Path) -> Iterator[str]:
    """What is not as the run wrote it, a line each."""
    try:
        integrity = read_integrity(run_dir)
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        config = dict(summary["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield " ".join(str(error).split()) or "summary.json is broken"
        return
    yield from of_files(run_dir, integrity["files"])
    if seal(config) != integrity["config"]:
        yield "config: summary.json tells another configuration than the run had"
    if "digest" in summary:  # a compressed model has neither a student nor rows
        yield from of_student(run_dir, summary)
        yield from comparable("metrics.jsonl", of_metrics(run_dir, summary))
    if "partition" in config:
        yield from comparable("partition", of_partition(config, summary))


def comparable(name: str, found: Iterator[str]) -> Iterator[str]:
    """What is found, and that values are damaged so that they cannot be compared at all."""
    try:
        yield from found
    except (
        Exception
    ) as error:  # numbers that are texts, keys that are gone, nodes that nothing can be made of
        yield f"{name}: cannot be compared ({type(error).__name__}: {' '.join(str(error).split())})"


def of_files(run_dir: Path, files: dict[str, tuple[str, int]]) -> Iterator[str]:
    """Files that are missing, changed or new."""
    for name, (sha256, size) in files.items():
        path = run_dir / name
        if path.parent != run_dir or not path.is_file():
            yield f"{name}: missing"
        elif path.stat().st_size != size:
            yield f"{name}: {path.stat().st_size} bytes, the run wrote {size}"
        elif sha256_of(path) != sha256:
            yield f"{name}: changed"
    for path in results(run_dir):
        if path.name not in files:
            yield f"{path.name}: not of this run"


def of_student(run_dir: Path, summary: dict[str, Any]) -> Iterator[str]:
    """Whether the saved student is the one that the summary tells of."""
    try:
        found = digest(load_file(run_dir / "student.safetensors"))
    except (OSError, SafetensorError) as error:
        yield f"student.safetensors: cannot be read ({' '.join(str(error).split())})"
        return
    if found != summary.get("digest"):
        yield f"student.safetensors: digest {found[:12]}, summary.json tells {str(summary.get('digest'))[:12]}"


def of_metrics(run_dir: Path, summary: dict[str, Any]) -> Iterator[str]:
    """Whether the rows are whole, and the last ones are what the summary tells."""
    try:
        rows = MetricsLog.read(run_dir / "metrics.jsonl")
    except (OSError, ValueError) as error:
        yield f"metrics.jsonl: {' '.join(str(error).split())}"
        return
    last = [row for row in rows if row.get("event") == "summary"]
    if len(last) != 1:
        yield f"metrics.jsonl: {len(last)} rows of the summary, not 1"
    for key, value in last[-1].items() if last else ():
        if key != "event" and summary.get(key) != value:
            yield f"metrics.jsonl: its {key} is not that of summary.json"
    if "rounds" in summary:
        numbers = [row["round"] for row in rows if row.get("event") == "round"]
        if numbers != list(range(1, summary["rounds"] + 1)):
            yield f"metrics.jsonl: rows of rounds {numbers}, not one for each of {summary['rounds']}"


def of_partition(config: Config, summary: dict[str, Any]) -> Iterator[str]:
    """Whether the configuration still gives the partition that the summary tells of."""
    try:
        found = make_partition(config, dataset(config)).manifest()
    except (ConfigError, OSError) as error:
        yield f"partition: cannot be made again ({error})"
        return
    there = summary.get("partition") or {}
    if found["hash"] != there.get("hash"):
        yield f"partition: hash {found['hash'][:12]}, summary.json tells {str(there.get('hash'))[:12]}"


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    if len(arguments) == 1 and not Path(arguments[0]).is_dir():
        print(f"fl_cmi: RUN_DIR={arguments[0]}: the folder of a finished run", file=sys.stderr)
        sys.exit(2)
    if len(arguments) != 1:
        print("fl_cmi: usage: python -m fl_cmi.verify RUN_DIR, the folder of a finished run", file=sys.stderr)
        sys.exit(2)
    found = list(findings(Path(arguments[0])))
    for line in found:
        print(line)
    if not found:
        print("ok: the folder is what its run wrote")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
