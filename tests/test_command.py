"""What every entry point says of a mistake on its command line, and of Ctrl-C."""

from collections.abc import Callable
from pathlib import Path

import pytest
from calling import call_main, complaint

import fl_cmi.compress
import fl_cmi.distill
import fl_cmi.simulate
from fl_cmi.nodes import as_typed, check_nodes
from fl_cmi.types import ConfigError

PROGRAMS = {module.__name__: module.main for module in (fl_cmi.simulate, fl_cmi.distill, fl_cmi.compress)}

MISTAKES = {
    "data=3": "data=3: one of cifar10, ",
    "data=nope": "data=nope: one of cifar10, ",
    "-m data=digits,nope": "data=nope: one of cifar10, ",
    "model@nowhere=nope": "model@nowhere=nope: one of convnet, ",
    "--seed=1": "--seed=1: ",
    "--multirn": "--multirn: ",
    "+nonsense=1": "+nonsense=1: a key of the configuration",
    "nonsense=1": "nonsense=1: no such key; there are ",
    "data.rooot=/x": "data.rooot=/x: no such key; there are ",
    "data.root=~/x": "data.root=~/x: a value that Hydra's grammar knows, or one in quotes: \"data.root='...'\"",
    "data.side=[1": "data.side=[1: a value that Hydra's grammar knows",
    "synthesizer._target_=no.Such": "synthesizer._target_=no.Such: ",
    "synthesizer.inversion._target_=fl_cmi.types": "synthesizer.inversion._target_=fl_cmi.types: ",
}
"""Arguments, and what the line has to tell."""


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_in_every_program(
    program: str,
    mistake: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["model.checkpoint=x"] if program == "fl_cmi.compress" else []
    assert call_main(PROGRAMS[program], monkeypatch, *given, *mistake.split()) == 2
    said = complaint(capsys.readouterr().err)
    assert MISTAKES[mistake] in said
    assert "search path" not in said and "append" not in said
    assert list(folder.iterdir()) == []


def test_a_run_wants_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    assert call_main(fl_cmi.simulate.main, monkeypatch, "hydra.run.dir=file") == 2
    assert complaint(capsys.readouterr().err).startswith("fl_cmi: hydra.run.dir=file: a folder")


WHOLE_KEYS = {
    "distiller.loss.temperature=-1": "distiller.loss.temperature=-1: ",
    "distiller=crd distiller.loss.losses.crd.temperature=0": "distiller.loss.losses.crd.temperature=0: ",
    "distiller=crd distiller.loss.weights.crd=abc": "distiller.loss.weights.crd=abc: ",
    "synthesizer.inversion.terms.bn.weight=-1": "synthesizer.inversion.terms.bn.weight=-1: ",
    "synthesizer=cmi synthesizer.inversion.contrast.bank_size=0": "synthesizer.inversion.contrast.bank_size=0: ",
    "synthesizer=cmi synthesizer.inversion.contrast.weight=-1": "synthesizer.inversion.contrast.weight=-1: ",
    "model=lenet": "synthesizer.inversion.terms.bn.weight=1.0: ",
    "synthesizer.inversion.source.generator.width=0": "synthesizer.inversion.source.generator.width=0: ",
}


@pytest.mark.parametrize("program", ["fl_cmi.simulate", "fl_cmi.distill"])
@pytest.mark.parametrize("mistake", WHOLE_KEYS)
def test_the_whole_key_is_named_before_anything_is_trained(
    program: str,
    mistake: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call_main(PROGRAMS[program], monkeypatch, "data=synthetic", *mistake.split()) == 2
    assert f"fl_cmi: {WHOLE_KEYS[mistake]}" in complaint(capsys.readouterr().err)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("override", ["budget_s=abc", "student_start=nowhere", "budget_s=-1"])
@pytest.mark.parametrize("strategy", ["fed_cmi", "fedavg"])
def test_top_level_values_are_checked_whatever_the_strategy(
    strategy: str,
    override: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("data=synthetic", "backend=local", f"strategy={strategy}", override)
    assert call_main(fl_cmi.simulate.main, monkeypatch, *given) == 2
    assert f"fl_cmi: {override}: " in complaint(capsys.readouterr().err)


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_is_one_line(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{program}.run", interrupted)
    given = ["model.checkpoint=x"] if program == "fl_cmi.compress" else []
    assert call_main(PROGRAMS[program], monkeypatch, *given) == 130
    assert complaint(capsys.readouterr().err) == "fl_cmi: interrupted"


def test_multirun_may_follow_the_overrides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def run(config: dict[str, int], *_: object) -> None:
        seen.append(config["seed"])
        raise FloatingPointError("enough")

    monkeypatch.setattr("fl_cmi.distill.run", run)
    assert call_main(fl_cmi.distill.main, monkeypatch, "data=synthetic", "-m", "seed=3,4") == 1
    assert seen == [3]
    assert complaint(capsys.readouterr().err) == "fl_cmi: enough"


def test_a_multirun_does_one_run_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[int, Path] = {}

    def run(config: dict[str, int], run_dir: Path, _: str) -> dict[str, dict[str, float]]:
        seen[config["seed"]] = run_dir
        return {"student": {"accuracy_last": 0.5}}

    monkeypatch.setattr("fl_cmi.distill.run", run)
    monkeypatch.setattr("fl_cmi.distill.print_distillation", lambda *_: None)
    assert call_main(fl_cmi.distill.main, monkeypatch, "data=synthetic", "-m", "seed=3,4") == 0
    assert list(seen) == [3, 4]
    (day,) = (folder / "multirun").iterdir()
    (hour,) = day.iterdir()
    assert {path for path in hour.iterdir() if path.is_dir()} == set(seen.values())
    assert len(set(seen.values())) == 2
    assert [line for line in capsys.readouterr().out.splitlines() if line in map(str, seen.values())] == [
        str(path) for path in seen.values()
    ]


def error_of(check: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        check()
    return error.value


@pytest.mark.parametrize(
    ("key", "value", "whole"),
    [
        ("a...x", 1, "a.b.x"),
        ("a...t.x", 2, "a.t.x"),
        ("a...t.y", 5, "a.t.inner.y"),  # a term inside another one
        ("a...z", 1, "a...z"),  # nowhere
        ("a...x", 7, "a...x"),  # which of two?
        ("a.b.x", 1, "a.b.x"),
        ("t.x", 2, "a.t.x"),  # told with the key of a like one, which has another value
        ("other.x", 7, "other.x"),
        ("strategy.top", 4, "top"),
        ("strategy.own", 4, "strategy.own"),
    ],
)
def test_keys_are_completed_where_one_place_fits(key: str, value: int, whole: str) -> None:
    config = {
        "a": {"b": {"x": 1}, "t": {"x": 2, "inner": {"y": 5}}},
        "t": {"x": 9},
        "other": {"x": 7},
        "top": 4,
    }
    assert as_typed(ConfigError(key, value, "else"), config).key == whole


def test_a_generator_speaks_before_the_run() -> None:
    node = {"_target_": "fl_cmi.models.tanh_generator.TanhGenerator", "_partial_": True, "num_latents": 0}
    error = error_of(lambda: check_nodes({"a": {"made": node}}))
    assert str(error) == "a.made.num_latents=0: an integer >= 1"
    check_nodes({"a": {**node, "num_latents": 3}})
