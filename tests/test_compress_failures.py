"""Compressions that fail: mistakes are one line, and what they leave is whole."""

from pathlib import Path

import pytest
import torch
from calling import call_main, complaint
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file
from small_compression import POOL, QUICK, config_of
from torch import nn

from fl_cmi.compose import dataset, make_model, task
from fl_cmi.compress import main
from fl_cmi.compression.compressor import CompressionFailure, Written
from fl_cmi.compression.low_bit import LowBit


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


MISTAKES = {
    "": "run_dir=null: ",
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
    "run_dir=RUN calibration=pool calibration.path=GREY": "calibration.path=GREY: images that show something",
    "run_dir=RUN recalibrate=true": "recalibrate=true: false, or calibration=pool or real",
    "run_dir=RUN synthesizer=dfad": "synthesizer.inversion.terms=adv: at least one",
    "run_dir=7": "run_dir=7: the folder of a finished simulation",
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
    """Pools of grey images and of none, and folders whose summary is no run's."""
    base = tmp_path_factory.mktemp("spoiled")
    pool = load_file(finished / "pool.safetensors")
    save_file({**pool, "pixels": torch.full_like(pool["pixels"], 90)}, base / "grey.safetensors")
    save_file({**pool, "pixels": torch.tensor(1, dtype=torch.uint8)}, base / "point.safetensors")
    for name, said in {"list": "[]", "number": '{"config": 5}'}.items():
        (base / name).mkdir()
        (base / name / "summary.json").write_text(said)
    return {
        "GREY": base / "grey.safetensors",
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
    assert (
        call_main(main, monkeypatch, *given.split(), "threads=1" if "threads" not in given else "seed=0") == 2
    )
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("fl_cmi: ")
    assert said_so in lines[0]
    assert list(folder.iterdir()) == []
