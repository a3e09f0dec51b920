"""Where data sets lie on disk, and what to say when they do not."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fl_cmi.types import ConfigError

__all__ = ["corrupt", "fetch", "root_folder"]

DEFAULT_ROOT = Path("~/.cache/fl_cmi")
"""Used when `data.root` is null: the same from any directory and in every process."""


def root_folder(root: str | None, download: bool) -> Path:
    """The folder that holds the data sets.

    Args:
        root: `data.root`; null for `DEFAULT_ROOT`.
        download: Whether the folder may still have to be created.

    Raises:
        ConfigError: If a named folder does not exist and nothing is to be downloaded into it, or if an
            argument is of another kind.
    """
    if not isinstance(download, bool):
        raise ConfigError("data.download", download, "true or false")
    if root is not None and not isinstance(root, str):
        raise ConfigError("data.root", root, "a folder, or null for ~/.cache/fl_cmi")
    folder = DEFAULT_ROOT.expanduser() if root is None else Path(root).expanduser()
    if root is not None and not download and not folder.is_dir():
        raise ConfigError("data.root", root, "no such folder; name an existing one or add data.download=true")
    return folder


def fetch(get: Callable[[], object], source: str) -> None:
    """Run a download; tell in one line what failed.

    Args:
        get: Downloads, verifies and unpacks.
        source: What is downloaded, for the message.

    Raises:
        ConfigError: If the network, the disk or the check sum says no.
    """
    try:
        get()
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError("data.download", True, f"could not fetch {source}: {reason}") from error


def corrupt(path: Path, fault: str) -> NoReturn:
    """Blame one file: `data.root=<path>: <fault>`."""
    raise ConfigError("data.root", str(path), f"{fault}; replace this file")
