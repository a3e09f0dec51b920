"""What makes runs comparable: the model's digest, the versions, the commit; and JSON all or nothing."""

import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fl_cmi.files import whole
from fl_cmi.report.metrics import plain
from fl_cmi.types import State

__all__ = ["as_told", "commit", "digest", "json_safe", "note_code", "provenance", "versions", "write_json"]

DISTRIBUTIONS = ("fl_cmi", "torch", "torchvision", "flwr", "ray", "hydra-core", "numpy", "torchmetrics")
PACKAGE = Path(__file__).resolve().parents[1]


def digest(state: State) -> str:
    r"""Sha256 (hex) of a model: equal if and only if all names, dtypes, shapes and bits are.

    Over the names in sorted order: `name \0 dtype \0 shape \0`, in UTF-8, then the values' raw bytes in
    row-major order, little-endian. -0.0 and 0.0 differ; the dict's order, strides and device do not count.
    """
    assert sys.byteorder == "little", "the digest is defined on little-endian bytes"
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def note_code() -> None:
    """Read commit and versions now, for later: while a run is at work, others may commit, or install what is newer."""
    commit(), versions()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that its numbers depend on, as when the process began."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """The git commit of this package's own checkout, with `-dirty` if a tracked file has changed; else None.

    Read once in a process, whose modules are those of its start. A package installed into an environment inside someone
    else's work tree is not tracked there: None.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """What repeats a run: `seed`, `commit`, `versions` and `config`."""
    return {
        "seed": config["seed"],
        "commit": commit(),
        "versions": versions(),
        "config": json_safe(config),
    }


def as_told(value: Any) -> Any:
    """A configuration, or a part of one, as it comes back from a summary."""
    return json.loads(json.dumps(json_safe(value)))


def json_safe(value: Any) -> Any:
    """`value` with text in place of infinite numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: json_safe(part) for key, part in value.items()}
    if isinstance(value, list):
        return [json_safe(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON; a reader sees the old file or the whole new one, never a part.

    Raises:
        ValueError: A number is NaN or infinite; nothing is written.
    """
    text = json.dumps(plain(obj, path.stem), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _git(*arguments: str) -> str | None:
    """What git prints when run in the package's folder, None if it fails or is not there."""
    # GIT_DIR and its like, which git sets for hooks, would point to another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            # Without the flag, `status` would write the index, in the way of whoever works there.
            ["git", "--no-optional-locks", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
