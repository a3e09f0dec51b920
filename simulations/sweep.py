"""Many runs by one command, each in a process and a folder of its own: resumed by configuration, failures shown.

What every benchmark here has in common. A run that is there is not repeated; one that failed, broke off or had another
configuration is replaced. A run that fails stops no other.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fl_cmi.compose import compose_config
from fl_cmi.files import locked
from fl_cmi.report.summary import as_told

__all__ = [
    "CARRIAGE",
    "BusyError",
    "Cell",
    "Launch",
    "Result",
    "Value",
    "carry_out",
    "command_of",
    "cores",
    "launch",
    "launcher",
    "sweep",
]

Value = str | int | float

CARRIAGE = ("backend", "checkpoint", "resume", "server_threads", "threads", "teacher_cache")
"""Keys that tell how a run is carried out, not what is run: whoever resumes a sweep may have changed them."""

composing = threading.Lock()
"""Hydra composes one configuration at a time."""


def command_of(program: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """The command of a program of `fl_cmi` that leaves its results in `folder`."""
    return [sys.executable, "-m", f"fl_cmi.{program}", *overrides, f"hydra.run.dir={folder}"]


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        where: What it is called by in tables: column -> value.
        overrides: Of the program.
        folder: Where it goes.
        program: `simulate`, or another module of `fl_cmi`.
        complete: What the program does to its configuration before references are resolved; None: nothing.
    """

    where: Mapping[str, Value]
    overrides: tuple[str, ...]
    folder: Path
    program: str = "simulate"
    complete: Callable[[DictConfig], DictConfig] | None = None

    @property
    def name(self) -> str:
        """In words."""
        return ", ".join(str(v) if k == "method" else f"{k} {v}" for k, v in self.where.items() if v != "")

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return command_of(self.program, self.overrides, self.folder)

    def config(self) -> dict[str, Any]:
        """Its configuration, as a summary tells it."""
        with composing:
            return dict(as_told(compose_config(self.overrides, self.program, self.complete)))

    def result(self) -> dict[str, Any] | None:
        """The summary of a finished run of the very same configuration; None if there is none."""
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        same = essence(summary.get("config")) == essence(self.config())
        return dict(summary) if same else None


def essence(config: Any) -> Any:
    """A configuration without what does not tell what is run."""
    if not isinstance(config, dict):
        return config
    return {key: value for key, value in config.items() if key not in CARRIAGE}


Result = dict[str, Any] | str
"""A run's summary, or why there is none."""

Launch = Callable[[Cell, float | None], str | None]
"""Runs a cell, for at most so many seconds if given; why it failed, or None."""


def launch(
    cell: Cell, limit: float | None, threads: int | None = None, keep: Sequence[int] = ()
) -> str | None:
    """Run a cell in a process of its own, its output into `output.txt`; why it failed, or None.

    Args:
        cell: The run.
        limit: Seconds after which it is stopped.
        threads: For libraries that no configuration reaches; None: as they like.
        keep: Open files that the process inherits.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (cell.folder / "output.txt").open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                cell.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
                env=environment,
                pass_fds=keep,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
    if done.returncode == 0:
        return None
    lines = (cell.folder / "output.txt").read_text(encoding="utf-8").split("\n")
    said = [line for line in lines if line.strip()] or [f"exit code {done.returncode}"]
    return ([line for line in said if line.startswith("fl_cmi: ")] or said)[-1]


def carry_out(cell: Cell, limit: float | None, run: Launch) -> Result:
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


def sweep(
    cells: Sequence[Cell],
    run: Launch,
    after: Callable[[list[tuple[Cell, Result]]], object],
    limit: Callable[[Cell], float | None] = lambda cell: None,
    jobs: int = 1,
) -> list[tuple[Cell, Result]]:
    """Carry out all cells, so many side by side.

    Args:
        cells: In the order in which they begin.
        run: Runs one.
        after: Called after every cell with all that are done, in the order of `cells`.
        limit: Seconds that a cell may take.
        jobs: Processes at once, >= 1.
    """
    done: dict[int, Result] = {}
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(carry_out, cell, limit(cell), run): n for n, cell in enumerate(cells)}
        try:
            for future in as_completed(begun):
                number = begun[future]
                done[number] = result = future.result()
                said = (
                    result if isinstance(result, str) else f"{100 * result['student']['accuracy_last']:.2f} %"
                )
                print(f"{len(done)}/{len(cells)}  {cells[number].name}: {said}", flush=True)
                after([(cells[n], done[n]) for n in sorted(done)])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # nothing more begins
            raise
    return [(cells[n], done[n]) for n in sorted(done)]


class BusyError(RuntimeError):
    """A folder in which another sweep is at work."""


@contextmanager
def launcher(out: Path, threads: int | None) -> Iterator[Launch]:
    """Inside, the folder is this sweep's alone, and the launcher for its cells is there.

    Raises:
        BusyError: Another sweep, or a run that one left behind when it was killed, is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        if not locked(file):
            raise BusyError(f"{out}: another sweep, or a run that one left behind, is at work here")
        # Runs inherit the lock, so that those of a killed sweep end before the next one begins.
        yield partial(launch, threads=threads, keep=(file.fileno(),))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
