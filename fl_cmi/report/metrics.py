"""Every number of a run by name, one JSON object per line."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["MetricsLog", "plain"]


def plain(value: Any, name: str) -> Any:
    """`value` in JSON's own types: numpy and torch scalars become numbers, arrays and tuples become lists.

    Args:
        value: A number, text, None, numpy or torch value, or lists and dicts of these.
        name: What to call it in an error; the parts of a list or dict are called `name.part`.

    Raises:
        ValueError: A number is NaN or infinite; JSON has neither, and a silent null would hide it.
        TypeError: The type is none of these.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: a finite number (or None where there is none)")
        return float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(part, f"{name}.{place}") for place, part in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): plain(part, f"{name}.{key}") for key, part in value.items()}
    raise TypeError(f"{name}={value!r}: a {type(value).__name__} has no place in JSON")


class MetricsLog:
    """An append-only log of events, such as `{"event": "evaluate", "round": 1, "accuracy": 0.81}`.

    Each line is on disk when `write` returns, so a run that dies leaves all it knew.

    Args:
        path: The file, made with its folder at the first event.

    Attributes:
        muted: Whether events are passed over, because an earlier process has written them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.muted = False

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Raises:
            ValueError: A field is NaN or infinite; the message names it and nothing is written.
            OSError: Such as a full disk; nothing is written.
        """
        row = {"event": event} | {name: plain(value, f"{event}.{name}") for name, value in fields.items()}
        line = json.dumps(row, allow_nan=False, ensure_ascii=False)
        if self.muted:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(f"{line}\n".encode())
                while left:
                    left = left[file.write(left) :]
            except OSError as error:  # a full disk may have taken a part
                file.truncate(size)
                raise OSError(error.errno, error.strerror, str(self.path)) from error

    def settled(self) -> tuple[int, str]:
        """Bytes written so far, which are on the disk when this returns, and their checksum."""
        if not self.path.exists():
            return 0, hashlib.sha256().hexdigest()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            content = file.read()
        return len(content), hashlib.sha256(content).hexdigest()

    def truncate(self, length: int, checksum: str) -> bool:
        """Forget what was written after the first `length` bytes; False, and nothing done, where these are others."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if len(content) < length or hashlib.sha256(content[:length]).hexdigest() != checksum:
            return False
        if len(content) > length:
            os.truncate(self.path, length)
        return True

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All events of a file, in the order in which they happened.

        Raises:
            ValueError: A line is no JSON object; the message names the file and the line.
        """
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not a JSON object ({error.msg})") from error
        return rows
