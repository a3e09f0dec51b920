"""All synthesizers on one Fashion-MNIST teacher, for equal time, in one table.

python -m simulations.synthesizers                                  # every method, seed 0, 600 CPU seconds each
python -m simulations.synthesizers --methods cmi dfq --seeds 0 1 2
python -m simulations.synthesizers --dry-run                        # only the commands

Every method and seed is a run of `python -m fl_cmi.distill` in a folder of its own under `--out`. What is done is
skipped when the command is given again; what failed, or had another configuration, is replaced. A run that fails is
named in the table and stops no other. Overrides that follow apply to all runs, the teacher's included:
`data=digits local.epochs=5`.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_cmi.compose import compose_config
from fl_cmi.report.summary import json_safe
from fl_cmi.report.units import percent
from simulations.methods import METHODS
from simulations.tables import write_tables

__all__ = ["Cell", "main"]

SETTING = [
    "data=fashion_mnist",
    "model=convnet",
    "model.width=16",
    "teacher.model.width=32",
    "model.blocks=4",
    "teacher.model.blocks=4",
    "local.epochs=5",
]
"""Data, models and the teacher's training, as in `experiment=distill_fashion_mnist`."""

UNTAUGHT = ["synthesizer=per_client", "synthesizer.batch_size=2", "synthesizer.inversion.steps=1"]
UNTAUGHT += ["schedule=grow_pool", "schedule.epochs=1", "schedule.batches=1", "schedule.steps=0"]
"""For the run that only trains the teacher."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        method: Name of its row.
        seed: Of the student and the images; the teacher is the same for all.
        overrides: Of `python -m fl_cmi.distill`.
        folder: Where it goes.
    """

    method: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", "fl_cmi.distill", *self.overrides, f"hydra.run.dir={self.folder}"]

    def result(self) -> dict[str, Any] | None:
        """The summary of a finished run of the very same configuration; None if there is none."""
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        wanted = json.loads(json.dumps(json_safe(compose_config(self.overrides, "distill"))))
        return dict(summary) if summary.get("config") == wanted else None


Launch = Callable[[Cell, float | None], str | None]
"""Runs a cell, for at most so many seconds if given; why it failed, or None."""


def launch(cell: Cell, limit: float | None) -> str | None:
    """Run a cell in a process of its own, its output into `output.txt`."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / "output.txt").open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                cell.command, stdout=output, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
    if done.returncode == 0:
        return None
    lines = (cell.folder / "output.txt").read_text(encoding="utf-8").split("\n")
    said = [line for line in lines if line.strip()] or [f"exit code {done.returncode}"]
    return ([line for line in said if line.startswith("fl_cmi: ")] or said)[-1]


def carry_out(cell: Cell, limit: float | None, run: Launch) -> dict[str, Any] | str:
    """The cell's summary, from before or from a run now; or why there is none."""
    try:
        found = cell.result()
        if found is None:
            # What a run that failed had logged would mix with the new one's.
            shutil.rmtree(cell.folder, ignore_errors=True)
            failure = run(cell, limit)
            if failure is not None:
                return failure
            found = cell.result()
    except Exception as error:  # whatever it is, the other cells go on
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "wrote no summary of this configuration" if found is None else found


def plan(options: argparse.Namespace) -> tuple[Cell, list[Cell]]:
    """The teacher's run, and one for every method and seed."""
    shared = [*SETTING, *options.overrides, f"threads={options.threads}"]
    folder = options.out.resolve()
    teacher = Cell("teacher", 0, (*shared, *UNTAUGHT), folder / "teacher")
    given = f"teacher.checkpoint={folder / 'teacher' / 'teacher.safetensors'}"
    return teacher, [
        Cell(
            method,
            seed,
            (
                *shared,
                given,
                f"budget_s={options.budget:g}",
                "budget_clock=cpu",
                f"seed={seed}",
                *METHODS[method],
            ),
            folder / f"{options.budget:g}s" / method / f"seed-{seed}",
        )
        for method in options.methods
        for seed in options.seeds
    ]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.synthesizers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all runs")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--budget",
        type=float,
        default=600.0,
        help="CPU seconds of synthesis and distillation (600: 5 minutes of two cores)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of a run; runs may go side by side")
    parser.add_argument("--out", type=Path, default=Path("outputs/synthesizers"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, run: Launch = launch) -> int:
    """Run what is missing and write the tables; 1 if a run failed, else 0."""
    options = options_of(arguments)
    teacher, cells = plan(options)
    if options.dry_run:
        for cell in (teacher, *cells):
            print(shlex.join(cell.command))
        return 0
    # A batch at hand is finished when time is up, and the slowest may take several budgets.
    limit = 600 + 10 * options.budget
    trained = carry_out(teacher, None, run)
    if isinstance(trained, str):
        print(f"teacher: {trained}", file=sys.stderr)
        return 1
    results: list[tuple[str, int, dict[str, Any] | str]] = []
    table = ""
    for number, cell in enumerate(cells, start=1):
        result = carry_out(cell, limit, run)
        results.append((cell.method, cell.seed, result))
        # After every run, so that a look at the tables never has to wait for the last one.
        table = write_tables(options.out, trained, results, options.budget)
        said = result if isinstance(result, str) else f"student {percent(result['student']['accuracy_last'])}"
        print(f"{number}/{len(cells)}  {cell.method}, seed {cell.seed}: {said}", flush=True)
    print(f"\n{table}")
    return 1 if any(isinstance(result, str) for _, _, result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
