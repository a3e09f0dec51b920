"""The un-federated job: its folder, its contract, its teacher, and what it says when something is wrong."""

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call_main, complaint
from safetensors.torch import load_file, save_file
from torch import Tensor

import fl_cmi.distill
import fl_cmi.simulate
from fl_cmi.compose import compose_config, dataset, make_model, task
from fl_cmi.distill import main, run
from fl_cmi.distillation.budget import CLOCKS, Clock
from fl_cmi.report.folder import save_state
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.summary import digest
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look

pytestmark = pytest.mark.usefixtures("without_pictures")

TINY = (
    "data=synthetic",
    "model.width=2",
    "local.epochs=2",
    "synthesizer.batch_size=8",
    "synthesizer.inversion.steps=2",
    "synthesizer.inversion.source.generator.width=4",
    "distiller.batch_size=8",
    "schedule.epochs=3",
    "schedule.batches=2",
    "schedule.steps=2",
    "schedule.evaluate_every=1",
    "threads=1",
)

QUICK = (*TINY, "teacher.model.width=4")

call = partial(call_main, main)


def distill(folder: Path, *overrides: str) -> dict[str, Any]:
    return run(compose_config([*QUICK, *overrides], "distill"), folder, "python -m fl_cmi.distill a=<b>")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run, looked at by several tests."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, distill(folder)


def test_what_is_of_a_federation_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distill(tmp_path, "+student_start=prototype", "schedule.epochs=1")
    assert "student_start=prototype: of a federation, and without effect here" in caplog.text


def test_the_folder_holds_what_was_promised(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    promised = {"metrics.jsonl", "summary.json", "synthetic.png", "curves.png", "report.html"}
    promised |= {"student.safetensors", "teacher.safetensors", "integrity.json"}
    assert {path.name for path in folder.iterdir()} == promised
    events = {row["event"] for row in MetricsLog.read(folder / "metrics.jsonl")}
    assert events == {"synthesis", "distillation", "evaluate", "summary"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "Data-free distillation",
        "a=&lt;b&gt;",
        "Frechet distance",
        "Agreement",
        "teacher.local.epochs",
    ):
        assert text in page, text


def test_the_summary_keeps_its_contract(done: tuple[Path, dict[str, Any]]) -> None:
    folder, returned = done
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(returned))
    teacher, student = summary["teacher"], summary["student"]
    looks = [row for row in MetricsLog.read(folder / "metrics.jsonl") if row["event"] == "evaluate"]
    assert student["accuracy_last"] == looks[-1]["accuracy"]
    assert student["accuracy_best"] == max(row["accuracy"] for row in looks)
    assert looks[student["epoch_best"] - 1]["accuracy"] == student["accuracy_best"]
    assert summary["gap"] == pytest.approx(teacher["accuracy"] - student["accuracy_last"])
    assert 0 <= summary["agreement"] <= 1
    assert summary["images"] == 3 * 2 * 8
    # Epochs x (2 batches x (2 steps + 1 labelling) + 2 lessons with fresh labels).
    assert summary["teacher_passes"] == 3 * (2 * (2 + 1) + 2)
    assert summary["synthetic"]["images"] == 48
    assert {"balance", "confidence", "aimed", "frechet", "diversity", "precision", "recall"} <= summary[
        "synthetic"
    ].keys()
    assert {"setup", "teacher", "synthesis", "distillation", "evaluation", "total"} == summary[
        "seconds"
    ].keys()
    assert {"seed", "commit", "versions", "config", "device", "threads"} <= summary.keys()


