"""Phases of a run: a live line with an ETA for each, and the seconds they took."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as live
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

from fl_cmi.report.units import duration

__all__ = ["Phase", "Progress"]

logger = logging.getLogger(__name__)

NAME_WIDTH, COUNT_WIDTH, TIME_WIDTH = 14, 9, 10


class Phase:
    """A stretch of work; `Progress.phase` makes it.

    Args:
        name: What it is called, in the display and in `Progress.seconds`.
        total: Steps to come, None if unknown.
        clock: The time in seconds.
        changed: Called after every step.
        depth: How many phases it is inside of.
        entry: 1 at first, 2 when it is entered again within the same outermost phase, and so on.
        earlier: Seconds that those entries before took.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        clock: Callable[[], float],
        changed: Callable[["Phase"], None],
        depth: int = 0,
        entry: int = 1,
        earlier: float = 0.0,
    ) -> None:
        self.name, self.total, self.completed, self.note = name, total, 0, ""
        self.depth, self.entry, self.earlier = depth, entry, earlier
        self.state = "running"
        self._clock, self._changed = clock, changed
        self._start: float = clock()
        self._end: float | None = None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more as done, and show `note` (such as `loss 1.23`) until the next one."""
        self.completed += steps
        self.note = self.note if note is None else note
        self._changed(self)

    def end(self, state: str) -> None:
        """Stop the clock; `state` is `done` or `failed`."""
        self.state, self._end = state, self._clock()

    @property
    def seconds(self) -> float:
        """Wall seconds since the start, up to now or to the end."""
        return (self._clock() if self._end is None else self._end) - self._start

    @property
    def eta(self) -> float | None:
        """Seconds left if the rest goes like the steps so far; None where that tells nothing."""
        if self.total is None or not 0 < self.completed < self.total:
            return None
        return self.seconds * (self.total - self.completed) / self.completed

    @property
    def count(self) -> str:
        """Steps done: `17/200`, `17` without a total, nothing if none; `3 x 17/200` in the third entry."""
        steps = str(self.completed) if self.completed else ""
        if self.total is not None:
            steps = f"{self.completed}/{self.total}"
        return steps if self.entry == 1 else f"{self.entry} x {steps}".rstrip()

    @property
    def remark(self) -> str:
        """What follows the time: the ETA and the note while running, afterwards the note or the failure."""
        left = f"{duration(self.eta)} left" if self.state == "running" and self.eta is not None else ""
        return "  ".join(part for part in ("failed" if self.state == "failed" else left, self.note) if part)


class Progress:
    """Shows phases on standard error and adds up their seconds.

    On a terminal each phase is one live line, and its last state stays. Elsewhere it is plain lines through
    `logging`: at the start, about every `interval` seconds, at the end. A phase inside another has its own
    line; entered again within the same outer phase, it takes that line over instead of adding one.

        with progress.phase("synthesis", total=200) as phase:
            phase.advance(note="loss 1.23")

    Args:
        quiet: Show nothing, only add up seconds.
        console: Where live lines go; standard error by default.
        interval: Seconds between two plain lines of one phase.
        clock: The time in seconds.
    """

    def __init__(
        self,
        quiet: bool = False,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.console = console or Console(stderr=True)
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self._display: _LiveLines | _LogLines | None = None
        if not quiet:
            self._display = _LiveLines(self.console) if terminal else _LogLines(interval, clock)
        self._clock = clock
        self._open: list[Phase] = []
        self._entries: dict[tuple[int, str], tuple[int, float]] = {}

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Time and show what happens inside; `seconds[name]` grows by it even if it raises."""
        depth = len(self._open)
        if depth == 0:
            self._entries.clear()
        entries, earlier = self._entries.get((depth, name), (0, 0.0))
        phase = Phase(name, total, self._clock, self._changed, depth, entries + 1, earlier)
        inside_itself = any(outer.name == name for outer in self._open)
        self._open.append(phase)
        if self._display is not None:
            self._display.begin(phase)
        state = "failed"
        try:
            yield phase
            state = "done"
        finally:
            phase.end(state)
            self._entries[depth, name] = entries + 1, earlier + phase.seconds
            # A phase inside one of its own name is already in the outer one's seconds.
            self.seconds[name] = self.seconds.get(name, 0.0) + (0.0 if inside_itself else phase.seconds)
            self._open.remove(phase)
            if self._display is not None:
                self._display.finish(phase)

    def _changed(self, phase: Phase) -> None:
        if self._display is not None:
            self._display.change(phase)


