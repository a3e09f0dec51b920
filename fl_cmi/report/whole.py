"""Files that are there as a whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["whole"]

RUSTS = re.compile(r"\(os error (\d+)\)")
"""How safetensors tells an error of the system."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft to write to: at the end it becomes `path`, on disk before it has the name; if anything fails, it is gone.

    A reader sees the old file or the new one, never a part, also after a loss of power.

    Args:
        path: The file; its folder is made where missing.

    Raises:
        OSError: Of the system, such as a full disk, with `path` as its file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because it tells matplotlib the format.
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except SafetensorError as error:
        found = RUSTS.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        draft.unlink(missing_ok=True)
