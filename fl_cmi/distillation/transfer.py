"""One round of knowledge transfer: synthesis and distillation, alternating as the schedule says."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fl_cmi.bank import Pool
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.ensemble import Ensemble
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.rng import stream
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import ConfigError, Task

__all__ = ["GrowPool", "transfer"]


@dataclass(frozen=True)
class GrowPool:
    """In every epoch add `batches` batches to the pool, then take `steps` distillation steps on the whole pool.

    CMI's schedule is 200 epochs of 1 batch and 400 steps; 1 epoch of many batches is the offline schedule.

    Args:
        epochs: Number of times, >= 1.
        batches: Batches synthesized in an epoch, >= 1.
        steps: Distillation steps in an epoch, >= 0.
        evaluate_every: Epochs between two looks at the student (for the curve only: nothing is selected by it).
    """

    epochs: int = 200
    batches: int = 1
    steps: int = 400
    evaluate_every: int = 10

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batches", 1), ("steps", 0), ("evaluate_every", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"schedule.{name}", value, f"an integer >= {least}")


def transfer(
    ensemble: Ensemble,
    student: nn.Module,
    synthesizer: Synthesizer,
    distiller: Distiller,
    pool: Pool,
    schedule: GrowPool,
    *,
    task: Task,
    seed: int,
    server_round: int,
    progress: Progress,
    log: MetricsLog,
    evaluate: Callable[[nn.Module], float],
) -> dict[str, float]:
    """Teach `student`, in place, what `ensemble` knows.

    Every batch and every lesson has its own random stream, so leaving one out shifts no other.

    Returns:
        Teacher passes, images synthesized and the last loss of distillation.
    """
    synthesizer.check(ensemble)
    lesson = distiller.begin(student)
    teacher_passes, images, loss = 0, 0, 0.0

    def name(what: str, number: int) -> torch.Generator:
        return stream(seed, what, "round", server_round, "number", number)

    with progress.phase("transfer", total=schedule.epochs) as phase:
        for epoch in range(schedule.epochs):
            with progress.phase("synthesis"):
                for batch in range(schedule.batches):
                    number = epoch * schedule.batches + batch
                    made = synthesizer(ensemble, student, pool, task, name("synthesis", number))
                    teacher_passes, images = teacher_passes + made.teacher_passes, images + len(made.y)
            log.write("synthesis", round=server_round, epoch=epoch + 1, num_images=len(pool), **made.losses)
            with progress.phase("distillation"):
                share = epoch / schedule.epochs, (epoch + 1) / schedule.epochs
                if schedule.steps:
                    loss = lesson(ensemble, pool, schedule.steps, share, name("distillation", epoch))
            log.write("distillation", round=server_round, epoch=epoch + 1, loss=loss)
            if (epoch + 1) % schedule.evaluate_every == 0 or epoch + 1 == schedule.epochs:
                with progress.phase("evaluation"):
                    accuracy = evaluate(student)
                log.write("evaluate", round=server_round, epoch=epoch + 1, accuracy=accuracy)
            phase.advance(1, note=f"pool {len(pool):,}  inversion {made.losses['total']:.3f}  kd {loss:.3f}")
    return {"teacher-passes": float(teacher_passes), "images": float(images), "kd-loss": loss}
