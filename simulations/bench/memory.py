"""Peak memory of a run with 1,000 virtual clients, compared with one with 10; ten take part in each round.

Every run is a process of its own, whose largest resident size the system tells when it ends.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory

from simulations.bench.figures import Figure, Scale

__all__ = ["figures", "peak"]

GOAL = 1.2


def figures(scale: Scale) -> Iterator[Figure]:
    """In one process; who lives on Ray shares the images by process, whatever the number of clients."""
    few, many = (2, 4) if scale.tiny else (10, 1000)
    pairs = scale.repeat(3, 1)
    peaks = [(peak(many, few, scale.tiny), peak(few, few, scale.tiny)) for _ in range(pairs)]
    ours, reference = (statistics.median(column) for column in zip(*peaks, strict=True))
    ratio = statistics.median([a / b for a, b in peaks])
    name = f"peak memory, backend=local, MiB: {many:,} clients, {few} clients"
    yield Figure(name, ours, reference, ratio, f"<= {GOAL:g}", ratio <= GOAL)


def peak(clients: int, chosen: int, tiny: bool = False) -> float:
    """MiB that two rounds with so many of so many clients need at most."""
    with TemporaryDirectory() as folder:
        data = "digits" if tiny else "fashion_mnist"
        return peak_of(
            [
                *("-m", "fl_cmi.simulate", f"data={data}", "partition=iid", f"num_clients={clients}"),
                *(f"clients_per_round={chosen}", "rounds=2", "strategy=fedavg", "local.epochs=null"),
                *("local.steps=2", "backend=local", "server_threads=1", f"hydra.run.dir={folder}/run"),
            ]
        )


def peak_of(arguments: Sequence[str]) -> float:
    """MiB that a Python process with these arguments needs at most.

    Raises:
        RuntimeError: It failed.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()  # until it ends
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed: {said.strip()[-500:]}")
    return usage.ru_maxrss / 1024  # KiB on Linux
