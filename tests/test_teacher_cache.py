"""Teachers trained once: a run that finds them is the same run, and only what determines them counts."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from test_resume import cut_off

import fl_cmi.flower.client
import fl_cmi.flower.teacher_cache
import fl_cmi.simulate
from fl_cmi.compose import compose_config, dataset, make_partition, server_side
from fl_cmi.flower.records import ARRAYS, to_record
from fl_cmi.flower.teacher_cache import TeacherCache, code_digest, plain_first
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError

PLAIN = (
    "data=synthetic",
    "model.width=2",
    "num_clients=3",
    "local.epochs=1",
    "server_threads=1",
    "backend=local",
)
TINY = (
    *PLAIN,
    "synthesizer.batch_size=4",
    "synthesizer.inversion.steps=1",
    "synthesizer.inversion.source.generator.width=4",
    "schedule={epochs:1,batches:1,steps:1,evaluate_every:1}",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clients that trained, in runs that leave no pictures."""
    clients: list[int] = []
    images = fl_cmi.flower.client.client_images

    def counted(*arguments: Any) -> Any:
        clients.append(arguments[-1])
        return images(*arguments)

    monkeypatch.setattr(fl_cmi.flower.client, "client_images", counted)
    monkeypatch.setattr(fl_cmi.simulate, "write_results", lambda *_: None)
    monkeypatch.setattr(fl_cmi.simulate, "write_integrity", lambda *_: None)
    monkeypatch.setattr(fl_cmi.simulate, "partition_heatmap", lambda *_: None)
    return clients


def simulate(folder: Path, *overrides: str, tiny: tuple[str, ...] = PLAIN) -> dict[str, Any]:
    return run(compose_config([*tiny, *overrides]), folder)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = ("student", "digest", "bytes", "clients", "ensemble", "average", "synthetic", "own_tests")
    return {key: one[key] for key in keys} == {key: other[key] for key in keys}


def test_a_hit_is_the_same_run_without_training(tmp_path: Path, asked: list[int]) -> None:
    cache = f"teacher_cache={tmp_path / 'cache'}"
    without, stored, hit = (
        simulate(tmp_path / name, "rounds=2", *more, tiny=TINY)
        for name, more in (("a", []), ("b", [cache]), ("c", [cache]))
    )
    # Only the first round is known.
    assert asked == [0, 1, 2] * 5
    assert same(without, stored)
    assert same(without, hit)
    assert [found["teacher_cache"] for found in (without, stored, hit)] == [None, "stored", "hit"]
    assert not list((tmp_path / "cache").glob(".*"))
    # Another strategy from the same clients: they are not trained again, and their bytes count all the same.
    average, known = (
        simulate(tmp_path / name, "strategy=fedavg", *more) for name, more in (("d", []), ("e", [cache]))
    )
    assert asked[15:] == [0, 1, 2]
    assert same(average, known)
    assert known["teacher_cache"] == "hit"
    assert known["seconds"]["local"] == 0.0 < average["seconds"]["local"]
    assert known["bytes"]["up"] > 0
    # What strategies tell clients counts.
    assert simulate(tmp_path / "f", "strategy=fedprox", cache)["teacher_cache"] == "stored"


def test_a_damaged_file_means_asking_again(tmp_path: Path, asked: list[int]) -> None:
    options = ("strategy=fedavg", f"teacher_cache={tmp_path / 'cache'}")
    first = simulate(tmp_path / "a", *options)
    path = sorted((tmp_path / "cache").glob("*.safetensors"))[1]
    good = path.read_bytes()
    for number, damaged in enumerate((good[:-9], good[:-1] + bytes([good[-1] ^ 1]), b"", None)):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        asked.clear()
        again = simulate(tmp_path / str(number), *options)
        assert len(asked) == 1
        assert again["teacher_cache"] == "stored"
        assert same(first, again)
    assert simulate(tmp_path / "last", *options)["teacher_cache"] == "hit"


@pytest.mark.usefixtures("asked")
def test_a_run_that_goes_on_tells_what_became_of_round_1(tmp_path: Path) -> None:
    config = compose_config([*PLAIN, "strategy=fedavg", "rounds=3", f"teacher_cache={tmp_path / 'cache'}"])
    for status in ("stored", "hit"):
        folder = tmp_path / status
        assert cut_off(config, folder, commits=2)  # the beginning, and round 1
        assert run({**config, "resume": str(folder)}, folder)["teacher_cache"] == status


def cache_of(folder: Path, *overrides: str) -> TeacherCache:
    config = compose_config([*PLAIN, "strategy=fedavg", *overrides])
    data = dataset(config)
    partition = make_partition(config, data)
    side = server_side(config, data, Progress(quiet=True), MetricsLog(folder / "log"), partition)
    return TeacherCache(str(folder), config, partition, data, side)


