"""Local training that hangs, fails or is killed on the way, named by a configuration's `local`."""

import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from torch import nn

from fl_cmi.data.dataset import Dataset
from fl_cmi.data.synthetic import load
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, Images


def synthetic_or_nothing(**options: Any) -> Dataset:
    """The synthetic data set, but for machines where it is not there."""
    if "FL_CMI_NO_DATA" in os.environ:
        raise ConfigError("data.root", "/data", "no such folder")
    return load(**options)


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


class Paced(LocalTraining):
    """Plain training that tells which machine does it, and waits at a gate with a machine's second client.

    Args:
        folder: Gets a file for each beginning, named by the machine's address.
        gate: A file; once it is there, nobody waits.
        training: Arguments of plain training.
    """

    def __init__(self, folder: str, gate: str, **training: Any) -> None:
        super().__init__(**training)
        self.folder, self.gate = Path(folder), Path(gate)

    def __call__(self, model: nn.Module, images: Images, *rest: Any, **more: Any) -> dict[str, float]:
        if ray.is_initialized():
            own = ray.util.get_node_ip_address()
            (self.folder / f"{own}-{uuid.uuid4().hex}").touch()
            while len(list(self.folder.glob(f"{own}-*"))) > 1 and not self.gate.exists():
                time.sleep(0.05)
        return super().__call__(model, images, *rest, **more)
