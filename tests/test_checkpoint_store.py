"""Checkpoints on disk: two generations, each checked; drafts, locks and headers that promise too much."""

import errno
import fcntl
import json
import shutil
import struct
from pathlib import Path
from typing import IO

import pytest
import torch

import fl_cmi.checkpoint.store as module
from fl_cmi import files
from fl_cmi.checkpoint.store import Busy, Damaged, Part, Store
from fl_cmi.files import locked, sha256_of
from fl_cmi.flower.teacher_cache import alone

TREE = {"a": torch.arange(6.0), "n": 3}


def say_nothing(line: str) -> None:
    raise AssertionError(line)


def filled(folder: Path, generations: int = 2) -> Store:
    store = Store(folder)
    for number in range(generations):
        store.commit({"x": store.write("x", {**TREE, "n": number})}, {"round": number})
    store.unlock()
    return store


def test_the_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    store = Store(tmp_path)
    found = store.load(say_nothing)
    assert found is not None
    assert (found.number, found.about) == (4, {"round": 3})
    tree = store.read(found.parts["x"])
    assert tree["n"] == 3
    assert torch.equal(tree["a"], TREE["a"])
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["000003.json", "000004.json"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert not list(tmp_path.glob(".*"))


def test_parts_that_stay_are_shared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    lasting = store.write("lasting", TREE)
    for number in range(3):
        store.commit({"lasting": lasting, "x": store.write("x", number)}, {})
    assert len(list(tmp_path.glob("lasting-*"))) == 1
    assert store.write("lasting", TREE) == lasting


def test_going_on_from_the_older_one_never_reuses_a_number(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "000002.json").write_text("garbage")
    said: list[str] = []
    store = Store(tmp_path)
    found = store.load(said.append)
    assert found is not None
    assert found.number == 1
    assert len(said) == 1
    assert store.commit(found.parts, {}).number == 3
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["000001", "000003"]


def test_nothing_there_is_no_damage(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").load(say_nothing) is None
    assert not (tmp_path / "none").exists()


def test_a_lock_that_was_removed_is_not_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends removes its folder: who waited for it has a lock on a file that is there."""
    first, second = Store(tmp_path / "checkpoint"), Store(tmp_path / "checkpoint")
    first.lock()
    meanwhile = iter([first.remove])

    def late(file: IO[str]) -> bool:
        next(meanwhile, lambda: None)()
        return locked(file)

    monkeypatch.setattr(module, "locked", late)
    second.lock()
    with (tmp_path / "checkpoint" / "lock").open("w") as third:
        assert not locked(third)
        second.unlock()
        assert locked(third)


def test_a_folder_goes_before_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    first, second, remove = Store(tmp_path / "checkpoint"), Store(tmp_path / "checkpoint"), shutil.rmtree
    first.lock()

    def removing(folder: Path, ignore_errors: bool) -> None:
        with pytest.raises(Busy):
            second.lock()
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", removing)
    first.remove()
    assert list(tmp_path.iterdir()) == []
    second.lock()
    second.unlock()


def test_a_file_system_without_locks_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(file: IO[str], operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    files.tell_of_no_locks.cache_clear()
    monkeypatch.setattr(fcntl, "flock", none)
    store = filled(tmp_path)
    assert store.load(say_nothing) is not None
    store.unlock()
    with alone(tmp_path / "lock"):
        assert caplog.text.count("files cannot be locked here (No locks available)") == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"seal": 1}', "\0" * 100, '{"seal":"", "parts": {"x": 1}}']
)
def test_manifests_of_any_content_are_only_damaged(content: str, tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (tmp_path / "000001.json").write_text(content)
    with pytest.raises(Damaged):
        Store(tmp_path).load(lambda line: None)


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    store = filled(tmp_path / "in", 1)
    part = Part("../secret", sha256_of(tmp_path / "secret"), 1)
    with pytest.raises(Damaged, match="missing"):
        store.check(part)


def test_a_header_that_promises_more_than_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)

    def part_of(content: bytes) -> Part:
        path = tmp_path / "big.safetensors"
        path.write_bytes(content)
        return Part(path.name, sha256_of(path), len(content))

    huge = {
        "0": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        "__metadata__": {"tree": "1"},
    }
    header = json.dumps(huge).encode()
    for content in (
        struct.pack("<Q", len(header)) + header,
        struct.pack("<Q", 2**60) + header,
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"{}",
        b"abc",
        b"",
    ):
        part = part_of(content)
        store.check(part)
        with pytest.raises(Damaged):
            store.read(part)


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    filled(tmp_path)
    one, other = Store(tmp_path), Store(tmp_path)
    one.load(say_nothing)
    with pytest.raises(Busy):
        other.load(say_nothing)
    with pytest.raises(Busy):
        other.write("x", TREE)
    one.unlock()
    assert other.load(say_nothing) is not None


def test_what_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", full)
        with pytest.raises(OSError, match="No space"):
            store.write("x", {"n": 99})
        with pytest.raises(OSError, match="No space"):
            store.commit({}, {})
    assert not list(tmp_path.glob(".*"))
    store.unlock()
    found = Store(tmp_path).load(say_nothing)
    assert found is not None
    assert found.number == 2


def test_the_folder_goes_when_the_run_is_over(tmp_path: Path) -> None:
    store = filled(tmp_path / "in")
    store.remove()
    assert list(tmp_path.iterdir()) == []
