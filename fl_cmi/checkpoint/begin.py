"""How a run begins: anew in a folder of its own, or where a checkpoint leaves it."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_cmi.checkpoint.store import Busy, Damaged, Generation, Store
from fl_cmi.report.summary import as_told, note_code
from fl_cmi.types import ConfigError

__all__ = ["begin_or_resume", "differing", "is_begun", "refuse_begun"]

logger = logging.getLogger(__name__)

Config = dict[str, Any]

FOLDER = "checkpoint"
"""Within the run's folder."""

FREE = ("resume", "checkpoint", "backend", "client_timeout", "teacher_cache", "save_pool", "compression")
"""Keys that a run may go on with other values of: they do not change the student."""


MADE = {"compression": "; see python -m fl_cmi.compress run_dir={}", "save_pool": ""}
"""Those of them that ask for files, which a run that is over cannot make any more; and what can."""


def check_settings(config: Config) -> None:
    """Raise ConfigError for values of `resume` and `checkpoint` that make no sense."""
    settings = config["checkpoint"]
    most = {"rounds", "every", "keep"}
    if not isinstance(settings, dict) or not {"every", "keep"} <= set(settings) <= most:
        raise ConfigError("checkpoint", settings, "its keys, with values of their own")
    for key in ("rounds", "every"):
        value = settings.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"checkpoint.{key}", value, "an integer >= 1, or null for never")
    if not isinstance(settings["keep"], bool):
        raise ConfigError("checkpoint.keep", settings["keep"], "true or false")


def is_begun(run_dir: Path) -> bool:
    """Whether a run has left anything there that it could go on from, or its results."""
    return (run_dir / FOLDER).is_dir() or is_finished(run_dir)


def refuse_begun(run_dir: Path) -> None:
    """Raise ConfigError where a new run would come over one that was begun."""
    if is_begun(run_dir):
        allowed = f"a folder without a run, or resume={run_dir} to go on with the one that is there"
        raise ConfigError("hydra.run.dir", run_dir, allowed)


def is_finished(run_dir: Path) -> bool:
    """Whether a run has left all its results there."""
    begun = (run_dir / FOLDER).is_dir()
    return (run_dir / "integrity.json").is_file() or (not begun and (run_dir / "summary.json").is_file())


def finished(run_dir: Path, config: Config) -> dict[str, Any]:
    """The summary of a run that is over, when somebody wants it to go on.

    Raises:
        ConfigError: If it was a run of another configuration, if it is to have made more than it made, or if its
            summary cannot be read.
    """
    try:
        summary = dict(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))
        there = dict(summary["config"])
    except (OSError, ValueError, KeyError, TypeError):
        allowed = "a run that can go on, or a finished one, but its summary.json is missing or broken"
        raise ConfigError("resume", run_dir, allowed) from None
    check_same(there, config, run_dir)
    for key, instead in MADE.items():
        wanted = as_told(config.get(key))
        if wanted and wanted != there.get(key):
            name = wanted["_target_"].rsplit(".", 1)[-1] if isinstance(wanted, dict) else "true"
            raise ConfigError(key, name, f"what it was, because the run is over{instead.format(run_dir)}")
    logger.warning("resume: the run is finished; there is nothing to do")
    return summary


def open_store(config: Config, run_dir: Path, resume: bool) -> tuple[Store, Generation | None]:
    """The store of a run, locked, and the checkpoint to go on from, if any.

    Raises:
        ConfigError: For a new run where another one was begun; for one of another configuration, without a whole
            checkpoint, or that is running.
    """
    store = Store(run_dir / FOLDER)
    key, wanted = "resume", "a run that can go on"
    if not resume:
        refuse_begun(run_dir)
        key, wanted = "hydra.run.dir", "a folder without a run"
    try:
        store.lock()  # also where there is no checkpoint yet: a run may be at work on its first one
        found = store.load(lambda line: logger.warning("resume: %s", line))
    except (Damaged, Busy) as error:
        raise ConfigError(key, run_dir, f"{wanted}, but {error}") from None
    if is_finished(run_dir):  # while the lock was waited for
        store.leave()
        raise ConfigError(key, run_dir, f"{wanted}, and this one has just ended")
    if not resume:
        return store, None
    if found is None:
        logger.warning("resume: there is no checkpoint yet; the run starts from the beginning")
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        return store, None
    try:
        check_same(found.about["config"], config, run_dir)
    except ConfigError:
        store.unlock()
        raise
    return store, found


def begin_or_resume(
    config: Config, run_dir: Path, carry_on: Callable[[Config, Store, Generation | None], dict[str, Any]]
) -> dict[str, Any]:
    """A run from its beginning, or with `resume` from its newest checkpoint; of one that is over, the summary.

    Args:
        config: Its `resume` is for here alone: `carry_on` gets null.
        run_dir: The run's folder.
        carry_on: Does the work, and returns the summary.

    Raises:
        ConfigError: As `check_settings`, `finished` and `open_store`.
    """
    note_code()
    check_settings(config)
    resume, config = bool(config["resume"]), {**config, "resume": None}
    if resume and is_finished(run_dir):
        return finished(run_dir, config)
    store, start = open_store(config, run_dir, resume)
    try:
        return carry_on(config, store, start)
    except ConfigError:
        if start is None and not store.holds_work:
            withdraw(store, run_dir)
        raise
    finally:
        store.leave()


def withdraw(store: Store, run_dir: Path) -> None:
    """Leave nothing of a run that could not begin, so that the command can be given again, mended."""
    (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    store.remove()
    with suppress(OSError):  # what others keep there stays
        run_dir.rmdir()


def check_same(there: Config, here: Config, run_dir: Path) -> None:
    """Raise ConfigError, naming the keys, where a run that is to go on was begun with another configuration."""
    differ = differing(there, here)
    if differ:
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        allowed = f"the configuration that it was begun with; it differs in {', '.join(differ[:5])}{more}"
        raise ConfigError("resume", run_dir, allowed)


def differing(there: Config, here: Config) -> list[str]:
    """Keys in which two configurations differ, with both values, but for those that are free."""
    old, new = (dict(leaves(as_told(config), "")) for config in (there, here))
    missing = object()
    keys = [key for key in {**old, **new} if old.get(key, missing) != new.get(key, missing)]
    return [
        f"{key} ({old.get(key, 'nothing')} there, {new.get(key, 'nothing')} here)"
        for key in keys
        if key.partition(".")[0] not in FREE
    ]


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value inside a configuration with its key."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
