"""Local training that hangs, fails or is killed on the way, named by a configuration's `local`."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from torch import nn

from fl_cmi.training import LocalTraining
from fl_cmi.types import Images


class Faulty(LocalTraining):
    """Plain training that touches `marker` and then does what it is told.

    Args:
        marker: A file.
        fault: `hang` for ever, `raise`, or `die` once by SIGKILL.
        training: Arguments of plain training.
    """

    def __init__(self, marker: str, fault: str, **training: Any) -> None:
        super().__init__(**training)
        self.marker, self.fault = Path(marker), fault

    def __call__(self, model: nn.Module, images: Images, *rest: Any, **more: Any) -> dict[str, float]:
        first = not self.marker.exists()
        self.marker.touch()
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "raise":
            raise OSError("disk is damaged")
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(model, images, *rest, **more)