def test_agreement_is_counted_on_the_saved_models(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    config = summary["config"]
    data = dataset(config)
    logits = []
    for node, name in ((config["model"], "student"), (config["teacher"]["model"], "teacher")):
        model = make_model(node, task(data), 0).eval()
        model.load_state_dict(load_file(folder / f"{name}.safetensors"))
        with torch.no_grad():
            logits.append(model(data.test.pixels()))
    hits = sum(a.argmax() == b.argmax() for a, b in zip(*logits, strict=True))
    assert summary["agreement"] == pytest.approx(int(hits) / len(data.test))
    right = (logits[1].argmax(dim=1) == data.test.y).double().mean().item()
    assert summary["teacher"]["accuracy"] == pytest.approx(right)
    assert digest(load_file(folder / "student.safetensors")) == summary["digest"]


def test_a_run_is_repeatable_and_the_seed_counts(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    again, other = distill(tmp_path / "a"), distill(tmp_path / "b", "seed=1")
    assert again["digest"] == done[1]["digest"]
    assert other["digest"] != done[1]["digest"]


def test_a_saved_teacher_serves_again(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    saved = done[0] / "teacher.safetensors"
    summary = distill(tmp_path, f"teacher.checkpoint={saved}")
    assert summary["teacher"] == done[1]["teacher"]
    assert summary["config"]["teacher"]["checkpoint"] == str(saved)
    assert "teacher" not in summary["seconds"]
    assert not (tmp_path / "teacher.safetensors").exists()


def test_a_student_of_the_teachers_make_does_not_start_as_its_twin() -> None:
    config = compose_config(["data=synthetic"], "distill")
    assert config["model"] == config["teacher"]["model"]
    what = task(dataset(config))
    student = make_model(config["model"], what, 0)
    teacher = make_model(config["teacher"]["model"], what, 0, key="teacher.model")
    assert not torch.equal(next(student.parameters()), next(teacher.parameters()))


def test_a_budget_ends_the_round(tmp_path: Path) -> None:
    summary = distill(tmp_path, "budget_s=1e-9", "schedule.epochs=1000000")
    assert summary["images"] == 8
    assert summary["student"]["epoch_best"] == 1


@pytest.mark.parametrize("name", CLOCKS)
def test_a_budget_goes_by_the_clock_that_was_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks: list[Clock] = []

    def enough(*_: object, clock: Clock, **__: object) -> None:
        clocks.append(clock)
        raise FloatingPointError("enough")

    monkeypatch.setattr(fl_cmi.distill, "transfer", enough)
    with pytest.raises(FloatingPointError):
        distill(tmp_path, f"budget_clock={name}")
    assert clocks == [CLOCKS[name]]


def test_the_last_line_is_the_run_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *QUICK, "hydra.run.dir=here") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(folder / "here")
    assert any(line.startswith("agreement") for line in said)
    assert any(line.startswith("Frechet distance") for line in said)
    assert {"summary.json", ".hydra"} <= {path.name for path in (folder / "here").iterdir()}


MISTAKES = {
    "synthesizer=nope": "per_client",
    "seed=abc": "seed=abc: ",
    "threads=0": "threads=0: ",
    "device=tpu": "device=tpu: ",
    "budget_s=0": "budget_s=0: ",
    "budget_s=soon": "budget_s=soon: ",
    "budget_clock=sun": "budget_clock=sun: ",
    "precision=half": "precision=half: exact or fast",
    "teacher.train=false": "teacher.train=false: ",
    "teacher.train=maybe": "teacher.train=maybe: ",
    "teacher.checkpoint=none.safetensors": "teacher.checkpoint=none.safetensors: an existing",
    "teacher.checkpoint=text.safetensors": "teacher.checkpoint=text.safetensors: a readable",
    "teacher.checkpoint=wide.safetensors": "classifier.weight has the shape (4, 32), not (4, 64)",
    "teacher.checkpoint=wide.safetensors teacher.train=true": "teacher.train=true: ",
    "teacher.checkpoint=other.safetensors": "classifier.bias is missing",
    "teacher.checkpoint=3": "teacher.checkpoint=3: ",
    "model@teacher.model=lenet": "synthesizer",
    "teacher.model.width=0": "fl_cmi: teacher.model.width=0: ",
    "teacher.model.colour=red": "colour",
    "+teacher.model.colour=red": "teacher.model=",
    "local.epochs=0": "local.epochs=0: ",
    "local.epochs=many": "fl_cmi: local.epochs=many: ",
    "teacher.model.width=wide": "teacher.model.width=wide: ",
    "pool.capacity=1": "pool.capacity=1: ",
    "synthesizer=rdskd synthesizer.batch_size=7": "synthesizer.batch_size=7: an even number",
    "teacher.checkpoint=fits.safetensors combine=prior_corrected_logits": "fits.safetensors: null, because combine=",
    "teacher.checkpoint=fits.safetensors distiller=fedftg": "fits.safetensors: null, because distiller.targets=Owners",
    "distiller=knowledge_within": "distiller.loss=LayerMatch: another one, unless the student has",
    "combine=by_class_counts combine.saturation=abc": "combine.saturation=abc: ",
    "+rounds=2": "rounds=...: nothing here; it is for python -m fl_cmi.simulate",
    "rounds=2": "rounds",
}
"""Overrides, and what the line has to tell."""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of which one can be a teacher here."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, more in (("fits", []), ("wide", ["teacher.model.width=8"])):
        config = compose_config([*TINY, *more], "distill")
        model = make_model(config["teacher"]["model"], task(dataset(config)), 0)
        save_state(model.state_dict(), folder / f"{name}.safetensors")
    save_file({"weight": torch.zeros(1)}, folder / "other.safetensors")
    (folder / "text.safetensors").write_text("no tensors")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    teachers: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(teachers, folder, dirs_exist_ok=True)
    before = set(folder.iterdir())
    code = call(monkeypatch, *TINY, *mistake.split())
    said = capsys.readouterr()
    assert code == 2
    assert MISTAKES[mistake] in complaint(said.err)
    assert "Traceback" not in said.out
    assert set(folder.iterdir()) == before


def test_a_preset_of_the_one_program_is_refused_by_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(fl_cmi.simulate.main, monkeypatch, "experiment=distill_digits", "backend=local") == 2
    assert "it is for python -m fl_cmi.distill" in complaint(capsys.readouterr().err)
    assert list(folder.iterdir()) == []


@pytest.fixture
def label_loss_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a number from the sixth step on."""
    calls, loss = [0], OneHot.__call__

    def broken(self: OneHot, seen: Look) -> Tensor:
        calls[0] += 1
        return loss(self, seen) * (math.nan if calls[0] > 5 else 1.0)

    monkeypatch.setattr(OneHot, "__call__", broken)


SIMULATE = ("data=synthetic", "partition.alpha=1.0", "backend=local", "server_threads=1", "model.width=2")


@pytest.mark.usefixtures("label_loss_breaks")
@pytest.mark.parametrize("program", ["distill", "simulate"])
def test_a_loss_that_breaks_loses_no_image(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if program == "distill":
        code = call(monkeypatch, *QUICK, "hydra.run.dir=here")
    else:
        tiny = [o for o in TINY if not o.startswith(("model", "threads"))]
        code = call_main(fl_cmi.simulate.main, monkeypatch, *tiny, *SIMULATE, "hydra.run.dir=here")
    line = complaint(capsys.readouterr().err)
    assert code == 1
    # Two steps a batch: the sixth step is the second of the third batch.
    assert "synthesis step 1: oh is not finite" in line
    saved = folder / "here" / "pool.safetensors"
    assert f"the 16 images synthesized before are in {saved}" in line
    pool = load_file(saved)
    assert {name: tuple(value.shape) for name, value in pool.items()} == {
        "pixels": (16, 1, 8, 8),
        "targets": (16,),
        "labels": (16, 4),
        "clients": (16,),
    }
    assert pool["pixels"].dtype == torch.uint8
    assert not (folder / "here" / "summary.json").exists()


def test_a_teacher_that_diverges_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *QUICK, "local.optimizer.lr=1e30", "hydra.run.dir=here") == 1
    line = complaint(capsys.readouterr().err)
    assert "teacher: after 14 steps of training" in line
    assert "local.optimizer.lr" in line
