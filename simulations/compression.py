"""The Knowledge Within's question on Fashion-MNIST: which images calibrate and fine-tune a model at few bits?

python -m simulations.compression                                   # everything, seeds 0, 1, 2
python -m simulations.compression --models convnet --trainings federated --seeds 0 --bits W4A8 --jobs 2
python -m simulations.compression --dry-run                         # only the commands

A cell is a model (architecture, training, seed), images and bits; each is a run of `python -m fl_cmi.compress` with
fine-tuning, which reports calibration alone as well. First the models are trained, then images are inverted from them,
then they are compressed. What is done is skipped when the command is given again, and what comes from a run is done
again with it; what failed is named in the tables and stops no other. Overrides after `--` apply to every compression:
`-- steps=2000 distiller.batch_size=512`. Rows of `--known` are refused where their steps or number of images are not
those of this command; other overrides they do not tell, so that these are refused beside it.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fl_cmi.compress import adopted
from simulations.compression_tables import KEYS, write_tables
from simulations.known import Row, add_option, check_overrides, check_rows, covered, given
from simulations.methods import SMALL_GENERATOR
from simulations.sweep import BusyError, Cell, Launch, Result, Value, cores, launcher, sweep

__all__ = ["IMAGES", "Plan", "main", "options_of", "plan"]

MODELS = {
    "convnet": ["model=convnet"],
    "resnet8": ["model=resnet8", "~model.blocks"],
    "wrn_16_1": ["model=wrn_16_1", "~model.blocks"],
}
"""`model.blocks` is the convnet's, set by the preset."""

TRAININGS = {
    "federated": [
        "experiment=fmnist_oneshot",
        "method=fed_cmi_fashion",
        "partition.alpha=0.5",
        "local.epochs=5",
        "budget_s=300",
        "budget_clock=cpu",
        "save_pool=true",
    ],
    "central": [
        "experiment=fmnist_oneshot",
        "local.epochs=5",
        "num_clients=1",
        "partition=iid",
        "strategy=fedavg",
    ],
}
"""Shorter than the preset: 18 models are trained, each in one process."""

STEPS = 300

FINE_TUNING = [f"steps={STEPS}", "distiller.batch_size=128"]
"""The paper takes 16,000 steps of 512."""

BITS = {
    "W8A8": ["compression.w=8", "compression.a=8", "compression.ends=8"],
    "W4A8": ["compression.w=4", "compression.a=8", "compression.ends=8"],
    "W4A4": ["compression.w=4", "compression.a=4", "compression.ends=4"],
    "W2A4": ["compression.w=2", "compression.a=4", "compression.ends=4"],
    "int8": ["compression=int8"],
}
"""int8 is executed, and only calibrated; the others are simulated."""

NUMBER = 512
"""Images in a set, 50 a class as in the paper's calibration; but for a run's own pool, which is as it is."""

ADAM = [
    "synthesizer.inversion.steps=200",
    "synthesizer.inversion.source.optimizer._target_=torch.optim.Adam",
    "~synthesizer.inversion.source.optimizer.momentum",
    "synthesizer.inversion.source.schedule=null",
    "synthesizer.inversion.source.grid_every=20",
]
"""As in `kw_bns_adam`: with the paper's SGD images hardly leave their start."""

INVERTED = {
    "BNS": ["synthesizer=kw_bns_adam"],
    "I": ["synthesizer=kw_inception", *ADAM],
    "BNS+I": ["synthesizer=kw_bns_inception", *ADAM],
    "CMI": ["synthesizer=cmi", *SMALL_GENERATOR],
}
"""Sets that are synthesized once for each model and then calibrate at all bits."""

FEW = 10

GIVEN = {
    "noise": ["synthesizer=noise", f"calibration.images={NUMBER}"],
    "pool": ["calibration=pool"],
    "one a class": ["calibration=real", f"calibration.images={FEW}"],
    "real": ["calibration=real", f"calibration.images={NUMBER}"],
}
"""Sets that cost nothing. `pool` taught the federated model; the last two are controls with real images."""

IMAGES = [*GIVEN, *INVERTED]


@dataclass(frozen=True)
class Plan:
    """What has to be run, in this order. What a run's result goes into lies in its folder, and is removed with it.

    Args:
        models: Trains them.
        images: Inverts them.
        cells: The numbers of the tables.
    """

    models: list[Cell]
    images: list[Cell]
    cells: list[Cell]