def message_of(cache: TeacherCache, kind: str = MessageType.TRAIN, **settings: float) -> Message:
    config = ConfigRecord({"server-round": 1, **settings})
    arrays = to_record(cache.side.student().state_dict())
    return Message(RecordDict({ARRAYS: arrays, "config": config}), 0, kind)


def key_of(folder: Path, *overrides: str, client: int = 0, **settings: float) -> str:
    cache = cache_of(folder, *overrides)
    return cache.key(client, message_of(cache, **settings))


COUNTS = [
    "seed=1",
    "local.epochs=2",
    "model.width=3",
    "partition.alpha=0.2",
    "num_clients=4",
    "share_label_counts=false",
    "client_threads=2",
    "data.seed=1",
    "local.start=scratch",
    "partition=feature_noise partition.noise=0.1",
    "partition=feature_noise partition.noise=0.2",
    "strategy=fed_cmi_moments",
    "strategy=fed_cmi_moments strategy.client.batch_size=3",
]
DOES_NOT = ["rounds=3", "combine=mean_logits", "server_threads=2", "save_pool=true", "backend=ray"]


def test_what_determines_a_teacher_is_its_key(tmp_path: Path) -> None:
    # Noise is the last client's.
    keys = [key_of(tmp_path, *change.split(), client=2) for change in ("", *COUNTS)]
    keys += [key_of(tmp_path), key_of(tmp_path, **{"proximal-mu": 0.1})]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("change", DOES_NOT)
def test_nothing_else_is_in_its_key(tmp_path: Path, change: str) -> None:
    assert key_of(tmp_path) == key_of(tmp_path, change)


def test_teachers_from_scratch_do_not_depend_on_the_servers_model(tmp_path: Path) -> None:
    fixed = "teachers.architectures=[{_target_:fl_cmi.models.convnet.ConvNet,_partial_:true,width:2}]"
    scratch = key_of(tmp_path, "local.start=scratch", fixed)
    assert scratch == key_of(tmp_path, "local.start=scratch", fixed, "model.width=4")
    assert scratch != key_of(tmp_path, "local.start=scratch", fixed.replace("2}", "3}"))


def test_a_change_of_the_code_is_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(tmp_path)
    monkeypatch.setattr(fl_cmi.flower.teacher_cache, "CODE", ("training.py",))
    assert key_of(tmp_path) != before


def test_all_code_is_known_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of a cluster must agree on all of it, of whatever method."""
    (tmp_path / "federated").mkdir()
    module = tmp_path / "federated" / "scaffold.py"
    module.write_text("rate = 1")
    monkeypatch.setattr(fl_cmi.flower.teacher_cache, "PACKAGE", tmp_path)
    before = code_digest(["."])
    module.write_text("rate = 2")
    assert code_digest(["."]) != before


def test_only_plain_messages_of_the_first_round_are_answered(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    assert plain_first(message_of(cache))
    assert not plain_first(message_of(cache, **{"server-round": 2}))
    assert not plain_first(message_of(cache, MessageType.QUERY))
    more = message_of(cache)
    more.content["generator"] = to_record({})
    assert not plain_first(more)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["strategy=scaffold", "local.optimizer.momentum=0"], "clients do more than plain training"),
        (["strategy=fedavg", "local.start=own"], "clients keep their own models"),
        (["strategy=fedavg", "buffers=keep_local"], "clients keep a part of their models"),
    ],
)
def test_clients_that_do_more_are_asked(tmp_path: Path, overrides: list[str], why: str) -> None:
    cache = cache_of(tmp_path, *overrides)
    messages = {0: message_of(cache), 1: message_of(cache)}
    sent: list[Message] = []
    assert cache(messages, lambda these: sent.extend(these) or these) == list(messages.values())
    assert sent == list(messages.values())
    assert cache.status == f"bypassed, because {why}"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_cache_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TeacherCache, "write", full)
    assert simulate(tmp_path / "run", "strategy=fedavg", f"teacher_cache={tmp_path}/cache")["digest"]
    assert "teacher_cache: a client is not kept (No space left on device)" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fl_cmi.flower.teacher_cache, "TemporaryFile", denied)
    with pytest.raises(ConfigError, match=r"teacher_cache=.*a folder to write to \(Permission denied\)"):
        cache_of(tmp_path)


def test_a_folder_that_cannot_be_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="teacher_cache=.*a folder to write to"):
        cache_of(tmp_path / "file")
    with pytest.raises(ConfigError, match="a folder, or null"):
        simulate(tmp_path / "run", "strategy=fedavg", "teacher_cache=3")
