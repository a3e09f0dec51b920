"""What a client's answer depends on besides its message: alike on all machines of a cluster, or the run is refused."""

import logging
import platform
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from fl_cmi.compose import client_side
from fl_cmi.flower.teacher_cache import code_digest, processor
from fl_cmi.report.summary import digest
from fl_cmi.types import ConfigError

__all__ = ["Surroundings", "describe"]

log = logging.getLogger(__name__)

SHORT = 12  # characters of a checksum, enough to tell two apart


@dataclass(frozen=True)
class Surroundings:
    """What a process finds around it.

    Args:
        needed: What has to be the same everywhere, by name.
        nice: What changes a result's last bits at most, by name.
        fault: Why no client can work here: key, value and what is allowed, as of ConfigError; None: nothing.
    """

    needed: Mapping[str, str]
    nice: Mapping[str, str]
    fault: tuple[str, Any, str] | None = None

    def mistake(self, here: "Surroundings", machine: str) -> ConfigError | None:
        """Why clients cannot work on a machine with these surroundings; None if they can.

        Args:
            here: Those of the process that serves the run.
            machine: Address of the other one, for the message.
        """
        if self.fault is not None:
            key, value, allowed = self.fault
            return ConfigError(key, value, f"on {machine}: {allowed}")
        odd = differences(self.needed, here.needed)
        if odd:
            allowed = f"machines with the same software and data as this one; there {'; '.join(odd)}"
            return ConfigError("backend.address", machine, allowed)
        return None

    def warn(self, here: "Surroundings", machine: str) -> None:
        """Tell in a line what differs and may be borne."""
        odd = differences(self.nice, here.nice)
        if odd:
            log.warning(
                "%s differs from this machine, so last bits of results may: %s", machine, "; ".join(odd)
            )


def describe(config_json: str | None) -> Surroundings:
    """What this process finds; the data set of a run's config is loaded, as every client's process does."""
    needed = {
        "Python": platform.python_version().rpartition(".")[0],
        "torch": torch.__version__.partition("+")[0],
        **{name: metadata.version(name) for name in ("torchvision", "flwr", "numpy")},
        "fl_cmi's code": code_digest(["."])[:SHORT],
    }
    if config_json is None:
        return Surroundings(needed, {"torch": torch.__version__})
    try:
        side = client_side(config_json)
    except ConfigError as error:
        return Surroundings(needed, {}, (error.key, error.value, error.allowed))
    except Exception as error:  # whatever it is, the user wants to know where
        log.debug("%s", traceback.format_exc())
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Surroundings(needed, {}, ("data", None, said))
    needed["data set"] = digest({"x": side.train.x, "y": side.train.y})[:SHORT]
    return Surroundings(needed, {"torch": torch.__version__, "processor": processor(side.device)})


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """`name value, here value` for each that differs."""
    return [
        f"{name} {value}, here {here.get(name)}" for name, value in there.items() if here.get(name) != value
    ]
