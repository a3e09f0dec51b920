"""The Knowledge Within's question on Fashion-MNIST: which images calibrate and fine-tune a model at few bits?

python -m simulations.compression                                   # everything, seeds 0, 1, 2
python -m simulations.compression --models convnet --trainings federated --seeds 0 --bits W4A8
python -m simulations.compression --dry-run                         # only the commands

A cell is a model (architecture, training, seed), images and bits; each is a run of `python -m fl_cmi.compress` with
fine-tuning, which reports calibration alone as well. Before it come the model's own run and, where images are inverted,
the run that makes them. What is done is skipped when the command is given again; what failed is tried again, is named
in the table and stops no other. Overrides that follow apply to every compression: `steps=500`.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from simulations import sweep

__all__ = ["Cell", "Run", "main", "plan", "table_of"]

MODELS = {
    "convnet": ["model=convnet"],
    "resnet8": ["model=resnet8", "~model.blocks"],
    "wrn_16_1": ["model=wrn_16_1", "~model.blocks"],
}
"""`model.blocks` is the convnet's, set by the preset."""

TRAININGS = {
    "federated": ["experiment=fmnist_oneshot", "save_pool=true"],
    "central": ["experiment=fmnist_oneshot", "num_clients=1", "partition=iid", "strategy=fedavg"],
}

BITS = {
    "W8A8": ["compression.w=8", "compression.a=8", "compression.ends=8"],
    "W4A8": ["compression.w=4", "compression.a=8", "compression.ends=8"],
    "W4A4": ["compression.w=4", "compression.a=4", "compression.ends=4"],
    "W2A4": ["compression.w=2", "compression.a=4", "compression.ends=4"],
    "int8": ["compression=int8"],
}
"""int8 is executed, and only calibrated; the others are simulated."""

NUMBER = 4096
"""Images in a set, but for a run's own pool."""

INVERTED = {
    "BNS": ["synthesizer=kw_bns"],
    "I": ["synthesizer=kw_inception"],
    "BNS+I": ["synthesizer=kw_bns_inception"],
    "CMI": ["synthesizer=cmi"],
}
"""Sets that are synthesized once for each model and then calibrate at all bits."""

GIVEN = {
    "noise": ["synthesizer=noise", f"calibration.images={NUMBER}"],
    "pool": ["calibration=pool"],
    "one a class": ["calibration=real", "calibration.images=10"],
    "real": ["calibration=real", f"calibration.images={NUMBER}"],
}
"""Sets that cost nothing. `pool` taught the federated model; the last two are controls with real images."""

IMAGES = [*GIVEN, *INVERTED]