class _LiveLines:
    """One line per phase, redrawn by rich until the outermost phase ends; then the lines stay."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: live.Progress | None = None
        self._tasks: dict[tuple[int, str], live.TaskID] = {}

    def begin(self, phase: Phase) -> None:
        if self._progress is None:
            # Standard output is taken over only if it shares the terminal: a pipe must get what is printed.
            self._progress = live.Progress(
                _Name(),
                _Count(),
                _Time(),
                _Bar(bar_width=14),
                _Remark(),
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._progress.start()
        task = self._tasks.get((phase.depth, phase.name))
        if task is None:
            task = self._progress.add_task(phase.name, total=phase.total, phase=phase)
            self._tasks[phase.depth, phase.name] = task
        else:
            self._progress.reset(task, total=phase.total, phase=phase)

    def change(self, phase: Phase) -> None:
        if self._progress is None:
            return
        task = self._tasks[phase.depth, phase.name]
        self._progress.update(task, completed=phase.completed, total=phase.total)

    def finish(self, phase: Phase) -> None:
        if phase.depth == 0 and self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}


class _Name(live.ProgressColumn):
    def render(self, task: live.Task) -> Text:
        return Text(
            ("  " * task.fields["phase"].depth + task.description).ljust(NAME_WIDTH),
            style="bold",
            no_wrap=True,
        )


class _Count(live.ProgressColumn):
    def render(self, task: live.Task) -> Text:
        return Text(task.fields["phase"].count.rjust(COUNT_WIDTH), no_wrap=True)


class _Time(live.ProgressColumn):
    def render(self, task: live.Task) -> Text:
        phase = task.fields["phase"]
        return Text(duration(phase.earlier + phase.seconds).rjust(TIME_WIDTH), style="cyan", no_wrap=True)


class _Bar(live.BarColumn):
    """The bar leaves when the phase ends, so that a finished line is name, count, seconds."""

    def render(self, task: live.Task) -> ProgressBar:
        bar = super().render(task)
        bar.width = bar.width if task.fields["phase"].state == "running" else 0
        return bar


class _Remark(live.ProgressColumn):
    def render(self, task: live.Task) -> Text:
        phase = task.fields["phase"]
        style = "red" if phase.state == "failed" else "dim"
        return Text(phase.remark, style=style, no_wrap=True, overflow="ellipsis")


class _LogLines:
    """Plain lines through logging, few enough to read."""

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        self._interval, self._clock = interval, clock
        self._last: dict[str, float] = {}

    def begin(self, phase: Phase) -> None:
        if phase.depth == 0:
            self._last.clear()
        # What is inside another phase speaks when there is something to tell.
        if phase.depth == 0:
            self._say(phase, "started" if phase.total is None else f"started, {phase.total} steps")

    def change(self, phase: Phase) -> None:
        if self._due(phase):
            self._say(phase, phase.count, duration(phase.earlier + phase.seconds), phase.remark)

    def finish(self, phase: Phase) -> None:
        # Short phases that come again and again inside another would flood the log.
        if phase.depth == 0 or phase.entry == 1 or phase.state == "failed":
            ended = "done" if phase.state == "done" else ""
            self._say(phase, phase.count, duration(phase.earlier + phase.seconds), phase.remark, ended)

    def _due(self, phase: Phase) -> bool:
        return self._clock() - self._last.get(phase.name, float("-inf")) >= self._interval

    def _say(self, phase: Phase, *parts: str) -> None:
        self._last[phase.name] = self._clock()
        logger.info("%s  %s", phase.name, "  ".join(part for part in parts if part))
