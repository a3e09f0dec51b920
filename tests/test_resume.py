"""Whole runs that end in the middle, and go on: the same student, the same rows; and what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import call_main, complaint
from test_simulate import TINY

import fl_cmi.checkpoint.run as run_module
import fl_cmi.flower.rounds as rounds_module
import fl_cmi.simulate
from fl_cmi import files
from fl_cmi.checkpoint.begin import differing
from fl_cmi.checkpoint.run import Checkpoints
from fl_cmi.checkpoint.store import Store
from fl_cmi.compose import compose_config
from fl_cmi.flower.local_backend import LocalBackend, LocalGrid
from fl_cmi.report import summary
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.resume import resumed
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError

pytestmark = pytest.mark.usefixtures("without_pictures")

SCHEDULE = "schedule={epochs:2,batches:1,steps:2,evaluate_every:1}"
FED_CMI = (SCHEDULE, "rounds=2", "checkpoint.every=1")

CASES = {
    "fed_cmi": (*FED_CMI, "strategy.keep_pool=true", "on_client_failure=drop", "clients_per_round=3"),
    "cmi": (
        *FED_CMI,
        "synthesizer=cmi",
        "distiller=crd",
        "combine=learnt_weights",
        "synthesizer.batch_size=16",
        "synthesizer.inversion.steps=2",
        "synthesizer.inversion.source.generator.width=4",
        "synthesizer.inversion.contrast.bank_size=64",
    ),
    "scaffold": ("strategy=scaffold", "rounds=3"),
    "own": ("strategy=feddistill", "local.start=own", "rounds=3", "checkpoint.every=1"),
    "fedavgm": ("strategy=fedavgm", "rounds=3"),
    "fedadam": ("strategy=fedadam", "rounds=3", "checkpoint.every=2"),
    "fednova": ("strategy=fednova", "strategy.server_momentum=0.5", "rounds=3"),
    "keep_local": ("strategy=fedavg", "buffers=keep_local", "rounds=3", "own_tests=true", "evaluate_every=2"),
    "recalibrate": ("strategy=fedavg", "buffers=recalibrate", "rounds=3"),
    "fedgen": ("strategy=fedgen", "model=fedgen", "rounds=3"),
    "last_visit": (
        "strategy=fedavg",
        "local.round_decay=0.5",
        "local.decay_by=last_visit",
        "clients_per_round=2",
        "rounds=4",
    ),
    "feddf": ("strategy=feddf", "held_out=60", "strategy.stopping={steps:2,check_every:1}", "rounds=3"),
    "fed_ensemble": ("strategy=fed_ensemble", "rounds=3"),
}


class CutOffError(BaseException):
    """The end of the process."""


def config_of(*overrides: str) -> dict[str, Any]:
    kept = [given for given in TINY if not (given == "model.width=4" and "model=fedgen" in overrides)]
    return compose_config([*kept, "backend=local", *overrides])


def rows(folder: Path) -> list[dict[str, Any]]:
    return MetricsLog.read(folder / "metrics.jsonl")


def cut_after(commits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process when so many checkpoints have been written, counted from now."""
    commit, done = Checkpoints.commit, 0

    def counted(self: Checkpoints, *given: Any, **about: Any) -> bool:
        nonlocal done
        worked = commit(self, *given, **about)
        done += 1
        if done == commits:
            raise CutOffError
        return worked

    monkeypatch.setattr(Checkpoints, "commit", counted)


def cut_off(config: dict[str, Any], folder: Path, commits: int) -> bool:
    """A run, or the rest of one, that ends after so many checkpoints; False where it came to its end before."""
    with pytest.MonkeyPatch.context() as patch:
        cut_after(commits, patch)
        try:
            run(config, folder)
        except CutOffError:
            return True
    return False