@dataclass(frozen=True)
class Run:
    """One command.

    Args:
        program: `simulate` or `compress`.
        overrides: Its own.
        folder: Where it goes.
    """

    program: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return sweep.command_of(self.program, self.overrides, self.folder)

    def result(self) -> dict[str, Any] | None:
        """The summary of a finished run of the very same command; None if there is none."""
        try:
            if json.loads((self.folder / "overrides.json").read_text(encoding="utf-8")) != list(
                self.overrides
            ):
                return None
            return dict(json.loads((self.folder / "summary.json").read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError):
            return None


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Args:
        training: How the model was trained.
        model: Its architecture.
        images: What it is calibrated and fine-tuned on.
        bits: At which it ends.
        seed: Of everything.
        runs: What has to be run, the last of which is the cell's own.
    """

    training: str
    model: str
    images: str
    bits: str
    seed: int
    runs: tuple[Run, ...]


Launch = Callable[[Run], str | None]
"""Runs a command; why it failed, or None."""


def launch(run: Run) -> str | None:
    """Run a command in a process of its own, for as long as it takes."""
    return sweep.launch(run, None)


def carry_out(cell: Cell, start: Launch, failed: dict[Path, str]) -> dict[str, Any] | str:
    """The cell's summary, from before or from runs now; or why there is none.

    Args:
        cell: With its runs.
        start: Runs one.
        failed: Runs that failed since the program began, which other cells need not try again; added to.
    """
    summary: dict[str, Any] | None = None
    for run in cell.runs:
        summary = run.result()
        if summary is None and run.folder not in failed:
            shutil.rmtree(run.folder, ignore_errors=True)
            failure = start(run)
            if failure is None:
                (run.folder / "overrides.json").write_text(json.dumps(run.overrides), encoding="utf-8")
                summary = run.result()
            if summary is None:
                failed[run.folder] = failure or "wrote no summary"
        if summary is None:
            return failed[run.folder]
    assert summary is not None
    return summary


def plan(options: argparse.Namespace) -> list[Cell]:
    """All cells, those of a model together."""
    cells = []
    for seed in options.seeds:
        for training in options.trainings:
            for model in options.models:
                folder = options.out.resolve() / training / model / f"seed-{seed}"
                trained = (
                    *TRAININGS[training],
                    *MODELS[model],
                    f"seed={seed}",
                    f"server_threads={options.threads}",
                )
                base = Run("simulate", trained, folder / "model")
                shared = (
                    f"run_dir={base.folder}",
                    f"seed={seed}",
                    f"threads={options.threads}",
                    *options.overrides,
                )
                for images in options.images:
                    if training == "central" and images == "pool":
                        continue  # no pool has taught it
                    before, chosen = images_of(images, shared, folder)
                    for bits in options.bits:
                        kd = () if bits == "int8" else ("kd=true",)
                        own = (*shared, *chosen, *BITS[bits], *kd)
                        last = Run("compress", own, folder / images.replace(" ", "_") / bits)
                        cells.append(Cell(training, model, images, bits, seed, (base, *before, last)))
    return cells


def images_of(images: str, shared: Sequence[str], folder: Path) -> tuple[list[Run], list[str]]:
    """The run that makes a set of images, if it takes one, and the overrides that use it."""
    if images in GIVEN:
        return [], GIVEN[images]
    make = (*shared, *INVERTED[images], f"calibration.images={NUMBER}", "save_pool=true")
    run = Run("compress", make, folder / images / "images")
    return [run], ["calibration=pool", f"calibration.path={run.folder / 'pool.safetensors'}"]


def table_of(results: Sequence[tuple[Cell, dict[str, Any] | str]]) -> str:
    """Markdown: a row for each model and set of images, a column for each number of bits, test accuracy in percent.

    `a / b` is calibration only / fine-tuned, `mean +- deviation` over seeds; what failed says so.
    """
    columns = list(dict.fromkeys(cell.bits for cell, _ in results))
    rows: dict[tuple[str, str, str], dict[str, list[dict[str, Any] | str]]] = {}
    for cell, result in results:
        row = rows.setdefault((cell.training, cell.model, cell.images), {})
        row.setdefault(cell.bits, []).append(result)
    lines = [
        "| training | model | images | fp32 | " + " | ".join(columns) + " |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for (training, model, images), row in rows.items():
        full = [r["model"]["accuracy"] for found in row.values() for r in found if not isinstance(r, str)]
        cells = [entry(row.get(bits, [])) for bits in columns]
        lines.append(
            f"| {training} | {model} | {images} | {spread(sorted(set(full)))} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def entry(results: Sequence[dict[str, Any] | str]) -> str:
    """One field of the table."""
    done = [r for r in results if not isinstance(r, str)]
    if not done:
        return "failed" if results else "-"
    said = spread([r["student"]["accuracy_calibrated"] for r in done])
    if all(r["compression"]["kd"] for r in done):
        said += " / " + spread([r["student"]["accuracy_last"] for r in done])
    return said + (f" ({len(results) - len(done)} failed)" if len(done) < len(results) else "")


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    if not shares:
        return "-"
    deviation = f" +- {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):.1f}{deviation}"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.compression", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all compressions")
    for name, choices in {"models": MODELS, "trainings": TRAININGS, "bits": BITS, "images": IMAGES}.items():
        parser.add_argument(
            f"--{name}", nargs="+", choices=list(choices), default=list(choices), metavar="NAME"
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/compression"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, start: Launch = launch) -> int:
    """Run what is missing and write the table; 1 if a run failed, else 0."""
    options = options_of(arguments)
    cells = plan(options)
    if options.dry_run:
        for run in dict.fromkeys(run for cell in cells for run in cell.runs):
            print(shlex.join(run.command))
        return 0
    results: list[tuple[Cell, dict[str, Any] | str]] = []
    failed: dict[Path, str] = {}
    for number, cell in enumerate(cells, start=1):
        result = carry_out(cell, start, failed)
        results.append((cell, result))
        # After every cell, so that a look at the table never has to wait for the last one.
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(table_of(results), encoding="utf-8")
        said = result if isinstance(result, str) else f"{100 * result['student']['accuracy_last']:.2f} %"
        where = f"{cell.training} {cell.model} {cell.images} {cell.bits} seed {cell.seed}"
        print(f"{number}/{len(cells)}  {where}: {said}", flush=True)
    print(f"\n{table_of(results)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
