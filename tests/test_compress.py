"""`python -m fl_cmi.compress`, and compression as the last step of a simulation."""

import io
import json
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from calling import call_main, complaint
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from fl_cmi.checkpoint.begin import differing
from fl_cmi.compose import build, compose_config, config_folder, dataset, make_model, plain_config, task
from fl_cmi.compress import adopted, main, run
from fl_cmi.compression import packing
from fl_cmi.compression.compressor import CompressionFailure, Written
from fl_cmi.compression.low_bit import LowBit
from fl_cmi.compression.simulated import quantized_layers
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.last_step import calibration_of
from fl_cmi.report.table import print_summary
from fl_cmi.simulate import main as simulate_main
from fl_cmi.simulate import run as simulate
from fl_cmi.types import ConfigError
from fl_cmi.verify import findings

TINY = [
    "data=synthetic",
    "partition.alpha=1.0",
    "model.width=4",
    "local.epochs=1",
    "synthesizer.batch_size=16",
    "server_threads=1",
    "schedule={epochs:2,batches:1,steps:4,evaluate_every:1}",
    "backend=local",
]
QUICK = ["threads=1", "calibration.images=40", "calibrate.batches=2", "calibrate.batch_size=16"]
QUICK += ["synthesizer.inversion.steps=2", "synthesizer.batch_size=20"]
POOL = [override for override in QUICK if not override.startswith(("synthesizer", "calibration"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation with its pool and a last step."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    simulate(compose_config([*TINY, "save_pool=true", "compression=w4a8"]), folder)
    return folder


def config_of(*overrides: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return plain_config(adopted(hydra.compose("compress", list(overrides))))


def compress(folder: Path, *overrides: str) -> dict[str, Any]:
    return run(config_of(*overrides), folder)


def test_the_last_step_of_a_simulation(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    compressed = summary["compressed"]
    assert compressed["compression"]["w"] == 4
    assert compressed["compression"]["executed"] is False
    assert compressed["model"]["accuracy"] == summary["student"]["accuracy_last"]
    assert compressed["student"]["bytes"] == (finished / "compressed.safetensors").stat().st_size
    pool = load_file(finished / "pool.safetensors")
    assert set(pool) == {"pixels", "targets", "labels", "clients"}
    assert pool["pixels"].dtype == torch.uint8
    assert len(pool["pixels"]) == 32


def test_the_last_step_is_shown(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(summary, console)
    line = "W4A8 simulated: "
    assert line in console.export_text()
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert line in page and "<h2>Compressed</h2>" in page


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("calibration", 0, "at least one image"), "at least one image"),
        (ConfigError("model", "X", "another one"), "model=X: another one"),
        (RuntimeError("shapes differ\nand more"), "RuntimeError: shapes differ"),
    ],
)
def test_a_last_step_that_fails_costs_nothing_else(
    error: Exception,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(LowBit, "__call__", fail)
    assert call_main(simulate_main, monkeypatch, *TINY, "compression=w4a8", "hydra.run.dir=run") == 1
    line = complaint(capsys.readouterr().err)
    assert line.startswith(f"fl_cmi: compression: {said}; the run before it is finished")
    run_dir = folder / "run"
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["compressed"] == {"failure": said}
    assert not list(findings(run_dir))
    names = {path.name for path in run_dir.iterdir()}
    assert {"student.safetensors", "pool.safetensors", "report.html"} <= names
    assert not {"checkpoint", "compressed.safetensors"} & names
    assert f"failed: {said}" in (run_dir / "report.html").read_text(encoding="utf-8")
    monkeypatch.undo()
    compress(folder / "again", f"run_dir={run_dir}", *POOL, "calibration=pool")


def test_what_is_measured_is_what_was_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[nn.Module] = []
    monkeypatch.setattr(LowBit, "predictor", lambda self, small: measured.append(small) or small)
    compress(tmp_path, f"run_dir={finished}", *POOL, "calibration=pool")
    (small,) = measured
    layers = quantized_layers(small).values()
    assert layers and all(layer.weight_bits is None for layer in layers), (
        "on their levels, as a file has them"
    )


def test_a_broken_file_is_noticed_and_removed(
    finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(self: LowBit, small: nn.Module, where: Path) -> Written:
        (where / "compressed.safetensors").write_text("broken")
        return Written([where / "compressed.safetensors"])

    monkeypatch.setattr(LowBit, "save", save)
    (folder / "mine").touch()
    given = [f"run_dir={finished}", *POOL, "calibration=pool", "hydra.run.dir=here"]
    assert call_main(main, monkeypatch, *given) == 2
    assert "compressed.safetensors: a readable .safetensors file" in complaint(capsys.readouterr().err)
    assert [path.name for path in folder.iterdir()] == ["mine"]


NOISE = [
    *(o for o in QUICK if o != "synthesizer.inversion.steps=2"),
    "synthesizer=noise",
    "hydra.run.dir=here",
]


def test_images_outlast_fine_tuning_that_diverges(
    finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kd = ["kd=true", "steps=6", "distiller.batch_size=8", "distiller.optimizer.lr=1e30", "save_pool=true"]
    assert call_main(main, monkeypatch, f"run_dir={finished}", *NOISE, *kd) == 1
    line = complaint(capsys.readouterr().err)
    assert line.endswith(f"the 40 images synthesized before are in {folder}/here/pool.safetensors")
    assert len(load_file(folder / "here" / "pool.safetensors")["pixels"]) == 40
    names = {path.name for path in (folder / "here").iterdir() if not path.name.endswith(".log")}
    assert names == {".hydra", "pool.safetensors"}


def test_a_library_that_fails_is_one_line(
    finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(self: LowBit, small: nn.Module, where: Path) -> Written:
        (where / "compressed.safetensors").write_text("first of two")
        raise CompressionFailure("compression.onnx: too far")

    monkeypatch.setattr(LowBit, "save", save)
    assert call_main(main, monkeypatch, f"run_dir={finished}", *NOISE) == 1
    assert complaint(capsys.readouterr().err).startswith("fl_cmi: compression.onnx: too far; the 40 images")
    names = {path.name for path in (folder / "here").iterdir() if not path.name.endswith(".log")}
    assert names == {".hydra", "pool.safetensors"}


def test_the_readme_loads_what_was_written(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    data = dataset(summary["config"])
    model = make_model(summary["config"]["model"], task(data), 0)
    small = packing.load(finished / "compressed.safetensors", model)
    found = accuracy(predict(small, data.test, torch.device("cpu")), data.test)
    assert found == summary["compressed"]["student"]["accuracy_last"]


@pytest.mark.parametrize("left", ["summary.json", "integrity.json", "checkpoint/0.json"])
def test_the_folder_of_another_run_is_refused(
    left: str,
    finished: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = folder / "there" / left
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    given = [f"run_dir={finished}", *POOL, "calibration=pool", f"hydra.run.dir={folder}/there"]
    assert call_main(main, monkeypatch, *given) == 2
    assert complaint(capsys.readouterr().err).startswith(
        f"fl_cmi: hydra.run.dir={folder}/there: a folder without"
    )
    assert there.read_text() == "{}"
    assert not (folder / "there" / "compressed.safetensors").exists()


def test_a_run_may_go_on_without_its_last_step() -> None:
    begun = compose_config([*TINY, "compression=w4a8"])
    assert not differing(begun, compose_config([*TINY, "compression=none"]))


def test_nothing_is_compressed_or_saved_unasked(tmp_path: Path) -> None:
    assert "compressed" not in simulate(compose_config(TINY), tmp_path)
    assert not (tmp_path / "pool.safetensors").exists()
    assert not (tmp_path / "compressed.safetensors").exists()


def test_strategies_without_images_have_no_last_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compression=LowBit: none, because only strategy=fed_cmi"):
        simulate(compose_config([*TINY, "strategy=fedavg", "compression=w4a8"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "choice",
    [
        "synthesizer=noise",
        "synthesizer=kw_bns",
        "synthesizer=kw_inception",
        "synthesizer=kw_bns_inception",
        "synthesizer=per_client",
        "calibration=pool",
        "calibration=real",
    ],
)
def test_every_set_of_images_calibrates_the_runs_model(choice: str, finished: Path, tmp_path: Path) -> None:
    overrides = [o for o in (POOL if choice == "calibration=pool" else QUICK)]
    if choice == "synthesizer=noise":
        overrides.remove("synthesizer.inversion.steps=2")
    summary = compress(tmp_path, f"run_dir={finished}", *overrides, choice)
    assert summary == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    original = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["model"]["accuracy"] == original["student"]["accuracy_last"]
    assert summary["calibration"]["data_free"] is (choice != "calibration=real")
    assert summary["calibration"]["images"] == (32 if choice == "calibration=pool" else 40)
    assert summary["student"]["bytes"] == (tmp_path / "compressed.safetensors").stat().st_size
    assert summary["ratio"] > 1
    assert summary["drop"] == summary["model"]["accuracy"] - summary["student"]["accuracy_last"]
    assert set(summary["student"]["latency_ms"]) == {"1", "64"}
    assert not list(findings(tmp_path))
    with (tmp_path / "compressed.safetensors").open("ab") as file:
        file.write(b"x")
    assert "compressed.safetensors" in " ".join(findings(tmp_path))


def test_fine_tuning_and_repeatability(finished: Path, tmp_path: Path) -> None:
    kd = ["kd=true", "steps=6", "distiller.batch_size=8", "compression.w=2", "compression.a=4"]
    given = [f"run_dir={finished}", *POOL, "calibration=pool", *kd]
    one, again = (compress(tmp_path / name, *given) for name in ("a", "b"))
    assert one["compression"]["kd"] == again["compression"]["kd"]
    assert one["compression"]["kd"]["steps"] == 6
    files = [(tmp_path / name / "compressed.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    compress(tmp_path / "c", *given, "kd=false")
    assert (tmp_path / "c" / "compressed.safetensors").read_bytes() != files[0]


def test_images_can_be_saved_and_used_again(finished: Path, tmp_path: Path) -> None:
    noise = [o for o in QUICK if o != "synthesizer.inversion.steps=2"] + [
        "synthesizer=noise",
        "save_pool=true",
    ]
    compress(tmp_path / "a", f"run_dir={finished}", *noise)
    path = f"calibration.path={tmp_path}/a/pool.safetensors"
    compress(tmp_path / "b", f"run_dir={finished}", *POOL, "calibration=pool", path)
    files = [(tmp_path / name / "compressed.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    assert not (tmp_path / "b" / "pool.safetensors").exists()


def test_a_checkpoint_needs_no_run(finished: Path, tmp_path: Path) -> None:
    given = ["data=synthetic", "model.width=4", f"model.checkpoint={finished}/student.safetensors"]
    summary = compress(tmp_path, *given, *QUICK)
    original = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["model"]["accuracy"] == original["student"]["accuracy_last"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `python -m fl_cmi.compress` with these arguments."""
    monkeypatch.setattr("sys.argv", ["fl_cmi.compress", *arguments])
    try:
        main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


def test_the_command_line(
    finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run_dir={finished}", *POOL, "calibration=pool", "hydra.run.dir=here"]
    assert call(monkeypatch, *given) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(folder / "here")
    assert "W8A8 simulated: " in said
    assert {"summary.json", "compressed.safetensors"} <= {path.name for path in (folder / "here").iterdir()}


@pytest.mark.filterwarnings("ignore")
def test_int8_as_a_last_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    assert call_main(simulate_main, monkeypatch, *TINY, "compression=int8", "hydra.run.dir=run") == 0
    assert "W8A8 int8 kernels: " in capsys.readouterr().out
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))["compressed"]
    assert summary["student"]["bytes"] == (folder / "run" / "int8.pt2").stat().st_size
    assert summary["compression"]["executed"] is True
    assert summary["compression"]["int8_kernels"] > 0
    assert not list(findings(folder / "run"))


@pytest.mark.filterwarnings("ignore")
def test_int8_and_onnx(
    finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torchao", "onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    given = [f"run_dir={finished}", *POOL, "calibration=pool", "compression=int8", "compression.onnx=true"]
    assert call_main(main, monkeypatch, *given, "hydra.run.dir=here") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "here")
    summary = json.loads((folder / "here" / "summary.json").read_text(encoding="utf-8"))
    assert summary["student"]["files"] == ["int8.pt2", "int8.onnx"]
    assert 0 <= summary["compression"]["onnx_distance"] <= 0.1
    test = dataset(summary["config"]).test
    session = runtime.InferenceSession(folder / "here" / "int8.onnx")
    (logits,) = session.run(None, {"images": test.pixels().numpy()})
    assert accuracy(torch.from_numpy(logits), test) == pytest.approx(
        summary["student"]["accuracy_last"], abs=0.1
    )


def test_the_last_step_calibrates_as_the_command_does() -> None:
    config = config_of("data=fashion_mnist", "model.checkpoint=x")

    def parts(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [parts(part) for part in value]
        return (type(value), parts(list(vars(value).values()))) if hasattr(value, "__dict__") else value

    ours = calibration_of(build(config["augment"], "augment"))
    assert parts(ours) == parts(build(config["calibrate"], "calibrate"))


def test_a_saved_pool_says_where_it_comes_from(finished: Path, tmp_path: Path) -> None:
    run_dir = f"run_dir={finished}"
    own = compress(tmp_path / "own", run_dir, *POOL, "calibration=pool")["calibration"]
    assert own["data_free"] is True
    assert own["synthesizer"] == "PerClient"
    images = "calibration.images=40"
    compress(tmp_path / "real", run_dir, *POOL, images, "calibration=real", "save_pool=true")
    from_real = ["calibration=pool", "save_pool=true", f"calibration.path={tmp_path}/real/pool.safetensors"]
    again = compress(tmp_path / "again", run_dir, *POOL, *from_real)["calibration"]
    assert again["data_free"] is False
    assert again["synthesizer"] is None
    third = f"calibration.path={tmp_path}/again/pool.safetensors"
    assert (
        compress(tmp_path / "third", run_dir, *POOL, "calibration=pool", third)["calibration"]["data_free"]
        is False
    )


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two clients whose models were averaged."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    simulate(compose_config([*TINY, "strategy=fedavg", "num_clients=2"]), folder)
    return folder


def test_averaged_models_are_warned_of(
    averaged: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run_dir={averaged}", *QUICK, "calibration=real"]
    assert call_main(main, monkeypatch, *given, "hydra.run.dir=here") == 0
    assert "warning: FedAvg averages: batch norm's" in capsys.readouterr().out
    summary = json.loads((folder / "here" / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["warnings"]) == 1 and summary["recalibrated"] is None


def test_batch_norm_can_be_estimated_anew(averaged: Path, finished: Path, tmp_path: Path) -> None:
    given = [f"run_dir={averaged}", *QUICK, "calibration=real"]
    plain = compress(tmp_path / "plain", *given)
    anew = compress(tmp_path / "anew", *given, "recalibrate=true")
    assert anew["recalibrated"] == {"accuracy_before": plain["model"]["accuracy"]}
    assert anew["warnings"] == []
    names = ("norms.0.running_mean", "norms.0.weight", "convs.0.codes")
    files = [load_file(tmp_path / name / "compressed.safetensors") for name in ("plain", "anew")]
    assert [torch.equal(files[0][name], files[1][name]) for name in names] == [False, True, True]
    own = compress(tmp_path / "own", f"run_dir={finished}", *POOL, "calibration=pool")
    assert own["warnings"] == [], "the student of fed_cmi was trained"


MISTAKES = {
    "": "run_dir=None: ",
    "run_dir=/nowhere": "run_dir=/nowhere: ",
    "run_dir=RUN model.checkpoint=x": "run_dir=RUN: ",
    "data=synthetic model.checkpoint=/nowhere": "model.checkpoint=/nowhere: ",
    "run_dir=RUN model.width=8": "model.width=8: nothing, because run_dir",
    "run_dir=RUN data=digits": "data=digits: nothing, because run_dir",
    "run_dir=RUN compression.w=1": "compression.w=1: ",
    "run_dir=RUN compression.w=many": "compression.w=many: ",
    "run_dir=RUN compression=none": "compression=none: ",
    "run_dir=RUN calibration=nope": "synthesized",
    "run_dir=RUN calibration=pool calibration.path=/nowhere": "calibration.path=/nowhere: ",
    "run_dir=RUN calibration.images=0": "calibration.images=0: ",
    "run_dir=RUN calibration.images=1": "calibration.images=1: an integer >= 2",
    "run_dir=RUN calibration=real calibration.images=1": "calibration.images=1: an integer >= 2",
    "run_dir=RUN calibration=pool calibration.path=BLACK": "calibration.path=BLACK: images that differ",
    "run_dir=RUN calibration=pool calibration.path=POINT": "calibration.path=POINT: a pool with at least two",
    "run_dir=LIST": "run_dir=LIST: the folder of a finished simulation",
    "run_dir=NUMBER": "run_dir=NUMBER: the folder of a finished simulation",
    "data=synthetic model.checkpoint=RUN/student.safetensors calibration=pool": "calibration.path=null: a pool",
    "run_dir=RUN calibrate.batches=0": "calibrate.batches=0: ",
    "run_dir=RUN kd=perhaps": "kd=perhaps: ",
    "run_dir=RUN recalibrate=1": "recalibrate=1: ",
    "run_dir=RUN steps=-1": "steps=-1: ",
    "run_dir=RUN freeze_batch_norm=3": "freeze_batch_norm=3: ",
    "run_dir=RUN threads=0": "threads=0: ",
    "run_dir=RUN seed=abc": "seed=abc: ",
    "data=synthetic model=lenet model.checkpoint=LENET": "batch",
    "data=synthetic model=lenet model.checkpoint=LENET calibration=real recalibrate=true": "recalibrate=true: false, ",
}
"""Overrides, and what the line has to tell."""


@pytest.fixture(scope="module")
def spoiled(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pools of black images and of none, and folders whose summary is no run's."""
    base = tmp_path_factory.mktemp("spoiled")
    pool = load_file(finished / "pool.safetensors")
    save_file({**pool, "pixels": torch.zeros_like(pool["pixels"])}, base / "black.safetensors")
    save_file({**pool, "pixels": torch.tensor(1, dtype=torch.uint8)}, base / "point.safetensors")
    for name, said in {"list": "[]", "number": '{"config": 5}'}.items():
        (base / name).mkdir()
        (base / name / "summary.json").write_text(said)
    return {
        "BLACK": base / "black.safetensors",
        "POINT": base / "point.safetensors",
        "LIST": base / "list",
        "NUMBER": base / "number",
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    finished: Path,
    spoiled: dict[str, Path],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said_so = MISTAKES[mistake]
    lenet = tmp_path_factory.mktemp("lenet") / "lenet.safetensors"
    if "LENET" in mistake:
        from fl_cmi.report.folder import save_state

        config = config_of("data=synthetic", "model=lenet")
        node = {key: value for key, value in config["model"].items() if key != "checkpoint"}
        save_state(make_model(node, task(dataset(config)), 0).state_dict(), lenet)
        GlobalHydra.instance().clear()
    for name, path in {"RUN": finished, "LENET": lenet, **spoiled}.items():
        mistake, said_so = mistake.replace(name, str(path)), said_so.replace(name, str(path))
    given = mistake
    assert call(monkeypatch, *given.split(), "threads=1" if "threads" not in given else "seed=0") == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("fl_cmi: ")
    assert said_so in lines[0]
    assert list(folder.iterdir()) == []
