"""A benchmark of federated methods: methods x partitions x alphas x clients x seeds, as a command line."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fl_cmi.checks import check
from fl_cmi.command import check_arguments
from fl_cmi.compose import compose_config, config_folder
from fl_cmi.types import ConfigError
from simulations.estimate import estimate
from simulations.federated import Method
from simulations.known import Row, add_option, check_overrides, check_rows, covered, given
from simulations.results import KEYS, write_results
from simulations.sweep import BusyError, Cell, Launch, Result, Value, cores, launcher, sweep

__all__ = ["Study", "main", "plan"]

HANG = 4 * 3600
"""Seconds, beside ten budgets, after which a run is taken to hang."""


@dataclass(frozen=True)
class Study:
    """What a benchmark runs where the command line does not say otherwise.

    Args:
        program: Its module.
        description: One line.
        setting: Overrides of all runs.
        methods: Those there are.
        chosen: Those that are run; None: all.
        alphas: Of the partition.
        partitions: Names of `conf/partition`.
        clients: Their numbers.
        seeds: By alpha; `None` for all other alphas.
        budget: CPU seconds of synthesis and distillation in a round.
        rounds: Of a run, as in `setting`.
    """

    program: str
    description: str
    setting: Sequence[str]
    methods: Mapping[str, Method]
    chosen: Sequence[str] | None = None
    alphas: Sequence[float] = (0.1,)
    partitions: Sequence[str] = ("dirichlet",)
    clients: Sequence[int] = (5,)
    seeds: Mapping[float | None, Sequence[int]] = field(default_factory=lambda: {None: (0,)})
    budget: float = 600.0
    rounds: int = 1


def plan(study: Study, options: argparse.Namespace) -> list[Cell]:
    """One cell for every point and method; methods that share teachers lie side by side."""
    out = options.out.resolve()
    shared = (
        *dict.fromkeys(
            [*study.setting, *(asked for name in options.methods for asked in study.methods[name].of_all)]
        ),
        "backend=local" if options.jobs > 1 else "backend=ray",
        f"server_threads={options.threads}",
        f"teacher_cache={out / 'teachers'}",
    )
    cells = []
    for partition in options.partitions:
        for alpha in options.alphas if has_alpha(partition) else [None]:
            for clients in options.clients:
                for seed in options.seeds or study.seeds.get(alpha, study.seeds[None]):
                    where: dict[str, Value] = {
                        "partition": partition,
                        "alpha": "" if alpha is None else alpha,
                    }
                    point = [f"partition={partition}", f"num_clients={clients}", f"seed={seed}"]
                    point += [] if alpha is None else [f"partition.alpha={alpha:g}"]
                    place = out / f"{partition}{where['alpha']}" / f"{clients}-clients"
                    for name in options.methods:
                        method, seconds = study.methods[name], seconds_of(study, options, name)
                        budget = [f"budget_s={seconds:g}", "budget_clock=cpu"] if seconds else []
                        label = f"{name}-{seconds:g}s" if seconds else name
                        cells.append(
                            Cell(
                                {"method": name, **where, "clients": clients, "seed": seed},
                                (*shared, *method.overrides, *point, *budget, *options.overrides),
                                place / label / f"seed-{seed}",
                            )
                        )
    return cells


def seconds_of(study: Study, options: argparse.Namespace, method: str) -> float:
    """The server's budget in a round, 0 for none."""
    return float(study.methods[method].budget * options.budget)


def has_alpha(partition: str) -> bool:
    """Whether the procedure has a concentration."""
    return "alpha" in compose_config([f"partition={partition}"])["partition"]