def plan(options: argparse.Namespace) -> Plan:
    """All cells that are not known, those of a model together, and what they need."""
    found = Plan([], [], [])
    for seed in options.seeds:
        for training in options.trainings:
            for model in options.models:
                where = {"training": training, "model": model, "seed": seed}
                folder = options.out.resolve() / training / model / f"seed-{seed}"
                trained = (*TRAININGS[training], *MODELS[model], f"seed={seed}", "backend=local")
                found.models.append(Cell(where, (*trained, f"server_threads={options.threads}"), folder))
                here = [f"run_dir={folder}", f"seed={seed}", f"threads={options.threads}"]
                shared = [*here, *FINE_TUNING]
                for images in options.images:
                    if training == "central" and images == "pool":
                        continue  # no pool has taught it
                    inside, chosen = folder / images.replace(" ", "_"), GIVEN.get(images)
                    if chosen is None:
                        make = (*INVERTED[images], f"calibration.images={NUMBER}", "save_pool=true")
                        named = {**where, "images": images}
                        own = (*shared, *make, *options.overrides)
                        found.images.append(Cell(named, own, inside, "compress", adopted))
                        chosen = ["calibration=pool", f"calibration.path={inside / 'pool.safetensors'}"]
                    for bits in options.bits:
                        named = {**where, "images": images, "bits": bits}
                        kd = [] if bits == "int8" else ["kd=true"]
                        own = (*shared, *chosen, *BITS[bits], *kd, *options.overrides)
                        found.cells.append(Cell(named, own, inside / bits, "compress", adopted))
    found.cells[:] = [cell for cell in found.cells if not covered(cell.where, options.known.rows)]
    needed = {folder for cell in found.cells for folder in cell.folder.parents}
    found.images[:] = [cell for cell in found.images if cell.folder in needed]
    found.models[:] = [cell for cell in found.models if cell.folder in needed]
    return found


def told(row: Row, steps: Value) -> dict[str, Value]:
    """What a row says if it is run for so many steps, as far as that is known before."""
    number = {"pool": row["images_number"], "one a class": FEW}.get(row["images"], NUMBER)
    return {"kd_steps": "" if row["bits"] == "int8" else steps, "images_number": number}


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.compression", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all compressions, after --")
    for name, choices in {"models": MODELS, "trainings": TRAININGS, "bits": BITS, "images": IMAGES}.items():
        parser.add_argument(
            f"--{name}", nargs="+", choices=list(choices), default=list(choices), metavar="NAME"
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_option(parser, KEYS, ["kd_steps", "images_number"])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, help="of a run; so many that all cores are at work")
    parser.add_argument("--out", type=Path, default=Path("outputs/compression"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    options = parser.parse_args(arguments)
    check_overrides(parser, options, told=("steps",))
    steps = given(options.overrides, "steps", STEPS)
    check_rows(parser, options.known.rows, partial(told, steps=steps))
    options.threads = options.threads or max(1, cores() // max(options.jobs, 1))
    if options.jobs < 1 or options.jobs > 1 and options.jobs * options.threads > cores():
        parser.error(f"--jobs: {options.jobs} of {options.threads} threads on {cores()} cores")
    return options


def main(arguments: Sequence[str] | None = None, run: Launch | None = None) -> int:
    """Run what is missing and write the tables; 1 if a run failed, 2 if another is at work, else 0."""
    options = options_of(arguments)
    todo = plan(options)
    if options.dry_run:
        for cell in (*todo.models, *todo.images, *todo.cells):
            print(shlex.join(cell.command))
        return 0
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "simulations.compression", *words])
    failed: dict[Path, str] = {}

    def carry_out(cells: list[Cell], start: Launch, tables: bool = False) -> list[tuple[Cell, Result]]:
        """Those whose model and images are there; the others fail as these did."""
        lost = [(cell, reason) for cell in cells if (reason := why_not(cell, failed)) is not None]
        left = [cell for cell in cells if why_not(cell, failed) is None]

        # After every cell, so that a look at the tables never has to wait for the last one.
        def tell(done: list[tuple[Cell, Result]]) -> None:
            if tables:
                write_tables(options.out, command, [*done, *lost], options.known.rows)

        done = [*sweep(left, start, tell, jobs=options.jobs), *lost]
        failed.update({cell.folder: result for cell, result in done if isinstance(result, str)})
        return done

    try:
        with launcher(options.out, options.threads) if run is None else nullcontext(run) as start:
            carry_out(todo.models, start)
            carry_out(todo.images, start)
            results = carry_out(todo.cells, start, tables=True)
    except BusyError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{write_tables(options.out, command, results, options.known.rows)}")
    return 1 if failed else 0


def why_not(cell: Cell, failed: dict[Path, str]) -> str | None:
    """What became of the run whose result it needs, if that failed."""
    return next((failed[folder] for folder in cell.folder.parents if folder in failed), None)


if __name__ == "__main__":
    sys.exit(main())
