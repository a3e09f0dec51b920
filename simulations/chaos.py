"""Kill a run again and again, go on with it each time, and see whether anything is different at the end.

python -m simulations.chaos --kills 20 --seed 0                   # SIGKILL to the run and all its processes
python -m simulations.chaos --kills 20 --seed 0 --victim worker   # SIGKILL to one of Ray's workers instead

A small main job on digits, with a checkpoint after every batch and every lesson. It is run once undisturbed, then
killed at random moments, from its first imports to its last file, and resumed with `resume=`. A run that ends before it
could be killed is compared, and another one begun, until all kills are done; the last one is let finish. Every finished
run must have the digest and the rows of metrics.jsonl of the undisturbed one: none lost, none doubled. Written to
simulations/results/chaos.md (chaos_worker.md for workers).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_cmi.report.metrics import MetricsLog
from simulations.sweep import command_of

__all__ = ["Report", "main", "torment"]

JOB = (
    "data=digits",
    "rounds=2",
    "local.epochs=3",
    "synthesizer.batch_size=64",
    "synthesizer.inversion.steps=15",
    "schedule={epochs:8,batches:1,steps:15,evaluate_every:2}",
    "server_threads=1",
    "checkpoint.every=1",
)

RESULTS = Path(__file__).parent / "results"

LIMIT = 600.0
"""Seconds that nothing here may take."""

Process = subprocess.Popen[bytes]


@dataclass
class Kill:
    """One of them.

    Args:
        run: Number of the run, from 1.
        moment: Seconds after the process began.
        checkpoint: Number of the newest checkpoint then, 0 for none.
    """

    run: int
    moment: float
    checkpoint: int


@dataclass
class Finished:
    """A run that was killed and has come to its end.

    Args:
        digest: Of its student.
        lost: Rows of the undisturbed run that it has not.
        doubled: Rows that it has beside these.
        in_order: Whether the rows are the same in the same order.
    """

    digest: str
    lost: int
    doubled: int
    in_order: bool


@dataclass
class Report:
    """What came of it.

    Args:
        command: That made it.
        digest: Of the undisturbed student.
        seconds: That the undisturbed run took.
        kills: All.
        finished: All.
    """

    command: str
    digest: str
    seconds: float
    kills: list[Kill] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is different."""
        same = [run.digest == self.digest and run.in_order for run in self.finished]
        return bool(same) and all(same)

    def __str__(self) -> str:
        verdict = "nothing was lost, doubled or changed" if self.good else "**something is different**"
        lines = [
            "# Chaos\n",
            f"`{self.command}`: {len(self.kills)} kills, {verdict}.\n",
            f"Undisturbed: digest `{self.digest}`, {self.seconds:.1f} s.",
            "",
            "| run | killed | digest | rows lost | rows doubled | rows in order |",
            "|---|---|---|---|---|---|",
        ]
        for number, run in enumerate(self.finished, start=1):
            killed = sum(kill.run == number for kill in self.kills)
            same = "same" if run.digest == self.digest else f"`{run.digest}`"
            order = "yes" if run.in_order else "no"
            lines.append(f"| {number} | {killed} x | {same} | {run.lost} | {run.doubled} | {order} |")
        lines += ["", "| kill | run | seconds after its start | newest checkpoint |", "|---|---|---|---|"]
        for number, kill in enumerate(self.kills, start=1):
            lines.append(f"| {number} | {kill.run} | {kill.moment:.2f} | {kill.checkpoint or 'none'} |")
        return "\n".join(lines) + "\n"


def torment(
    kills: int, seed: int, victim: str, folder: Path, job: Sequence[str] = JOB, command: str = ""
) -> Report:
    """Do it, in a folder that may be thrown away.

    Args:
        kills: How many, >= 1.
        seed: Of the moments.
        victim: `run` or `worker`.
        folder: For the runs.
        job: What is run.
        command: For the report.

    Raises:
        RuntimeError: A run that does not come to its end.
    """
    rng = random.Random(seed)
    backend = "backend=ray" if victim == "worker" else "backend=local"
    overrides = (*job, backend)
    whole, begun = folder / "undisturbed", time.monotonic()
    start = start_of(overrides, whole)
    while start.poll() is None and not newest(whole) and time.monotonic() - begun < LIMIT:
        time.sleep(0.05)
    idle = time.monotonic() - begun
    if start.wait(LIMIT) != 0:
        raise RuntimeError(f"the undisturbed run failed: {said(whole)}")
    seconds = time.monotonic() - begun
    report = Report(command, summary_of(whole)["digest"], seconds)
    # So that some kills come before there is anything to lose, and all of them fit into a few runs.
    longest = idle + max(1.0, 2 * (seconds - idle) / kills)
    number = 1
    while True:
        run, struck = folder / f"run{number}", len(report.kills)
        known = run / ".hydra" / "overrides.yaml"
        again = known.is_file() and known.stat().st_size > 0
        process = start_of([f"resume={run}"] if again else overrides, run)
        if len(report.kills) == kills:
            code = process.wait(LIMIT)
        else:
            moment = rng.uniform(0.2 * idle, longest)
            if victim == "run":
                code = strike(process, run, moment, report, number)
            else:
                code = strike_worker(process, run, moment, report, number, kills, rng)
        if code == 0:
            report.finished.append(compared(run, whole))
            number += 1
            if len(report.kills) == kills:
                return report
        elif len(report.kills) == struck:
            raise RuntimeError(f"run {number} failed: {said(run)}")