QUICK = ("fed_cmi", "scaffold")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_run_cut_off_at_every_checkpoint_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    config = config_of(*CASES[name])
    whole = run(config, tmp_path / "whole")
    folder = tmp_path / "cut"
    assert cut_off(config, folder, 1)
    again, cuts = {**config, "resume": str(folder)}, 1
    while cut_off(again, folder, 1):
        cuts += 1
        assert cuts < 100
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["digest"] == whole["digest"]
    assert rows(folder) == rows(tmp_path / "whole")
    assert cuts >= 3
    for key in ("student", "clients", "bytes", "failures", "teacher_passes", "own_tests", "synthetic"):
        assert summary[key] == json.loads(json.dumps(whole[key])), key
    assert summary["config"] == json.loads(json.dumps(whole["config"]))
    assert not (folder / "checkpoint").exists()


def test_what_was_lost_since_the_checkpoint_is_done_again(tmp_path: Path) -> None:
    """Without checkpoints in a round, a run that ends within the last one repeats it."""
    config = config_of(SCHEDULE, "rounds=2")
    whole = run(config, tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fl_cmi.simulate, "measure", die)
        with pytest.raises(CutOffError):
            run(config, folder)
    assert rows(folder) == rows(tmp_path / "whole")[:-1]
    assert run({**config, "resume": str(folder)}, folder)["digest"] == whole["digest"]
    assert rows(folder) == rows(tmp_path / "whole")


def die(*given: Any) -> Any:
    raise CutOffError


HALF = ("strategy=fedavg", "rounds=4")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run as it came to its end, `whole`, and as it was cut off with two checkpoints at least, `cut`."""
    folder = tmp_path_factory.mktemp("begun")
    run(config_of(*HALF), folder / "whole")
    assert cut_off(config_of(*HALF), folder / "cut", 3)
    return folder


@pytest.fixture
def again(begun: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration by which the run that was cut off goes on, in `tmp_path`."""
    shutil.copytree(begun / "cut", tmp_path, dirs_exist_ok=True)
    return {**config_of(*HALF), "resume": str(tmp_path)}


