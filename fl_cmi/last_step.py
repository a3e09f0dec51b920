"""The last step of a simulation, where wanted: the global model at fewer bits, by the pool that taught it."""

from pathlib import Path
from typing import Any

from fl_cmi.augment import Augment, Chain, Cutout
from fl_cmi.bank import Pool
from fl_cmi.compression.calibration import Calibration
from fl_cmi.compression.compressor import Compressor
from fl_cmi.compression.stage import Stage, alone
from fl_cmi.flower.strategies import FedCmi
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError, State

__all__ = ["LastStepFailure", "check_last_step", "failure_of", "last_step"]

BATCHES = 20
"""Of calibration, 256 images each: with `calibration_of`, what `conf/compress.yaml` has."""


class LastStepFailure(RuntimeError):  # noqa: N818 - like those of clients
    """The last step failed; all that the run did before is written, and it counts as finished."""


def check_last_step(compressor: Compressor, side: ServerSide, strategy: Any) -> None:
    """Raise ConfigError, before any client trains, where the last step could not be taken."""
    if not isinstance(strategy, FedCmi):
        why = "none, because only strategy=fed_cmi makes synthetic images (see python -m fl_cmi.compress)"
        raise ConfigError("compression", type(compressor).__name__, why)
    compressor.check(side.student())


def calibration_of(augment: Augment) -> Calibration:
    """As `fl_cmi.compress` calibrates, by training's augmentation and The Knowledge Within's cutout."""
    return Calibration(BATCHES, augment=Chain([augment, Cutout(9, 0.25)]))


def last_step(
    compressor: Compressor, augment: Augment, student: State, side: ServerSide, pool: Pool, run_dir: Path
) -> dict[str, Any]:
    """Compress the global model by calibration alone; what came of it, for the summary: at worst `failure`, the reason.

    No mistake here may cost the federation before it, which a resumed run could only lead to the same mistake again.

    Args:
        compressor: Makes the small model.
        augment: Of the data set.
        student: The global model.
        side: What the server knows.
        pool: Synthetic images.
        run_dir: Where the small model is written.

    Raises:
        OSError: Of the system, such as a full disk; then the run can go on from its checkpoint.
    """
    model = side.student()
    model.load_state_dict(student)
    calibration = calibration_of(augment)
    stage = Stage(compressor, calibration, side.task, side.test, side.seed, side.device)
    try:
        with side.progress.phase("compression"):
            return stage(alone(model).to(side.device), pool, run_dir)
    except OSError:
        raise
    except Exception as error:  # whatever it is, libraries' own ones included
        return {"failure": reason(error)}


def reason(error: Exception) -> str:
    """Why, in one line; the key `calibration` is none of a simulation's."""
    if isinstance(error, ConfigError):
        return error.allowed if error.key == "calibration" else str(error)
    said = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {said}"


def failure_of(summary: dict[str, Any], run_dir: Path) -> LastStepFailure | None:
    """What a run whose last step failed says at its end."""
    failure = summary.get("compressed", {}).get("failure")
    if failure is None:
        return None
    again = f"python -m fl_cmi.compress run_dir={run_dir} calibration=pool"
    return LastStepFailure(
        f"compression: {failure}; the run before it is finished, student and pool are in {run_dir}, for {again}"
    )
