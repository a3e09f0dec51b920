"""Teach the pool to the student."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fl_cmi.augment import Augment, Identity
from fl_cmi.bank import Draws
from fl_cmi.distillation.targets import Fresh, Targets
from fl_cmi.ensemble import Ensemble
from fl_cmi.losses import kl_divergence
from fl_cmi.training import Schedule, constant, optimizing
from fl_cmi.types import ConfigError

__all__ = ["Distiller", "Lesson"]


class Distiller:
    """`T^2 KL(target / T || student / T)` on batches drawn from the whole pool, augmented.

    Args:
        optimizer: Makes the student's optimizer.
        schedule: Learning rate over all the steps of a round.
        temperature: T > 0.
        batch_size: Images a step.
        targets: What the student reproduces.
        augment: Applied to each batch before the student (and a fresh teacher) sees it.
        mixup: Share of the batches, in [0, 1], whose images are blended with another image of the batch, by a factor
            ~ U(0, 1) each; the ensemble labels the blends. They fill the space between the clients' classes, on
            which no client alone has an opinion (after Zhang et al. 2018, arXiv 1710.09412; labels by the teacher as
            in Beyer et al. 2022, arXiv 2106.05237).
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: Schedule = constant,
        temperature: float = 20.0,
        batch_size: int = 128,
        targets: Targets | None = None,
        augment: Augment | None = None,
        mixup: float = 0.0,
    ) -> None:
        if temperature <= 0:
            raise ConfigError("distiller.temperature", temperature, "a number > 0")
        if not isinstance(batch_size, int) or batch_size < 2:
            raise ConfigError(
                "distiller.batch_size", batch_size, "an integer >= 2 (batch norm needs two images)"
            )
        if not 0 <= mixup <= 1:
            raise ConfigError("distiller.mixup", mixup, "a share in [0, 1]")
        self.mixup = mixup
        self.make_optimizer, self.schedule, self.temperature = optimizer, schedule, temperature
        self.batch_size = batch_size
        self.targets: Targets = Fresh() if targets is None else targets
        self.augment: Augment = Identity() if augment is None else augment

    def begin(self, student: nn.Module) -> "Lesson":
        """A fresh optimizer for a round of lessons."""
        return Lesson(self, student)


class Lesson:
    """One student being taught: the optimizer's state between calls."""

    def __init__(self, distiller: Distiller, student: nn.Module) -> None:
        self.distiller, self.student = distiller, student
        self.optimizer = distiller.make_optimizer(student.parameters())
        self.set_rate = optimizing(self.optimizer, distiller.schedule)

    def __call__(
        self,
        ensemble: Ensemble,
        draws: Draws,
        steps: int,
        progress: tuple[float, float],
        rng: torch.Generator,
    ) -> float:
        """Take `steps` steps on images of `draws`, at the learning rates of the share `progress` of the round.

        Returns:
            The mean loss.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        d, device = self.distiller, ensemble.num_examples_K.device
        was_training = self.student.training
        self.student.train()
        losses = []
        for step in range(steps):
            batch = draws.draw(d.batch_size, rng)
            x, labels, aims = batch.x, batch.labels, None
            if labels is not None and batch.y is not None:
                aims = F.one_hot(batch.y, labels.shape[1]).float()
            mixed = d.mixup > 0 and bool(torch.rand((), generator=rng) < d.mixup)
            if mixed:
                x, aims = blend(x, aims, rng)
            x = d.augment(x.to(device), rng)
            cached = None if mixed or labels is None else labels.to(device)
            targets = d.targets(ensemble, x, cached, None if aims is None else aims.to(device))
            loss = kl_divergence(targets, self.student(x), d.temperature)
            self.set_rate(progress[0] + (progress[1] - progress[0]) * step / steps)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            if losses[-1] - losses[-1] != 0:
                raise FloatingPointError(f"distillation step {step}: the loss is not finite ({losses[-1]})")
        self.student.train(was_training)
        return sum(losses) / len(losses) if losses else 0.0


def blend(x: Tensor, aims: Tensor | None, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """`l x_i + (1 - l) x_j` with j from a permutation of the batch and l ~ U(0, 1) per image; labels likewise."""
    other = torch.randperm(len(x), generator=rng)
    share = torch.rand(len(x), 1, generator=rng)
    wide = share[:, :, None, None].to(x.device)
    blended = wide * x + (1 - wide) * x[other]
    return blended, None if aims is None else share * aims + (1 - share) * aims[other]
