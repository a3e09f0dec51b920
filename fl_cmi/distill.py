"""`python -m fl_cmi.distill`: one teacher -> one student, without data and without federation.

python -m fl_cmi.distill                                    # digits: train a teacher, then forget the data
python -m fl_cmi.distill experiment=distill_fashion_mnist seed=1
python -m fl_cmi.distill teacher.checkpoint=outputs/.../teacher.safetensors synthesizer=cmi
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.checkpoint.begin import begin_or_resume
from fl_cmi.checkpoint.run import Checkpoints
from fl_cmi.checkpoint.store import Generation, Store
from fl_cmi.checks import check_distillation, pick_device
from fl_cmi.command import carry_out, command_line
from fl_cmi.compose import Config, build, dataset, fitting, make_model, task
from fl_cmi.data.dataset import Dataset
from fl_cmi.distillation.budget import checked_budget, clock_called
from fl_cmi.distillation.transfer import transfer
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.measures import measure_pool
from fl_cmi.memory import keep_freed_memory
from fl_cmi.models.checkpoint import load_weights
from fl_cmi.precision import Precision, exact, precision_called
from fl_cmi.report.folder import save_state, saving_on_failure, write_results
from fl_cmi.report.html import write_distillation
from fl_cmi.report.integrity import write_integrity
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.origin import origin_of
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import digest, provenance
from fl_cmi.report.table import print_distillation
from fl_cmi.rng import stream
from fl_cmi.spread import crew_of, hired
from fl_cmi.synthesis.crew import WorkerFailure, clocks_of
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, Images, Teacher

__all__ = ["main", "run"]

logger = logging.getLogger(__name__)


def run(config: Config, run_dir: Path, command: str | None = None) -> dict[str, Any]:
    """One run, from a plain configuration to a folder of results; returns what `summary.json` holds.

    Raises:
        ConfigError: For a user's mistake, before anything is trained or written.
        FloatingPointError: For a loss or a weight that is not finite; images made before are saved.
    """
    check_distillation(config)
    keep_freed_memory()
    return begin_or_resume(config, run_dir, partial(carry_on, run_dir, command))


def carry_on(
    run_dir: Path, command: str | None, config: Config, store: Store, start: Generation | None
) -> dict[str, Any]:
    """A run from its beginning or from a checkpoint to its end."""
    progress, log = Progress(), MetricsLog(run_dir / "metrics.jsonl")
    torch.set_num_threads(config["threads"] or os.cpu_count() or 1)
    device, seed = pick_device(config["device"]), config["seed"]
    precision = precision_called(config["precision"], device)
    crew = crew_of(config)
    budget_s = checked_budget(config["budget_s"])
    clock = clock_called(config["budget_clock"], clocks_of(crew))
    checkpoint = config["teacher"]["checkpoint"]
    if (begin := config.get("student_start", "scratch")) != "scratch":
        logger.warning("student_start=%s: of a federation, and without effect here", begin)
    with progress.phase("setup"):
        data = dataset(config)
        what = task(data)
        combine, synthesizer, distiller, schedule, pool = (
            build(config[key], key) for key in ("combine", "synthesizer", "distiller", "schedule", "pool")
        )
        student = make_model(config["model"], what, seed).to(device)
        make_teacher = partial(make_model, config["teacher"]["model"], what, seed, key="teacher.model")
        teacher = make_teacher().to(device)
        training = None if checkpoint else build(config["teacher"]["local"], "local")
        # Only who trains on the images knows how many of each class there are.
        counts = None if checkpoint else data.train.class_counts()
        if checkpoint:
            load_weights(teacher, checkpoint, "teacher.checkpoint")
        # What such a teacher cannot serve is refused before one is trained.
        schedule.check(synthesizer, distiller)
        untrained = alone(make_teacher(), counts, combine)
        with counted(checkpoint):
            with fitting(config["combine"], "combine"):
                untrained.label(torch.zeros(2, *what.shape))
            synthesizer.check(untrained)
            distiller.check(untrained, student)
        if crew is not None:
            crew.check(synthesizer, schedule, what)
    checkpoints = Checkpoints(store, config, log, progress, start)
    if start is None:
        checkpoints.commit({})  # from here on the folder is this run's, also while the teacher is trained
    with hired(crew):  # already now: without room for it, no teacher is trained
        if training is not None:
            if checkpoints.has("teacher"):
                teacher.load_state_dict(checkpoints.read("teacher"))
            else:
                with progress.phase("teacher"):
                    train(teacher, training, data.train, seed, device)
            save_state(teacher.state_dict(), run_dir / "teacher.safetensors")
        checkpoints.begin_transfer({"teacher": teacher.state_dict})
        ensemble = alone(teacher, counts, combine, precision).to(device)

        def test_accuracy(model: nn.Module) -> float:
            return accuracy(predict(model, data.test, device), data.test)

        with saving_on_failure(pool, run_dir, origin_of(config["synthesizer"])):
            metrics = transfer(
                ensemble,
                student,
                synthesizer,
                distiller,
                pool,
                schedule,
                task=what,
                seed=seed,
                server_round=1,
                progress=progress,
                log=log,
                evaluate=test_accuracy,
                budget_s=budget_s,
                clock=clock,
                checkpoints=checkpoints,
                crew=crew,
            )
    with progress.phase("evaluation"):
        looks = [row for row in MetricsLog.read(log.path) if row["event"] == "evaluate"]
        measured = measure(alone(teacher, counts, combine).to(device), student, pool, data, seed, looks)
    summary = {
        **measured,
        "digest": digest(student.state_dict()),
        "teacher_passes": int(metrics["teacher-passes"]),
        "images": int(metrics["images"]),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "workers": None if crew is None else crew.told(),
        **provenance(config),
    }
    # `transfer` is the sum of synthesis, distillation and evaluation.
    phases = {name: seconds for name, seconds in progress.seconds.items() if name != "transfer"}
    summary["seconds"] = {**phases, "total": checkpoints.seconds}
    log.write("summary", **{key: summary[key] for key in measured})
    page = partial(write_distillation, run_dir, summary, command)
    write_results(run_dir, summary, student.state_dict(), pool, data.class_names, page)
    write_integrity(run_dir)
    checkpoints.close()
    return summary


def alone(
    model: nn.Module, counts: Tensor | None, combine: Combine, precision: Precision = exact
) -> Ensemble:
    """An ensemble of one teacher, with the class counts of its training set where they are known."""
    teacher = Teacher(0, 1 if counts is None else int(counts.sum()), counts, model)
    return Ensemble([teacher], combine, precision=precision)


@contextmanager
def counted(checkpoint: str | None) -> Iterator[None]:
    """Inside, whoever needs label counts is told that a teacher from a file brings none.

    Raises:
        ConfigError: Instead of one about the key by which clients keep their counts.
    """
    try:
        yield
    except ConfigError as error:
        if error.key != "share_label_counts":
            raise
        why = error.allowed.removeprefix("true, because ")
        raise ConfigError(
            "teacher.checkpoint", checkpoint, f"null, because {why}, and a file brings none"
        ) from error


def train(model: nn.Module, training: LocalTraining, images: Images, seed: int, device: torch.device) -> None:
    """Train the teacher, in place, on all training images.

    Raises:
        FloatingPointError: If it diverged.
    """
    steps = int(training(model, images, stream(seed, "teacher"), device)["steps"])
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise FloatingPointError(
                f"teacher: after {steps} steps of training {name} is not finite; lower local.optimizer.lr"
            )


def measure(
    ensemble: Ensemble, student: nn.Module, pool: Pool, data: Dataset, seed: int, looks: list[dict[str, Any]]
) -> dict[str, Any]:
    """Test accuracies of teacher and student, how often they agree, and measures of the synthetic images.

    Test images are for reporting only.

    Args:
        ensemble: Of the one teacher.
        student: At the end.
        pool: The synthetic images.
        data: Its test images are looked at.
        seed: Of the run.
        looks: The `evaluate` events of the run, for the best of them.
    """
    device, teacher = ensemble.num_examples_K.device, ensemble.models[0]
    taught, teaching = (predict(model, data.test, device) for model in (student, teacher))
    last, bound = accuracy(taught, data.test), accuracy(teaching, data.test)
    best = max(looks, key=lambda row: row["accuracy"])
    return {
        "teacher": {"accuracy": bound, "architecture": type(teacher).__name__},
        "student": {
            "accuracy_last": last,
            "accuracy_best": best["accuracy"],
            "epoch_best": best["epoch"],
            "architecture": type(student).__name__,
        },
        "agreement": (taught.argmax(dim=1) == teaching.argmax(dim=1)).double().mean().item(),
        "gap": bound - last,
        "synthetic": measure_pool(pool, ensemble, data.test, stream(seed, "measures")),
    }


def job(config: DictConfig) -> float:
    """Hydra's task function."""
    return carry_out(config, "distill", run, print_distillation, WorkerFailure)


def main() -> None:
    """The command line; exit codes as in `fl_cmi.command.carry_out`."""
    command_line("distill", job)


if __name__ == "__main__":
    main()
