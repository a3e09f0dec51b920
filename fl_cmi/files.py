"""Files that are there as a whole or not at all, locks, checksums, and safetensors that may be damaged."""

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

__all__ = ["check_header", "locked", "settle", "sha256_of", "system_errors", "whole"]

logger = logging.getLogger(__name__)

RUSTS = re.compile(r"\(os error (\d+)\)")
"""How safetensors tells an error of the system."""

LONGEST_HEADER = 100 * 10**6  # bytes; safetensors' own limit


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
        with system_errors(path):
            yield draft
            settle(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Inside, errors of the system tell of `path`, also those that safetensors has in words of its own."""
    try:
        yield
    except SafetensorError as error:
        found = RUSTS.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def settle(draft: Path, path: Path) -> None:
    """Give a draft its name once its bytes are on the disk, and flush the folder that knows the name."""
    flush(draft)
    draft.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def locked(file: IO[str], wait: bool = False) -> bool:
    """Whether this process has the file to itself from now on; also where the file system has no locks, which is told.

    Args:
        file: Open; closing it gives the lock back.
        wait: Until others have given it back; else they are the one reason for False.
    """
    import fcntl  # not on Windows, where everything else of this module works

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        tell_of_no_locks(str(error.strerror))
    return True


@functools.cache
def tell_of_no_locks(reason: str) -> None:
    """Warn, once in a process."""
    logger.warning(
        "files cannot be locked here (%s): see to it yourself that no two runs share a folder", reason
    )


def sha256_of(path: Path) -> str:
    """Checksum (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_header(path: Path) -> None:
    """Look at a safetensors file before any memory is set aside for it.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it promises more than it holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError("its header would be longer than the file")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            beyond = any(not isinstance(end, int) or end > size - 8 - length for end in ends)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise ValueError("not a safetensors header") from None
    if beyond:
        raise ValueError("tensors would be larger than the file")
