"""`python -m fl_cmi.compress`."""

import json
from pathlib import Path

import pytest
import torch
from calling import call_main
from safetensors.torch import load_file
from small_compression import POOL, QUICK, TINY, compress
from small_compression import config_of as compress_config
from torch import nn

from fl_cmi.bank import Pool
from fl_cmi.compose import compose_config, config_folder, dataset, make_model, task
from fl_cmi.compress import main
from fl_cmi.compression import packing
from fl_cmi.compression.images import Synthesized
from fl_cmi.compression.low_bit import LowBit
from fl_cmi.compression.simulated import quantized_layers
from fl_cmi.compression.stage import alone
from fl_cmi.compression.statistics import recalibrated
from fl_cmi.evaluate import accuracy
from fl_cmi.simulate import run as simulate
from fl_cmi.types import ConfigError
from fl_cmi.verify import findings


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


def test_the_readme_loads_what_was_written(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    data = dataset(summary["config"])
    model = make_model(summary["config"]["model"], task(data), 0)
    with torch.no_grad():
        logits = packing.load(finished / "compressed.safetensors", model)(data.test.pixels())
    found = accuracy(logits, data.test)
    assert found == summary["compressed"]["student"]["accuracy_last"]


@pytest.mark.parametrize(
    "choice",
    [
        "synthesizer=noise",
        "synthesizer=kw_bns_adam",
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


def test_saved_noise_is_noise(finished: Path, tmp_path: Path) -> None:
    """Batch norm is not tuned on it, wherever it comes from."""
    kd = ["kd=true", "steps=3", "distiller.batch_size=8"]
    noise = [o for o in QUICK if o != "synthesizer.inversion.steps=2"] + [
        "synthesizer=noise",
        "save_pool=true",
    ]
    compress(tmp_path / "a", f"run_dir={finished}", *noise, *kd)
    saved = ["calibration=pool", f"calibration.path={tmp_path}/a/pool.safetensors"]
    compress(tmp_path / "b", f"run_dir={finished}", *POOL, *saved, *kd)
    compress(tmp_path / "c", f"run_dir={finished}", *POOL, *saved, *kd, "freeze_batch_norm=false")
    names = ("a", "b", "c")
    means = [load_file(tmp_path / n / "compressed.safetensors")["norms.0.running_mean"] for n in names]
    assert torch.equal(means[0], load_file(finished / "student.safetensors")["norms.0.running_mean"])
    assert [torch.equal(means[0], mean) for mean in means] == [True, True, False]


def test_data_may_have_moved(finished: Path) -> None:
    config = compress_config(f"run_dir={finished}", "data.root=/elsewhere", "data.download=true")
    assert (config["data"]["root"], config["data"]["download"]) == ("/elsewhere", True)
    assert config["data"]["num_train"] == 400, "the run's data, at another place"


@pytest.mark.parametrize(
    "choice", sorted(path.stem for path in (config_folder() / "distiller").glob("*.yaml"))
)
def test_calibration_does_not_depend_on_the_distiller(choice: str, finished: Path) -> None:
    config, usual = (compress_config(f"run_dir={finished}", *more) for more in ([f"distiller={choice}"], []))
    assert config["calibrate"] == usual["calibrate"]
    assert [step["_target_"].rsplit(".", 1)[-1] for step in config["calibrate"]["augment"]["steps"]] == [
        "CropFlip",
        "Cutout",
    ]


def test_a_distiller_that_does_not_fit_is_refused_before_images_are_made(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Synthesized, "__call__", lambda *_: pytest.fail("images"))
    with pytest.raises(
        ConfigError,
        match=r"distiller=\.\.\.: one for a model of whose training nothing is known .*label counts",
    ):
        compress(tmp_path, f"run_dir={finished}", *QUICK, "kd=true", "distiller=fedftg")
    assert not list(tmp_path.rglob("summary.json"))


def test_endless_numbers_can_be_told(finished: Path, tmp_path: Path) -> None:
    summary = compress(tmp_path, f"run_dir={finished}", *POOL, "calibration=pool", "+distiller.clip=inf")
    assert summary["config"]["distiller"]["clip"] == "inf"


def test_a_checkpoint_needs_no_run(finished: Path, tmp_path: Path) -> None:
    given = ["data=synthetic", "model.width=4", f"model.checkpoint={finished}/student.safetensors"]
    summary = compress(tmp_path, *given, *QUICK)
    original = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["model"]["accuracy"] == original["student"]["accuracy_last"]


def test_the_command_line(
    finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run_dir={finished}", *POOL, "calibration=pool", "hydra.run.dir=here"]
    assert call_main(main, monkeypatch, *given) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(folder / "here")
    assert "W8A8 simulated: " in said
    assert {"summary.json", "compressed.safetensors"} <= {path.name for path in (folder / "here").iterdir()}


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
    told = summary["compression"]
    assert 0 <= told["onnx_distance"] <= 0.1
    assert told["int8_kernels"] == told["layers"] == 4
    test = dataset(summary["config"]).test
    session = runtime.InferenceSession(folder / "here" / "int8.onnx")
    (logits,) = session.run(None, {"images": test.pixels().numpy()})
    assert accuracy(torch.from_numpy(logits), test) == told["onnx_accuracy"]
    assert told["onnx_accuracy"] == pytest.approx(summary["student"]["accuracy_last"], abs=0.1)


def test_a_saved_pool_says_where_it_comes_from(finished: Path, tmp_path: Path) -> None:
    run_dir = f"run_dir={finished}"
    own = compress(tmp_path / "own", run_dir, *POOL, "calibration=pool")["calibration"]
    assert own["data_free"] is True
    assert own["synthesizer"] == "PerClient"
    assert own["terms"] == ["bn", "oh"]
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


def test_models_that_do_not_predict_are_warned_of(tmp_path: Path) -> None:
    """FedDistill's clients keep their models: the server's one is as it was initialized."""
    mine = ["strategy=feddistill", "local.start=own", "num_clients=2", "local.epochs=5"]
    told = simulate(compose_config([*TINY, *mine]), tmp_path / "run")["student"]["accuracy_last"]
    found = compress(tmp_path / "small", f"run_dir={tmp_path}/run", *QUICK, "calibration=real")
    assert found["warnings"] == [
        f"this model alone has {100 * found['model']['accuracy']:.2f} %, its run {100 * told:.2f} %: there, by"
        " FedDistill, others predict (clients with what they keep, or a vote), and their accuracy is not compressed"
        " here"
    ]


def test_every_image_counts_alike_for_the_statistics() -> None:
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2))
    for number in (258, 400):
        x = torch.rand(number, 1, 2, 2, generator=rng)
        x[256:] = 1.0  # a last batch of few unusual ones
        pool, teacher = Pool(), alone(model)
        pool.add(x, torch.zeros(number, dtype=torch.int64), teacher.label(x))
        kept = pool.get(torch.arange(number)).x
        recalibrated(teacher, pool)
        assert model[0].running_mean == pytest.approx(kept.mean().item(), abs=1e-6)


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
