"""The server's workers on Ray against the server alone.

python -m simulations.bench.workers                         # two workers of one core each, one thread alone
python -m simulations.bench.workers --workers 4 --pairs 9

A pair is the same number of batches (synthesis and the ensemble's labels) by the server alone, on one thread, and by
the workers, by the wall clock; the figure is the median ratio over the pairs. Needs as many idle cores as workers.
Starting the workers, once a round, is not part of it and told apart; the first batch of each side is not either.
On a machine that others use, CPU seconds tell more: N times those of the server alone, by those of workers and server,
is what N idle cores can gain at most.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fl_cmi.compose import build, compose_config, make_model
from fl_cmi.ensemble import Ensemble
from fl_cmi.flower.ray_workers import RayWorkers
from fl_cmi.memory import keep_freed_memory
from fl_cmi.rng import stream_seed
from fl_cmi.synthesis.crew import Crew, Spent
from fl_cmi.types import Task, Teacher
from simulations.bench.figures import Figure, Scale
from simulations.bench.machine import processor

__all__ = ["figures", "main", "speedup"]

GOAL = 1.6

TASK = Task((1, 28, 28), 10, (0.286,), (0.353,))
SETTINGS = ("model=convnet", "model.width=32", "synthesizer=per_client", "device=cpu")


def figures(scale: Scale) -> Iterator[Figure]:
    """Two workers of one core each against the server alone on one thread."""
    found = speedup(pairs=scale.repeat(5, 2), batches=scale.choose(4, 2, 2), steps=scale.choose(10, 4))
    name = "synthesis, s: server.workers=2, the server alone"
    ratio = found["ratio"]
    yield Figure(name, found["workers"], found["alone"], ratio, f">= {GOAL:g}", ratio >= GOAL)


def speedup(
    workers: int = 2, batches: int = 4, pairs: int = 5, steps: int = 10, clients: int = 5
) -> dict[str, float]:
    """Seconds of the server `alone` and of its `workers`, and their `ratio`, all medians.

    Besides, `bound` is the most that the ratio can be, by CPU seconds, `start` the seconds until the workers' first
    batches were there, and `utilization` as in a run's summary.

    Args:
        workers: N, of one CPU each; they must fit this machine.
        batches: Of each side of a pair, a multiple of N, or the last workers have less to do.
        pairs: How many.
        steps: Of the inversion of each batch.
        clients: Teachers.
    """
    config = compose_config([*SETTINGS, f"synthesizer.inversion.steps={steps}"])
    teachers = [
        Teacher(k, 1000, torch.full((TASK.num_classes,), 100), make_model(config["model"], TASK, k))
        for k in range(clients)
    ]
    ensemble = Ensemble(teachers, build(config["combine"], "combine"))
    student = make_model(config["model"], TASK, clients)
    with torch.no_grad():  # running statistics of something
        for teacher in teachers:
            teacher.model.train()(torch.rand(32, *TASK.shape, generator=torch.Generator().manual_seed(0)))
            teacher.model.eval()
    own = build(config["synthesizer"], "synthesizer")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    crew = Crew(RayWorkers(workers, device="cpu"))
    first = 0

    def alone(number: int) -> None:
        for seed in seeds(first, number):
            made = own(ensemble, student, TASK, torch.Generator().manual_seed(seed))
            ensemble.label(made.x)

    def together(number: int) -> None:
        for _ in crew.make(first, seeds(first, number), student):
            pass

    try:
        with crew.workers.hired():
            crew.begin(ensemble, build(config["synthesizer"], "synthesizer"), TASK)
            start = seconds(together, workers)
            alone(1)
            crew.spent = Spent()
            times, cpu_alone, cpu_server = [], 0.0, 0.0
            for _ in range(pairs):
                first += batches
                at = [time.process_time()]
                pair = []
                for side in (alone, together):
                    pair.append(seconds(side, batches))
                    at.append(time.process_time())
                times.append((pair[0], pair[1]))
                cpu_alone, cpu_server = cpu_alone + at[1] - at[0], cpu_server + at[2] - at[1]
    finally:
        torch.set_num_threads(threads)
    one, many = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "alone": one,
        "workers": many,
        "ratio": statistics.median(a / b for a, b in times),
        "bound": workers * cpu_alone / (cpu_server + crew.spent.cpu_s),
        "start": start,
        "utilization": crew.told()["utilization"],
    }


def seeds(first: int, number: int) -> list[int]:
    """Of so many batches."""
    return [stream_seed(0, "bench", b) for b in range(first, first + number)]


def seconds(work: Callable[[int], object], number: int) -> float:
    """Wall seconds of so many batches."""
    start = time.perf_counter()
    work(number)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.workers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4, help="of each side of a pair")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each batch")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    for name, value in options.items():
        if value < 1:
            parser.error(f"--{name}: at least 1")
    keep_freed_memory()
    found = speedup(**options)
    print(
        f"{processor()}, torch {torch.__version__}; {options['pairs']} pairs of {options['batches']} batches"
    )
    rest = f"at most {found['bound']:.2f}x by CPU seconds; {100 * found['utilization']:.0f} % busy"
    print(
        f"alone {found['alone']:.2f} s, {options['workers']} workers {found['workers']:.2f} s:"
        f" **{found['ratio']:.2f}x** ({rest}; {found['start']:.1f} s to start)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
