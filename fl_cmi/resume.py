"""`resume=RUN_DIR` on a command line: the run's own arguments, in its own folder."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import ListConfig, OmegaConf
from yaml import YAMLError

from fl_cmi.compose import config_folder
from fl_cmi.types import ConfigError

__all__ = ["folder_to_resume", "resumed"]

OVERRIDES = Path(".hydra") / "overrides.yaml"
"""Where Hydra keeps what a run was called with."""

HYDRA = Path(".hydra") / "hydra.yaml"
"""And its own settings; the name of the configuration is that of the entry point."""


def resumed(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments of a run that goes on: those that it was begun with, then these, and its folder.

    What is given again counts, so that a key that differs is found by comparing configurations; a group that is chosen
    anew has other keys, so that those given before are dropped. Arguments without `resume=` come back as they are.

    Args:
        arguments: Of the command line.
        name: The entry point, as in `python -m fl_cmi.<name>`.

    Raises:
        ConfigError: For a folder in which no run was begun from a command line, or one of another entry point, or for
            several runs at once.
    """
    given = folder_to_resume(arguments)
    if given is None:
        return list(arguments)
    folder = Path(given.strip("\"'")).expanduser()
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigError("resume", given, "one run, without -m")
    try:
        found = OmegaConf.load(folder / OVERRIDES)
        if not isinstance(found, ListConfig):
            raise TypeError("Hydra writes a list")
        begun = [str(override) for override in found]
        settings = OmegaConf.load(folder / HYDRA) if (folder / HYDRA).is_file() else OmegaConf.create()
        program = OmegaConf.select(settings, "hydra.job.config_name", default=name)
    except (OSError, ValueError, TypeError, YAMLError):
        allowed = f"the folder of a run ({OVERRIDES} is not there, or not what Hydra writes)"
        raise ConfigError("resume", given, allowed) from None
    if program != name:
        raise ConfigError("resume", given, f"a run of fl_cmi.{name}; this is one of fl_cmi.{program}")
    here = {key_of(argument) for argument in arguments}
    anew = tuple(
        f"{key_of(argument)}." for argument in arguments if argument not in begun and chooses(argument)
    )
    before = [
        override
        for override in begun
        if key_of(override) not in here and not key_of(override).startswith(anew)
    ]
    own = ["hydra.run.dir", "hydra.output_subdir", "resume"]
    rest = [argument for argument in arguments if key_of(argument) not in own]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    place = [f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null", f"resume='{quoted}'"]
    return [*before, *rest, *place]


def folder_to_resume(arguments: Sequence[str]) -> str | None:
    """The value of `resume=` among a command's arguments; None where a run is to begin anew."""
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    return folders[-1] if folders and folders[-1] not in ("", "null") else None


def chooses(argument: str) -> bool:
    """Whether an override chooses a group's file."""
    return "=" in argument and (config_folder() / key_of(argument)).is_dir()


def key_of(argument: str) -> str:
    """What an override is about."""
    return argument.partition("=")[0].lstrip("+~").partition("@")[0] if "=" in argument else argument
