"""All figures of speed in one table: ours beside what it is compared with, and whether the goal is reached.

python -m simulations.bench                               # all, about 20 minutes on two cores
python -m simulations.bench --quick                       # small sizes, under a minute, without Ray
python -m simulations.bench --only rounds memory --json speed.json

A ratio with a goal `>=` is how many times as fast ours is, or as large with `<=`; the median over pairs that are
measured in turn. With a GPU, inversion runs on it too.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fl_cmi.memory import keep_freed_memory
from simulations.bench import empty_round, inversion, local_training, memory, rounds, teachers, workers
from simulations.bench.figures import Figure, Scale
from simulations.bench.machine import machine

__all__ = ["FAMILIES", "main"]

FAMILIES: Mapping[str, Callable[[Scale], Iterator[Figure]]] = {
    "inversion": inversion.figures,
    "teachers": teachers.figures,
    "rounds": rounds.local_figures,
    "rounds_ray": rounds.ray_figures,
    "empty_round": empty_round.figures,
    "memory": memory.figures,
    "local_training": local_training.figures,
    "workers": workers.figures,
}
"""Figures by the name of what is measured."""

SLOW = {"empty_round", "rounds_ray", "workers"}
"""Left out of a quick look unless they are asked for: starting Ray takes much of the minute."""

HEADER = ("figure", "ours", "reference", "ratio", "goal", "pass")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = read(arguments)
    scale = Scale(options.quick, options.tiny, options.pairs, options.large)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(f"{machine()}\n\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    found = list[Figure]()
    for name in options.only or [name for name in FAMILIES if not (options.quick and name in SLOW)]:
        for figure in FAMILIES[name](scale):
            found.append(figure)
            print(line(figure), flush=True)
            if options.json is not None:  # what is there stays, should a later one fail
                rows = [figure.as_json() for figure in found]
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes and few pairs")
    size.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument("--pairs", type=int, help="timings of each; default: each figure's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="empty rounds of 100 clients too; needs 12 GB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table as a list of objects")
    options = parser.parse_args(arguments)
    for name in ("pairs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}: at least 1")
    return options


def line(figure: Figure) -> str:
    """A row of the table."""
    reached = {True: "yes", False: "no", None: ""}[figure.reached]
    numbers = f"{figure.ours:.4g} | {figure.reference:.4g} | {figure.ratio:.2f}"
    return f"| {figure.name} | {numbers} | {figure.goal} | {reached} |"


if __name__ == "__main__":
    sys.exit(main())
