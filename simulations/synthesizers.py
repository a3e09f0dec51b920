"""All synthesizers on one Fashion-MNIST teacher, for equal time, in one table.

python -m simulations.synthesizers                                  # every method, seed 0, 600 CPU seconds each
python -m simulations.synthesizers --methods cmi dfq --seeds 0 1 2
python -m simulations.synthesizers --dry-run                        # only the commands

Every method and seed is a run of `python -m fl_cmi.distill` in a folder of its own under `--out`. What is done is
skipped when the command is given again, and stays in the table when others are asked for; what failed, or had another
configuration, is replaced. A run that fails is named in the table and stops no other. Overrides that follow apply to
all runs, the teacher's included: `data=digits local.epochs=5`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from simulations.methods import METHODS
from simulations.sweep import Cell, Launch, Result, carry_out, launch, sweep
from simulations.tables import write_tables

__all__ = ["main"]

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


def plan(options: argparse.Namespace) -> tuple[Cell, list[Cell]]:
    """The teacher's run, and one for every method and seed."""
    shared = [*SETTING, *options.overrides, f"threads={options.threads}"]
    folder = options.out.resolve()
    cell = partial(Cell, program="distill")
    teacher = cell({"method": "teacher"}, (*shared, *UNTAUGHT), folder / "teacher")
    given = f"teacher.checkpoint={folder / 'teacher' / 'teacher.safetensors'}"
    return teacher, [
        cell(
            {"method": method, "seed": seed},
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


def done_before(options: argparse.Namespace, cells: Sequence[Cell]) -> list[tuple[Cell, Result]]:
    """Runs of earlier commands that differ from these cells in method and seed alone."""
    folder = options.out.resolve() / f"{options.budget:g}s"
    seeds = {int(path.name.removeprefix("seed-")) for path in folder.glob("*/seed-[0-9]*")}
    every = argparse.Namespace(**{**vars(options), "methods": list(METHODS), "seeds": sorted(seeds)})
    asked = {cell.folder for cell in cells}
    others = [cell for cell in plan(every)[1] if cell.folder not in asked and cell.folder.is_dir()]
    return [(cell, found) for cell in others if (found := cell.result()) is not None]


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

    before = done_before(options, cells)

    def tell(results: list[tuple[Cell, Result]]) -> str:
        every = [*before, *results]
        named = [(str(cell.where["method"]), int(cell.where["seed"]), result) for cell, result in every]
        return write_tables(options.out, trained, named, options.budget)

    # After every run, so that a look at the tables never has to wait for the last one.
    results = sweep(cells, run, tell, lambda cell: limit)
    print(f"\n{tell(results)}")
    return 1 if any(isinstance(result, str) for _, result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
