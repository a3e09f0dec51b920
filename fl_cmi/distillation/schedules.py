"""How synthesis and distillation alternate.

Each schedule ends after its epochs or, where the transfer has a budget, when the time is up. Where a pool grows,
synthesis leaves time for a lesson, half of the budget for the first; a generator that is trained first leaves half of
it for all lessons. A lesson ends with the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from fl_cmi.bank import PoolBatch, Shuffled
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.fresh import FreshImages
from fl_cmi.distillation.transfer import Transfer
from fl_cmi.report.progress import Phase
from fl_cmi.synthesis.inversion import Inverted
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import ConfigError

__all__ = ["Alternate", "GeneratorFirst", "GrowPool", "SameBatch"]


@dataclass(frozen=True)
class GrowPool:
    """In every epoch add `batches` batches to the pool, then take `steps` distillation steps on the whole pool.

    CMI's schedule is 200 epochs of 1 batch and 400 steps; 1 epoch of many batches is the offline schedule. DENSE and
    Co-Boosting take one pass over the pool, each image once, which grows with it. A rule of the ensemble that learns
    does so between the two (Co-Boosting).

    Args:
        epochs: Number of times, >= 1.
        batches: Batches synthesized in an epoch, >= 1.
        steps: Distillation steps in an epoch, >= 0, on images drawn with replacement; None: one pass over the pool.
        evaluate_every: Epochs between two looks at the student (for the curve only: nothing is selected by it).
        warmup: First epochs, >= 0 and < epochs, that only synthesize (FastDFKD).
    """

    epochs: int = 200
    batches: int = 1
    steps: int | None = 400
    evaluate_every: int = 10
    warmup: int = 0
    collects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, epochs=1, batches=1, steps=0, evaluate_every=1, warmup=0, optional=("steps",))
        if self.warmup >= self.epochs:
            raise ConfigError("schedule.warmup", self.warmup, f"fewer than the {self.epochs} epochs")

    def check(self, synthesizer: Synthesizer, distiller: Distiller) -> None:
        """Any synthesizer and any distiller will do."""

    def __call__(self, transfer: Transfer) -> None:
        """Grow the pool and teach it, in turn."""
        lessons, warming = self.epochs - self.warmup, True
        with transfer.phase(self.epochs) as phase:
            for epoch in range(self.epochs):
                transfer.grow(self.batches)
                transfer.tune(epoch)
                taught = epoch - self.warmup
                # Time for a lesson ends the warm-up.
                warming = warming and taught < 0 and not transfer.replay.due
                if not warming:
                    share = taught / lessons, (taught + 1) / lessons
                    if self.steps is None:
                        transfer.distil(Shuffled(transfer.pool), transfer.steps_of_a_pass, share)
                    else:
                        transfer.distil(transfer.pool, self.steps, share)
                if closed(transfer, phase, epoch + 1, self.epochs, self.evaluate_every):
                    break


@dataclass(frozen=True)
class Alternate:
    """In every iteration train the generator on one batch, then take `steps` distillation steps on fresh images.

    The schedule of DAFL, ZSKT, DFAD and DFQ; the generator's own steps on a batch are the inversion's `steps`. At the
    end `show` images are put into the pool, for the report and for measuring.

    Args:
        epochs: Number of epochs, >= 1.
        iterations: Iterations in an epoch, >= 1.
        steps: Distillation steps in an iteration, >= 1, each on new images.
        evaluate_every: Epochs between two looks at the student.
        show: Images kept at the end, >= 2.
    """

    epochs: int = 200
    iterations: int = 80
    steps: int = 5
    evaluate_every: int = 10
    show: int = 2048
    collects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, epochs=1, iterations=1, steps=1, evaluate_every=1, show=2)

    def check(self, synthesizer: Synthesizer, distiller: Distiller) -> None:
        """Images are made on demand, and for no label."""
        check_fresh(synthesizer, distiller, "alternate")

    def __call__(self, transfer: Transfer) -> None:
        """Train the generator and teach its images, in turn."""
        fresh, total = FreshImages(transfer), self.epochs * self.iterations
        with transfer.phase(self.epochs) as phase:
            for epoch in range(self.epochs):
                for iteration in range(self.iterations):
                    transfer.train_generator()
                    done = epoch * self.iterations + iteration
                    transfer.distil(fresh, self.steps, (done / total, (done + 1) / total))
                    if transfer.replay.over:
                        break
                if closed(transfer, phase, epoch + 1, self.epochs, self.evaluate_every, self.show):
                    break


@dataclass(frozen=True)
class GeneratorFirst:
    """Train the generator to the end, for half of the budget at most, freeze it, then distil on fresh images (RDSKD).

    Args:
        generator_batches: Batches that the generator is trained on, >= 1.
        epochs: Epochs of distillation, >= 1.
        steps: Distillation steps in an epoch, >= 1, each on new images.
        evaluate_every: Epochs between two looks at the student.
        show: Images kept at the end, >= 2, for the report and for measuring.
    """

    generator_batches: int = 2400
    epochs: int = 1000
    steps: int = 120
    evaluate_every: int = 10
    show: int = 2048
    collects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, generator_batches=1, epochs=1, steps=1, evaluate_every=1, show=2)

    def check(self, synthesizer: Synthesizer, distiller: Distiller) -> None:
        """Images are made on demand, and for no label."""
        check_fresh(synthesizer, distiller, "generator_first")

    def __call__(self, transfer: Transfer) -> None:
        """First the generator, then the student."""
        fresh = FreshImages(transfer)
        with transfer.phase(self.generator_batches + self.epochs) as phase:
            for _ in range(self.generator_batches):
                transfer.train_generator()
                phase.advance(1, note=transfer.note())
                if transfer.replay.due:  # half of the budget
                    break
            transfer.keep(fresh, self.show)
            for epoch in range(self.epochs):
                transfer.distil(fresh, self.steps, (epoch / self.epochs, (epoch + 1) / self.epochs))
                if closed(transfer, phase, epoch + 1, self.epochs, self.evaluate_every):
                    break


@dataclass(frozen=True)
class SameBatch:
    """In every iteration train the generator on one batch, then take `steps` distillation steps on that very batch.

    The schedule of FedFTG: both sides of the game see the same latents. Images are taught as the generator makes them,
    neither stored nor rounded. At the end `show` images are put into the pool.

    Args:
        iterations: Number of times, >= 1.
        steps: Distillation steps on each batch, >= 1, with the batch size of the synthesizer.
        evaluate_every: Iterations between two looks at the student.
        show: Images kept at the end, >= 2.
    """

    iterations: int = 10
    steps: int = 5
    evaluate_every: int = 10
    show: int = 2048
    collects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, iterations=1, steps=1, evaluate_every=1, show=2)

    def check(self, synthesizer: Synthesizer, distiller: Distiller) -> None:
        """The loss must not ask for slots of a pool."""
        synthesizer.check_sample()
        check_loss(distiller, "same_batch")

    def __call__(self, transfer: Transfer) -> None:
        """Train the generator and teach its batch, in turn."""
        with transfer.phase(self.iterations) as phase:
            for done in range(self.iterations):
                batch = GivenBatch(transfer.train_generator())
                transfer.distil(batch, self.steps, (done / self.iterations, (done + 1) / self.iterations))
                if closed(transfer, phase, done + 1, self.iterations, self.evaluate_every, self.show):
                    break


class GivenBatch:
    """One batch as it was synthesized, whole, whenever it is asked for."""

    def __init__(self, made: Inverted) -> None:
        nowhere = torch.full((len(made.y),), -1)
        self.batch = PoolBatch(made.x, made.y.cpu(), None, torch.full_like(nowhere, made.client), nowhere)

    def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
        """The batch."""
        return self.batch


def closed(
    transfer: Transfer, phase: Phase, done: int, total: int, evaluate_every: int, show: int = 0
) -> bool:
    """Report an epoch that is over; whether it was the last, by number or by time.

    Args:
        transfer: The round.
        phase: Its progress.
        done: Epochs so far.
        total: Epochs planned.
        evaluate_every: Epochs between two looks at the student; the last one is looked at in any case.
        show: Fresh images that go into the pool after the last epoch.
    """
    last = done == total or transfer.replay.over
    if last and show:
        transfer.keep(FreshImages(transfer), show)
    transfer.report(done, look=last or done % evaluate_every == 0)
    phase.advance(1, note=transfer.note())
    return last


def check_fresh(synthesizer: Synthesizer, distiller: Distiller, schedule: str) -> None:
    """Raise ConfigError where images cannot be made on demand, or where the distiller must know them from a pool."""
    synthesizer.check_sample()
    if distiller.targets.needs_pool:
        raise ConfigError(
            "distiller.targets",
            type(distiller.targets).__name__,
            f"Fresh, because schedule={schedule} teaches images that were made for no label",
        )
    check_loss(distiller, schedule)


def check_loss(distiller: Distiller, schedule: str) -> None:
    """Raise ConfigError for a loss that must know its images from a pool."""
    if distiller.loss.needs_pool:
        raise ConfigError(
            "distiller.loss",
            distiller.loss,
            f"one that needs neither slot nor label, such as KL, because schedule={schedule} teaches images that are"
            " in no pool",
        )


def at_least(schedule: object, optional: Sequence[str] = (), **least: int) -> None:
    """Raise ConfigError, naming the field, for a value below its least or no integer (None only where optional)."""
    for field in fields(schedule):  # type: ignore[arg-type]
        value = getattr(schedule, field.name)
        if value is None and field.name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least[field.name]:
            null = ", or null" if field.name in optional else ""
            raise ConfigError(f"schedule.{field.name}", value, f"an integer >= {least[field.name]}{null}")