@pytest.mark.parametrize(("rounds", "kept"), [("1", [1, 2, 3]), ("2", [2]), ("null", [])])
def test_a_checkpoint_is_of_every_so_many_rounds(
    rounds: str, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, found = Checkpoints.commit, []

    def seen(self: Checkpoints, *given: Any, **about: Any) -> bool:
        found.append(about.get("round", 0))
        return commit(self, *given, **about)

    monkeypatch.setattr(Checkpoints, "commit", seen)
    run(config_of("strategy=fedavg", "rounds=4", f"checkpoint.rounds={rounds}"), tmp_path)
    assert found == [0, *kept], "the beginning of the run, and rounds that are not the last"


def damage_newest(folder: Path, how: Callable[[Path], object], pattern: str) -> None:
    newest = max((folder / "checkpoint").glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    how(newest)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated part": (lambda p: os.truncate(p, p.stat().st_size // 2), "server-*"),
    "a flipped byte": (lambda p: p.write_bytes(p.read_bytes()[:-9] + b"!" + p.read_bytes()[-8:]), "server-*"),
    "a missing part": (lambda p: p.unlink(), "server-*"),
    "half a manifest": (lambda p: os.truncate(p, p.stat().st_size // 2), "*.json"),
    "a changed manifest": (
        lambda p: p.write_text(p.read_text().replace('"round": 2', '"round": 3')),
        "*.json",
    ),
    "no manifest": (lambda p: p.unlink(), "*.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    name: str, begun: Path, again: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage_newest(tmp_path, *DAMAGES[name])
    whole = json.loads((begun / "whole" / "summary.json").read_text())
    assert run(again, tmp_path)["digest"] == whole["digest"]
    assert rows(tmp_path) == rows(begun / "whole")
    if name != "no manifest":
        assert "is damaged" in caplog.text
        assert "looking for the one before" in caplog.text


def test_damage_everywhere_is_refused(again: dict[str, Any], tmp_path: Path) -> None:
    for path in (tmp_path / "checkpoint").glob("*.json"):
        path.write_text("{}")
    with pytest.raises(ConfigError, match="no checkpoint there is whole"):
        run(again, tmp_path)


def test_a_changed_configuration_is_refused_and_the_keys_are_named(
    again: dict[str, Any], tmp_path: Path
) -> None:
    changed = {**again, "seed": 5, "local": {**again["local"], "epochs": 3}}
    with pytest.raises(ConfigError, match="seed .0 there, 5 here.") as caught:
        run(changed, tmp_path)
    assert "local.epochs (2 there, 3 here)" in str(caught.value)
    carried = {**again, "save_pool": True, "checkpoint": {"rounds": 2, "every": 5, "keep": True}}
    assert differing(again, carried) == []
    run({**carried, "save_pool": False}, tmp_path)  # an average has no pool
    assert (tmp_path / "checkpoint").is_dir()


def test_another_log_is_refused(again: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().replace("partition", "portition"))
    with pytest.raises(ConfigError, match="metrics.jsonl is as it was written"):
        run(again, tmp_path)


def test_a_run_is_not_begun_over_another_one(again: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="or resume="):
        run({**again, "resume": None}, tmp_path)


def test_a_command_that_is_repeated_leaves_the_run_resumable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = [*TINY, "backend=local", "strategy=fedavg", "rounds=2", "hydra.run.dir=run"]
    with pytest.MonkeyPatch.context() as patch:
        cut_after(2, patch)
        with pytest.raises(CutOffError):
            call_main(fl_cmi.simulate.main, patch, *begun)
    assert call_main(fl_cmi.simulate.main, monkeypatch, *begun) == 2
    kept = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    assert call_main(fl_cmi.simulate.main, monkeypatch, *begun, "rounds=3") == 2
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == kept
    capsys.readouterr()
    assert call_main(fl_cmi.simulate.main, monkeypatch, "resume=run") == 0
    results = rows(folder / "run")
    # Nor is a finished run mixed with a new one, or taken for it when that one is killed.
    assert call_main(fl_cmi.simulate.main, monkeypatch, *begun) == 2
    assert "hydra.run.dir" in capsys.readouterr().err
    assert rows(folder / "run") == results
    assert call_main(fl_cmi.simulate.main, monkeypatch, "resume=run") == 0


def test_resources_that_are_not_there_leave_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_few(*given: Any, **more: Any) -> None:
        raise ConfigError("backend.num_actors", 99, "at most 2")

    begin = [*TINY, "backend=local", "strategy=fedavg", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "run", too_few)
        assert call_main(fl_cmi.simulate.main, patch, *begin) == 2
    assert "backend.num_actors=99: at most 2" in complaint(capsys.readouterr().err)
    assert list(folder.iterdir()) == []
    assert call_main(fl_cmi.simulate.main, monkeypatch, *begin) == 0


def test_a_late_mistake_leaves_what_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, rounds = LocalGrid.send_and_receive, []

    def once(self: LocalGrid, messages: Any, **more: Any) -> Any:
        rounds.append(1)
        if len(rounds) == 2:
            raise ConfigError("backend.address", "there", "machines with the same software")
        return send(self, messages, **more)

    config = config_of("strategy=fedavg", "rounds=2")
    with monkeypatch.context() as patch:
        patch.setattr(LocalGrid, "send_and_receive", once)
        with pytest.raises(ConfigError, match="same software"):
            run(config, tmp_path)
    assert run({**config, "resume": str(tmp_path)}, tmp_path)["rounds"] == 2
    assert [row["round"] for row in rows(tmp_path) if row["event"] == "round"] == [1, 2]


def test_a_broken_summary_is_told_of(tmp_path: Path) -> None:
    config = {**config_of("strategy=fedavg"), "resume": str(tmp_path)}
    (tmp_path / "integrity.json").touch()
    for content in ("", "[]", '{"seed": 1}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(ConfigError, match="missing or broken"):
            run(config, tmp_path)


def test_a_state_that_no_checkpoint_holds_costs_the_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rounds_module, "strategy_state", lambda strategy, scene: {"odd": {1, 2}})
    run(config_of("strategy=fedavg", "rounds=2"), tmp_path)
    assert "no checkpoints of this run: a set has no place in a checkpoint" in caplog.text


def test_clients_that_were_asked_again_are_still_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = LocalGrid.send_and_receive

    def once_more(self: LocalGrid, messages: Any, **more: Any) -> Any:
        assert self.on_retry is not None
        self.on_retry(0, "died", "its process died")
        return send(self, messages, **more)

    monkeypatch.setattr(LocalGrid, "send_and_receive", once_more)
    config = config_of(*FED_CMI)
    whole = run(config, tmp_path / "whole")
    assert [failure["round"] for failure in whole["failures"]] == [1, 2]
    assert cut_off(config, tmp_path / "cut", commits=2)  # the replies of round 1
    again = run({**config, "resume": str(tmp_path / "cut")}, tmp_path / "cut")
    assert again["failures"] == whole["failures"]
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_run_that_ends_while_it_is_waited_for_keeps_what_it_wrote(
    again: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / "metrics.jsonl").read_bytes()
    lock = Store.lock

    def late(store: Store) -> None:
        (tmp_path / "integrity.json").write_text("{}")
        shutil.rmtree(store.folder)
        lock(store)

    monkeypatch.setattr(Store, "lock", late)
    with pytest.raises(ConfigError, match=r"^resume=.*: a run that can go on, and this one has just ended"):
        run(again, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "checkpoint").exists()


def test_another_commit_is_told_of(
    again: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "commit", lambda: "0123abc")
        run(again, tmp_path)
    assert re.search(r"resume: the code was \S+ and is 0123abc", caplog.text)


def test_a_commit_made_meanwhile_is_not_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        head = "b" if (tmp_path / "metrics.jsonl").exists() else "a"
        return head * 40 if arguments[0] == "rev-parse" else ""

    monkeypatch.setattr(summary, "_git", git)
    summary.commit.cache_clear()
    try:
        assert run(config_of("strategy=fedavg", "rounds=2"), tmp_path)["commit"] == "a" * 40
    finally:
        summary.commit.cache_clear()


def test_another_device_is_told_of(
    again: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        there = run_module.surroundings({"device": "cpu"}) | {"the device": "NVIDIA H200"}
        patch.setattr(run_module, "surroundings", lambda config: there)
        run(again, tmp_path)
    assert "resume: the device was cpu and is NVIDIA H200" in caplog.text


def test_a_run_at_work_is_left_alone(again: dict[str, Any], tmp_path: Path) -> None:
    other = Store(tmp_path / "checkpoint")
    other.lock()
    with pytest.raises(ConfigError, match="another process"):
        run(again, tmp_path)
    other.unlock()


def test_a_folder_is_taken_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_cmi.checkpoint.store.PATIENCE", 0.0)
    monkeypatch.setattr("fl_cmi.checkpoint.begin.is_begun", lambda run_dir: False)  # both begin at once
    other = Store(tmp_path / "checkpoint")
    other.lock()
    with pytest.raises(
        ConfigError, match=r"^hydra\.run\.dir=.*: a folder without a run, but another process"
    ):
        run(config_of("strategy=fedavg"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    other.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of("strategy=fedavg")
    first = run(config, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run({**config, "resume": str(tmp_path)}, tmp_path)["digest"] == first["digest"]
    assert "nothing to do" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match="differs in seed"):
        run({**config, "resume": str(tmp_path), "seed": 1}, tmp_path)
    # What would have to be made anew is not passed over.
    low_bit = {"compression": config_of("compression=w4a8")["compression"]}
    for more, said in (
        (low_bit, "compression=LowBit: .* fl_cmi.compress"),
        ({"save_pool": True}, "save_pool=true"),
    ):
        with pytest.raises(ConfigError, match=said):
            run({**config, "resume": str(tmp_path), **more}, tmp_path)


def test_a_full_disk_is_told_of_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        if path.is_file() and path.parent.name == "checkpoint":
            raise OSError(28, "No space left on device")

    config = config_of(*FED_CMI)
    whole = run(config, tmp_path / "whole")
    monkeypatch.setattr(files, "flush", full)
    assert run(config, tmp_path / "full")["digest"] == whole["digest"]
    assert "no checkpoint was written ([Errno 28] No space left on device" in caplog.text
    assert not (tmp_path / "full" / "checkpoint").exists()


def test_arguments_are_those_of_the_run_and_those_given(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=3\n- model=lenet\n- +x@y=1\n")
    found = resumed([f"resume={tmp_path}", "model=resnet8"], "simulate")
    assert found[:3] == ["seed=3", "+x@y=1", "model=resnet8"]
    assert found[3:] == [f"hydra.run.dir='{tmp_path}'", "hydra.output_subdir=null", f"resume='{tmp_path}'"]
    assert resumed(["seed=1"], "simulate") == ["seed=1"]
    with pytest.raises(ConfigError, match="one run"):
        resumed([f"resume={tmp_path}", "-m"], "simulate")
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: simulate}}")
    assert resumed([f"resume={tmp_path}", "model=resnet8"], "simulate") == found
    with pytest.raises(ConfigError, match="this is one of fl_cmi.simulate"):
        resumed([f"resume={tmp_path}"], "distill")


def test_keys_of_a_group_that_is_chosen_anew_are_dropped(tmp_path: Path) -> None:
    begun = [
        "backend.num_actors=2",
        "+backend.x=1",
        "compression=low_bit",
        "compression.w=4",
        "model.width=4",
    ]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in begun))
    chosen = ["backend=local", "compression=none"]
    found = resumed([f"resume={tmp_path}", *chosen, "model.width=4"], "simulate")
    assert found[:-3] == [*chosen, "model.width=4"]
    assert resumed([f"resume={tmp_path}", "compression=low_bit"], "simulate")[:-3] == [
        *(override for override in begun if override != "compression=low_bit"),
        "compression=low_bit",
    ]


@pytest.mark.parametrize("value", ["every=0", "every=1.5", "rounds=-1", "keep=3"])
def test_settings_are_checked(
    value: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(fl_cmi.simulate.main, monkeypatch, "data=synthetic", f"checkpoint.{value}") == 2
    assert f"checkpoint.{value}: " in complaint(capsys.readouterr().err)
    assert list(folder.iterdir()) == []


def test_a_folder_without_a_run_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(fl_cmi.simulate.main, monkeypatch, "resume=nowhere") == 2
    assert "resume=nowhere: the folder of a run" in complaint(capsys.readouterr().err)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    begun = [*TINY, "backend=local", *FED_CMI, "schedule.epochs=20", "hydra.run.dir=cut"]
    whole = run(config_of(*begun[:-1]), tmp_path / "whole")

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fl_cmi.simulate", *arguments]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    process, store = start(*begun), Store(tmp_path / "cut" / "checkpoint")
    try:
        for at_least in (5, 12):
            while max(store.numbers(), default=0) < at_least:
                assert process.poll() is None
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process = start("resume=cut")
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()  # whom a failure left; it works alone, without Ray
        process.wait()
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["digest"] == whole["digest"]
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_what_clients_keep_moves_to_another_backend(tmp_path: Path) -> None:
    config = config_of(*CASES["scaffold"])
    whole = run(config, tmp_path / "whole")
    assert cut_off(config, tmp_path / "cut", 2)
    moved = {**compose_config([*TINY, "backend=ray", *CASES["scaffold"]]), "resume": str(tmp_path / "cut")}
    assert cut_off(moved, tmp_path / "cut", 1)
    with pytest.raises(ConfigError, match="what clients keep"):
        run(
            {**moved, "backend": {"_target_": "fl_cmi.flower.flower_backend.FlowerBackend"}}, tmp_path / "cut"
        )
    summary = run({**config, "resume": str(tmp_path / "cut")}, tmp_path / "cut")
    assert summary["digest"] == whole["digest"]
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_flowers_engine_goes_on_where_clients_keep_nothing(tmp_path: Path) -> None:
    config = config_of("strategy=fedavg", "rounds=3", "checkpoint.every=1")
    whole = run(config, tmp_path / "whole")
    assert cut_off(config, tmp_path / "cut", 3)
    engine = {**config, "backend": {"_target_": "fl_cmi.flower.flower_backend.FlowerBackend"}}
    assert run({**engine, "resume": str(tmp_path / "cut")}, tmp_path / "cut")["digest"] == whole["digest"]
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