def options_of(
    study: Study, arguments: Sequence[str] | None, more: Sequence[argparse.ArgumentParser] = ()
) -> argparse.Namespace:
    """The command line; `more` has options of the program's own, for its help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {study.program}", description=study.description, parents=list(more)
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all runs, after --")
    names, chosen = list(study.methods), list(study.chosen or study.methods)
    parser.add_argument("--methods", nargs="+", choices=names, default=chosen, metavar="METHOD")
    known = sorted(path.stem for path in (config_folder() / "partition").glob("*.yaml"))
    parser.add_argument(
        "--partitions", nargs="+", choices=known, default=list(study.partitions), metavar="PARTITION"
    )
    parser.add_argument("--alphas", nargs="+", type=float, default=list(study.alphas), metavar="ALPHA")
    parser.add_argument("--clients", nargs="+", type=int, default=list(study.clients), metavar="CLIENTS")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="for all alphas")
    parser.add_argument(
        "--budget", type=float, default=study.budget, help="CPU seconds of the server in a round"
    )
    add_option(parser, KEYS, ["budget_cpu_s", "rounds"])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, help="of a run's server; so many that all cores are at work")
    parser.add_argument("--out", type=Path, default=Path("outputs") / study.program.rsplit(".", 1)[-1])
    parser.add_argument("--dry-run", action="store_true", help="print the runs and how long they may take")
    options = parser.parse_args(arguments)
    if options.jobs < 1 or not options.budget > 0:
        parser.error("--jobs and --budget are positive")
    options.threads = options.threads or max(1, cores() // options.jobs)
    if options.jobs > 1 and options.jobs * options.threads > cores():
        parser.error(f"{options.jobs} jobs of {options.threads} threads on {cores()} cores")
    check_overrides(parser, options, told=("rounds",))

    def told(row: Row) -> dict[str, Value]:
        # A method that is gone has no budget to compare.
        seconds = seconds_of(study, options, row["method"]) if row["method"] in names else row["budget_cpu_s"]
        return {"rounds": given(options.overrides, "rounds", study.rounds), "budget_cpu_s": seconds or ""}

    check_rows(parser, options.known.rows, told)
    if (mistake := mistake_of(study, options)) is not None:
        parser.error(mistake)
    return options


def mistake_of(study: Study, options: argparse.Namespace) -> str | None:
    """What is wrong with the overrides, if no method takes them; what one of them does not take, its run tells."""
    if not options.overrides:
        return None
    try:
        check_arguments(options.overrides)
    except ConfigError as error:
        return str(error)
    said = None
    for cell in {cell.where["method"]: cell for cell in plan(study, options)}.values():
        try:
            check(compose_config(cell.overrides))
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            said = " ".join(str(error).split())
        else:
            return None
    return said


def main(
    study: Study,
    arguments: Sequence[str] | None = None,
    run: Launch | None = None,
    more: Sequence[argparse.ArgumentParser] = (),
    typed: Sequence[str] | None = None,
) -> int:
    """Run what is missing and write tables and plots; 1 if a run failed, 2 if another is at work, else 0.

    Args:
        study: The benchmark.
        arguments: Of the command line; None: this process's.
        run: Runs a cell; None: in a process of its own.
        more: Options of the program's own, for its help.
        typed: What the tables tell of the command line, where the arguments are not all of it.
    """
    options = options_of(study, arguments, more)

    def seconds(cell: Cell) -> float:
        return seconds_of(study, options, str(cell.where["method"]))

    cells = [cell for cell in plan(study, options) if not covered(cell.where, options.known.rows)]
    if options.dry_run:
        for cell in cells:
            print(shlex.join(cell.command))
        print(f"\n{estimate(cells, options.jobs)}")
        return 0
    if typed is None:
        typed = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", study.program, *typed])

    def tell(results: list[tuple[Cell, Result]]) -> str:
        return write_results(options.out, command, results, options.known)

    def limit(cell: Cell) -> float:
        return HANG + 10 * seconds(cell) * study.rounds

    try:
        with launcher(options.out, options.threads) if run is None else nullcontext(run) as start:
            results = sweep(cells, start, tell, limit, options.jobs)
    except BusyError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{tell(results)}")
    return 1 if any(isinstance(result, str) for _, result in results) else 0
