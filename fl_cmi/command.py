"""What the entry points share: Hydra around a run, a folder for it, and one line for whatever goes wrong."""

import errno
import functools
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from fl_cmi.checkpoint.begin import is_begun, refuse_begun
from fl_cmi.checks import ONLY_DISTILL, ONLY_SIMULATE
from fl_cmi.compose import Config, compose_config, config_folder, plain_config, readable
from fl_cmi.interrupt import Terminated, sigterm_unwinds
from fl_cmi.nodes import as_typed
from fl_cmi.report.summary import note_code
from fl_cmi.resume import folder_to_resume, resumed
from fl_cmi.types import ConfigError

__all__ = ["carry_out", "command_line"]

Run = Callable[[Config, Path, str], dict[str, Any]]
"""From a configuration, the run folder and the command line to what `summary.json` holds."""

Prepare = Callable[[DictConfig, Sequence[str]], DictConfig]
"""From what Hydra composed and its overrides to what is run."""

INTERRUPTED, TERMINATED = 130, 143
"""What a shell calls a process that Ctrl-C ended, or SIGTERM."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, or what this user or process may put on it."""


def carry_out(
    config: DictConfig,
    name: str,
    run: Run,
    show: Callable[[dict[str, Any], Console], None],
    *failures: type[Exception],
    prepare: Prepare | None = None,
) -> float:
    """Hydra's task: one run in the folder that Hydra made for it; its table, and last the folder alone.

    Leaves with one line on standard error and exit code 2 for a user's mistake, 1 for a loss that is not finite, a full
    disk and for what is among `failures`. It does so from here, because Hydra would add a line to an exception.

    Args:
        config: As composed.
        name: The entry point, as in `python -m fl_cmi.<name>`.
        run: Does the work.
        show: Prints the summary.
        failures: Exceptions whose message tells all.
        prepare: Completes the configuration before it is resolved, if given.

    Returns:
        The student's last test accuracy, for sweepers.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    overrides = [
        override for override in HydraConfig.get().overrides.task if not override.startswith("resume=")
    ]
    command = shlex.join(["python", "-m", f"fl_cmi.{name}", *overrides])
    expected: tuple[type[Exception], ...] = (FloatingPointError, *failures)
    plain: Config = {}
    try:
        refuse_new_keys(overrides)
        plain = plain_config(config if prepare is None else prepare(config, overrides))
        summary = run(plain, run_dir, command)
    except ConfigError as error:
        if not OmegaConf.select(config, "resume"):
            discard(run_dir)
        fail(str(as_typed(error, plain)), 2)
    except expected as error:
        fail(str(error), 1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        fail(f"{error.strerror} while writing {error.filename or run_dir}; what is there is whole", 1)
    show(summary, Console())
    print(run_dir.resolve(), flush=True)
    accuracy_last = summary["student"]["accuracy_last"]
    assert isinstance(accuracy_last, float)
    return accuracy_last


def refuse_new_keys(overrides: Sequence[str]) -> None:
    """Raise ConfigError for a key that is added to the top level, where nobody would read it."""
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+")
        known = (config_folder() / name).is_dir() or name in (*ONLY_DISTILL, *ONLY_SIMULATE)
        if re.fullmatch(r"\+\w+", key) and not known:
            raise ConfigError(key, value, "a key of the configuration (see --help); nothing reads a new one")


def discard(run_dir: Path) -> None:
    """Remove what Hydra put into the folder of a run that never began, and folders made for it that are empty then.

    Where another run was begun before, all stays: without what Hydra keeps, that run could not go on.
    """
    if is_begun(run_dir):
        return
    for handler in logging.getLogger().handlers:
        handler.close()
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for log_file in run_dir.glob("*.log"):
        log_file.unlink()
    if not any(run_dir.iterdir()):
        run_dir.rmdir()
        for parent in (run_dir.parent, run_dir.parent.parent):
            if parent != Path.cwd() and parent.name and not any(parent.iterdir()):
                parent.rmdir()


def command_line(name: str, job: Callable[[DictConfig], float]) -> None:
    """Run `job` on `conf/<name>.yaml` and the command line's overrides; one line and exit code 2 if they do not fit.

    Ctrl-C is one line as well, and exit code 130, SIGTERM 143; what the run has written stays.
    """
    # A full disk is told once, not for each line that no longer fits into the log.
    logging.raiseExceptions = False
    # Hydra would print its own errors over several lines and exit with 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    composing = ExitStack()

    @functools.wraps(job)
    def begin(config: DictConfig) -> float:
        composing.pop_all()  # what goes wrong from here on is the run's
        return job(config)

    program = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(begin)
    try:
        note_code()
        check_arguments(sys.argv[1:])
        # Behind an override, Hydra's parser would take what follows -m for something else.
        sys.argv[1:] = sorted(
            resumed(sys.argv[1:], name), key=lambda argument: argument not in ("-m", "--multirun")
        )
        with composing, sigterm_unwinds():
            composing.enter_context(readable())
            program()
    except Terminated:
        fail("terminated", TERMINATED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except ConfigError as error:
        fail(str(error), 2)
    except InstantiationException:
        raise  # of a job, and no mistake of the user's
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, ConfigError):
            fail(str(error.__cause__), 2)
        # What follows is advice to add a key, which nothing would read, or the search path.
        said = re.split(r"\s+To append to your|\s+Config search path", str(error))[0]
        advice = "" if said == str(error) else f" python -m fl_cmi.{name} --help shows all keys."
        fail(no_such_key(str(error), name) or unreadable(str(error)) or " ".join(said.split()) + advice, 2)


def no_such_key(said: str, name: str) -> str | None:
    """What Hydra says of a key that is not there, with those that are; None if it says something else."""
    found = re.match(r"Could not override '(?P<key>[\w.]+)'", said)
    if found is None:
        return None
    key = found["key"]
    given = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    value = next((a.partition("=")[2] for a in given if a.partition("=")[0] == key), "")
    try:
        others = [a for a in given if a.partition("=")[0] != key and not a.startswith("hydra.")]
        config: Any = compose_config(others, name)
        for part in key.split(".")[:-1]:
            config = config[part]
        there = ", ".join(sorted(name for name in config if not name.startswith("_")))
    except (ConfigError, HydraException, OmegaConfBaseException, KeyError, TypeError):
        return None
    return str(ConfigError(key, value, f"no such key; there are {there}"))


def unreadable(said: str) -> str | None:
    """What Hydra says of an override that its grammar does not take, in our words; None if it says something else."""
    if "hydra.cc/docs" not in said:
        return None
    stuck = re.search(r"at input '(.*?)'", said)
    parts = [argument for argument in sys.argv[1:] if "=" in argument]
    given = [a for a in parts if a in said] or [a for a in parts if stuck and stuck[1] in a]
    if len(given) != 1:
        return None
    key = given[0].partition("=")[0]
    return f"{given[0]}: a value that Hydra's grammar knows, or one in quotes: \"{key}='...'\""


def check_arguments(arguments: Sequence[str]) -> None:
    """Leave, or raise ConfigError, for an option or a choice that there is not: Hydra would say it in many lines."""
    options, unknown = get_args_parser().parse_known_args(list(arguments))
    for option in unknown:
        if option.startswith("-"):
            fail(f"{option}: key=value without dashes, -m for several runs, or --help", 2)
    for argument in arguments:
        if argument.startswith("hydra.run.dir="):
            check_folder(argument, new=not options.multirun and folder_to_resume(arguments) is None)
        key, equals, chosen = argument.partition("=")
        group = config_folder() / key.partition("@")[0].lstrip("+")
        if equals and key and group.is_dir():
            choices = sorted(path.stem for path in group.glob("*.yaml"))
            for value in chosen.split(","):
                if re.fullmatch(r"[\w.-]+", value) and value not in (*choices, "null"):
                    raise ConfigError(key, value, f"one of {', '.join(choices)}")


def check_folder(argument: str, new: bool) -> None:
    """Raise ConfigError for a run's folder that cannot be, before Hydra writes what a run there was called with.

    Args:
        argument: `hydra.run.dir=...`.
        new: Whether a run is to begin there.
    """
    folder = Path(argument.partition("=")[2].strip("\"'"))
    if folder.is_file():
        raise ConfigError("hydra.run.dir", folder, "a folder, new or of a run")
    if new:
        refuse_begun(folder)


def fail(message: str, code: int) -> NoReturn:
    """Say why in one line and leave."""
    print(f"fl_cmi: {message}", file=sys.stderr)
    sys.exit(code)
