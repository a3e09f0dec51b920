"""What the entry points share: Hydra around a run, a folder for it, and one line for whatever goes wrong."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from fl_cmi.compose import Config, config_folder, plain_config
from fl_cmi.types import ConfigError

__all__ = ["carry_out", "command_line"]

Run = Callable[[Config, Path, str], dict[str, Any]]
"""From a configuration, the run folder and the command line to what `summary.json` holds."""


def carry_out(
    config: DictConfig,
    name: str,
    run: Run,
    show: Callable[[dict[str, Any], Console], None],
    *failures: type[Exception],
) -> float:
    """Hydra's task: one run in the folder that Hydra made for it; its table, and last the folder alone.

    Leaves with one line on standard error and exit code 2 for a user's mistake, 1 for a loss that is not finite and
    for what is among `failures`. It does so from here, because Hydra would add a line to an exception.

    Args:
        config: As composed.
        name: The entry point, as in `python -m fl_cmi.<name>`.
        run: Does the work.
        show: Prints the summary.
        failures: Exceptions whose message tells all.

    Returns:
        The student's last test accuracy, for sweepers.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    command = shlex.join(["python", "-m", f"fl_cmi.{name}", *HydraConfig.get().overrides.task])
    expected: tuple[type[Exception], ...] = (FloatingPointError, *failures)
    try:
        summary = run(plain_config(config), run_dir, command)
    except ConfigError as error:
        discard(run_dir)
        fail(str(error), 2)
    except expected as error:
        fail(str(error), 1)
    show(summary, Console())
    print(run_dir.resolve(), flush=True)
    accuracy_last = summary["student"]["accuracy_last"]
    assert isinstance(accuracy_last, float)
    return accuracy_last


def discard(run_dir: Path) -> None:
    """Remove what Hydra put into the folder of a run that never began, and the folder if that was all."""
    for handler in logging.getLogger().handlers:
        handler.close()
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for log_file in run_dir.glob("*.log"):
        log_file.unlink()
    if not any(run_dir.iterdir()):
        run_dir.rmdir()
        for parent in (run_dir.parent, run_dir.parent.parent):
            if parent.name and not any(parent.iterdir()):
                parent.rmdir()


def command_line(name: str, job: Callable[[DictConfig], float]) -> None:
    """Run `job` on `conf/<name>.yaml` and the command line's overrides; one line and exit code 2 if they do not fit."""
    # Hydra would print its own errors over several lines and exit with 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    program = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(job)
    try:
        program()
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, ConfigError):
            fail(str(error.__cause__), 2)
        fail(" ".join(str(error).split()), 2)


def fail(message: str, code: int) -> NoReturn:
    """Say why in one line and leave."""
    print(f"fl_cmi: {message}", file=sys.stderr)
    sys.exit(code)
