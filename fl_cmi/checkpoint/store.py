"""Checkpoints on disk: all or nothing, checked when read, and never the only one."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fl_cmi.checkpoint.tree import Tree, pack, unpack
from fl_cmi.files import check_header, locked, settle, sha256_of, system_errors, whole

__all__ = ["Busy", "Damaged", "Generation", "Part", "Store", "seal"]

FORMAT = 1
GENERATIONS = 2
PATIENCE = 2.0  # seconds that a process which was killed may take to end
LONGEST_MANIFEST = 2**24


class Damaged(ValueError):  # noqa: N818 - what a checkpoint is
    """A checkpoint that is not what was written."""


class Busy(RuntimeError):  # noqa: N818 - what the folder is
    """Another process is at work in the folder."""


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint.

    Args:
        file: Its name; the first letters of the checksum are in it, so that a file never changes.
        sha256: Of its bytes.
        size: Its bytes.
    """

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Generation:
    """A checkpoint.

    Args:
        number: From 1.
        parts: Its files by what they hold; generations share those that did not change between them.
        about: Plain values.
    """

    number: int
    parts: Mapping[str, Part]
    about: Mapping[str, Any]


class Store:
    """A folder of checkpoints, the newest two.

    A generation is a manifest (`000012.json`, with checksums of its parts and of itself) and safetensors files. Every
    file is written as a draft, flushed to the disk, renamed, and its folder flushed; the manifest comes last. Nothing
    is ever unpickled. One process at a time.

    Args:
        folder: Made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[Generation] = []
        self._lock: IO[str] | None = None

    @property
    def holds_work(self) -> bool:
        """Whether a checkpoint of this process holds more than that the run has begun."""
        return any(generation.parts for generation in self.kept)

    def lock(self) -> None:
        """Keep other processes out until this one ends or closes the store.

        Raises:
            Busy: If another one is inside.
        """
        end = time.monotonic() + PATIENCE
        while self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "lock"
            try:
                file = path.open("w")
            except FileNotFoundError:  # the folder has just gone
                continue
            if locked(file) and still_there(file, path):
                self._lock = file
                return
            file.close()
            if time.monotonic() > end:
                raise Busy("another process is at work there")
            time.sleep(0.05)

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            # A process that was just forked may still have the file: closing it here would not be enough.
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def leave(self) -> None:
        """Let others in; without a checkpoint, nothing is left."""
        if self._lock is not None:
            self.unlock() if self.numbers() else self.remove()

    def write(self, name: str, tree: Tree) -> Part:
        """A part, for this generation and perhaps later ones.

        Raises:
            OSError: If it cannot be written; no draft is left.
        """
        self.lock()
        tensors, text = pack(tree)
        draft = self.folder / f".{name}.tmp"
        try:
            with system_errors(self.folder):
                save_file(tensors, draft, {"tree": text})
                sha, size = sha256_of(draft), draft.stat().st_size
                part = Part(f"{name}-{sha[:16]}.safetensors", sha, size)
                settle(draft, self.folder / part.file)
        finally:
            draft.unlink(missing_ok=True)
        return part

    def commit(self, parts: Mapping[str, Part], about: Mapping[str, Any]) -> Generation:
        """Make these parts the newest checkpoint, and forget the one before the last.

        Raises:
            OSError: If it cannot be written; the newest checkpoint is the one that was.
        """
        self.lock()
        newest = max([*self.numbers(), *(generation.number for generation in self.kept)], default=0)
        made = Generation(newest + 1, dict(parts), dict(about))
        body = {"format": FORMAT, "parts": {k: asdict(v) for k, v in parts.items()}, "about": made.about}
        text = json.dumps({"seal": seal(body), **body})
        with whole(self.manifest(made.number)) as draft:
            draft.write_text(text, encoding="utf-8")
        self.kept = [*self.kept, made][-GENERATIONS:]
        self.prune()
        return made

    def prune(self) -> None:
        """Remove what no kept generation needs."""
        needed = {"lock", *(self.manifest(g.number).name for g in self.kept)}
        needed |= {part.file for generation in self.kept for part in generation.parts.values()}
        for path in self.folder.iterdir():
            if path.name not in needed and path.is_file():
                path.unlink(missing_ok=True)

    def load(self, say: Callable[[str], None]) -> Generation | None:
        """The newest checkpoint that is whole, None where there is none of any kind; later ones are told of.

        Args:
            say: Hears a line for each damaged checkpoint.

        Raises:
            Damaged: If there are checkpoints and none is whole.
            Busy: If another process is at work there.
        """
        numbers = sorted(self.numbers(), reverse=True)
        if not numbers:
            return None
        self.lock()
        for number in numbers:
            try:
                found = self.read_manifest(number)
                for part in found.parts.values():
                    self.check(part)
            except (Damaged, OSError) as error:
                say(f"checkpoint {number} is damaged ({error}); looking for the one before")
                continue
            self.kept = [found]
            return found
        raise Damaged("no checkpoint there is whole")

    def read_manifest(self, number: int) -> Generation:
        """A generation as its manifest tells, checked against its seal."""
        path = self.manifest(number)
        if path.stat().st_size > LONGEST_MANIFEST:
            raise Damaged(f"{path.name} is too long")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            given = body.pop("seal")
            parts = {name: Part(**part) for name, part in body["parts"].items()}
            about, format_ = dict(body["about"]), body["format"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(f"{path.name} is no manifest") from None
        if given != seal(body):
            raise Damaged(f"{path.name} was changed")
        if format_ != FORMAT:
            raise Damaged(f"{path.name} has format {format_}, not {FORMAT}")
        return Generation(number, parts, about)

    def check(self, part: Part) -> None:
        """Raise Damaged unless the part's file is the one that was written."""
        path = self.folder / part.file
        if path.name != part.file or not path.is_file():
            raise Damaged(f"{part.file} is missing")
        if path.stat().st_size != part.size:
            raise Damaged(f"{part.file} has {path.stat().st_size} bytes, not {part.size}")
        if sha256_of(path) != part.sha256:
            raise Damaged(f"{part.file} was changed")

    def read(self, part: Part) -> Tree:
        """What the part holds.

        Raises:
            Damaged: If its file holds no packed tree, or tells of more bytes than it has.
        """
        path = self.folder / part.file
        try:
            check_header(path)
            with safe_open(path, "pt") as file:
                text = file.metadata()["tree"]
                return unpack({name: file.get_tensor(name) for name in file.keys()}, text)  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{part.file}: {error}") from error

    def numbers(self) -> list[int]:
        """Numbers of the generations that have a manifest, whole or not."""
        if not self.folder.is_dir():
            return []
        return [int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit()]

    def manifest(self, number: int) -> Path:
        """Where a generation's manifest is."""
        return self.folder / f"{number:06d}.json"

    def remove(self) -> None:
        """Remove the folder: the run is over."""
        # In this order nobody can get a lock on a file that is about to go.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.unlock()


def still_there(file: IO[str], path: Path) -> bool:
    """Whether the path is of this open file; a run that ends removes its own while others wait for it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def seal(body: Mapping[str, Any]) -> str:
    """Checksum (hex) of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