def start_of(overrides: Sequence[str], run: Path) -> Process:
    """A process, leader of a group of its own."""
    run.mkdir(parents=True, exist_ok=True)
    resuming = any(override.startswith("resume=") for override in overrides)
    command = command_of("simulate", overrides, run)[: -1 if resuming else None]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )


def strike(process: Process, run: Path, moment: float, report: Report, number: int) -> int:
    """Kill the run and its group at this moment, unless it has ended; its exit code."""
    try:
        return process.wait(moment)
    except subprocess.TimeoutExpired:
        at = newest(run)
        os.killpg(process.pid, signal.SIGKILL)
        report.kills.append(Kill(number, moment, at))
        return process.wait(LIMIT)


def strike_worker(
    process: Process,
    run: Path,
    moment: float,
    report: Report,
    number: int,
    kills: int,
    rng: random.Random,
) -> int:
    """Kill one of the run's workers at this moment, and others later, as long as there are any; its exit code."""
    begun, least = time.monotonic(), moment
    while (code := process.poll()) is None and time.monotonic() - begun < LIMIT:
        found = workers(process.pid)
        if len(report.kills) < kills and time.monotonic() - begun >= least and found:
            os.kill(rng.choice(found), signal.SIGKILL)
            report.kills.append(Kill(number, time.monotonic() - begun, newest(run)))
            least = time.monotonic() - begun + rng.uniform(0.0, 5.0)
        time.sleep(0.05)
    return process.wait(1.0) if code is None else code


def workers(top: int) -> list[int]:
    """Process ids of the Ray actors that have come up below a process."""
    parents: dict[int, int] = {}
    actors = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text().rpartition(")")[2].split()
            name = (path / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(path.name)] = int(status[1])
        if name.startswith(b"ray::Worker"):
            actors.append(int(path.name))

    def below(process: int) -> bool:
        while process in parents and process != top:
            process = parents[process]
        return process == top

    return sorted(filter(below, actors))


def newest(run: Path) -> int:
    """Number of the newest checkpoint."""
    return max((int(path.stem) for path in (run / "checkpoint").glob("[0-9]*.json")), default=0)


def compared(run: Path, whole: Path) -> Finished:
    """A run beside the undisturbed one."""
    rows, expected = (lines(folder) for folder in (run, whole))
    lost, more = Counter(expected) - Counter(rows), Counter(rows) - Counter(expected)
    return Finished(summary_of(run)["digest"], lost.total(), more.total(), rows == expected)


def lines(folder: Path) -> list[str]:
    """The rows of a run without the times in them, and without clients that had to be asked again."""
    rows = [row for row in MetricsLog.read(folder / "metrics.jsonl") if not row.get("retried")]
    return [json.dumps({key: value for key, value in row.items() if "seconds" not in key}) for row in rows]


def summary_of(run: Path) -> dict[str, Any]:
    """What the run tells of itself."""
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))


def said(run: Path) -> str:
    """The last line that a run has printed."""
    return (run / "output.txt").read_text(encoding="utf-8").strip().rpartition("\n")[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if something is different."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.chaos", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victim", choices=("run", "worker"), default="run")
    parser.add_argument("--out", type=Path, help="where to write the report")
    given = parser.parse_args(arguments)
    if given.kills < 1:
        parser.error("--kills: at least 1")
    command = f"python -m simulations.chaos --kills {given.kills} --seed {given.seed}"
    command += " --victim worker" * (given.victim == "worker")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = torment(given.kills, given.seed, given.victim, Path(folder), command=command)
    out = given.out or RESULTS / ("chaos_worker.md" if given.victim == "worker" else "chaos.md")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(str(report), encoding="utf-8")
    print(report)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
