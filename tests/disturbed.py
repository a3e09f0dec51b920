"""Synthesizers that are late or killed at given batches, importable by name in other processes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from fl_cmi.rng import stream
from fl_cmi.synthesis.inversion import Inversion, Inverted
from fl_cmi.synthesis.synthesizers import PerClient


class Disturbed(PerClient):
    """Per client, with trouble; a batch is known by its number in round 1 of the run with seed 0.

    Args:
        inversion: As there.
        batch_size: As there.
        slow: Seconds by the number of a batch.
        killed: Batches at which the process is killed.
        failed: A batch whose loss is not finite.
        folder: Files there tell who was slow or killed; the process that comes after a kill goes on.
        again: Whether that one is killed as well.
    """

    def __init__(
        self,
        inversion: Inversion,
        batch_size: int = 128,
        slow: dict[int, float] | None = None,
        killed: tuple[int, ...] | list[int] = (),
        failed: int | None = None,
        folder: str = ".",
        again: bool = False,
    ) -> None:
        super().__init__(inversion, batch_size)
        self.slow, self.killed, self.failed = slow or {}, killed, failed
        self.folder, self.again = Path(folder), again

    def __call__(self, ensemble: Any, student: Any, task: Any, rng: torch.Generator) -> Inverted:
        seed = rng.initial_seed()
        number = next(
            b for b in range(100) if stream(0, "synthesis", "round", 1, "number", b).initial_seed() == seed
        )
        if number == self.failed:
            raise FloatingPointError(f"batch {number} is not finite")
        if number in self.slow:
            (self.folder / "slow").touch()
            time.sleep(self.slow[number])
        made = super().__call__(ensemble, student, task, rng)
        marker = self.folder / f"killed-{number}"
        if number in self.killed and (self.again or not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return made
