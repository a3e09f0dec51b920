"""Teach the pool to the student."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fl_cmi.augment import Augment, Identity
from fl_cmi.bank import Draws, Pool
from fl_cmi.batchnorm import classifier_input, recalibrate
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.layers import layer_outputs
from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.distillation.perturb import Perturb
from fl_cmi.distillation.targets import Fresh, Targets
from fl_cmi.ensemble import Ensemble
from fl_cmi.precision import full
from fl_cmi.rng import stream
from fl_cmi.training import Schedule, constant, optimizing
from fl_cmi.types import ConfigError

__all__ = ["Distiller", "Lesson"]


class Distiller:
    """Batches drawn from the whole pool, augmented; the student's distance from the targets; a step of its optimizer.

    Args:
        optimizer: Makes the optimizer of the student, and of what the loss trains along.
        schedule: Learning rate over all the steps of a round, set anew at every step (CMI's code: at every epoch).
        loss: How far the student is from the targets; None: `KL(20)`.
        batch_size: Images a step.
        targets: What the student reproduces.
        augment: Applied to each batch before the student (and a fresh teacher) sees it.
        mixup: Share of the batches, in [0, 1], whose images are blended with another image of the batch, by a factor
            each; the ensemble labels the blends. They fill the space between the clients' classes, on
            which no client alone has an opinion (after Zhang et al. 2018, arXiv 1710.09412; labels by the teacher as
            in Beyer et al. 2022, arXiv 2106.05237).
        perturb: Moves each batch, augmented, before student and teachers see it (Co-Boosting); None leaves it alone.
        clip: Longest gradient of the student, by its 2-norm, > 0; longer ones are scaled down. None: as they are.
        round_decay: Factor, in (0, 1], of the learning rate from round to round.
        blend: The factor's distribution: `uniform` on [0, 1], or `arcsine`, which is Beta(1/2, 1/2) and mostly leaves
            one of the two images visible (The Knowledge Within).
        keep_variance: Whether blends are stretched, and clipped to [0, 1], so that they vary as images do: see
            `blend`. Plain ones vary less, by a third for uniform factors.
        recalibrate: Images, >= 0, neither augmented nor blended, on which the student's batch norm takes its
            statistics after each lesson; 0 leaves it those of training.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: Schedule = constant,
        loss: DistillLoss | None = None,
        batch_size: int = 128,
        targets: Targets | None = None,
        augment: Augment | None = None,
        mixup: float = 0.0,
        perturb: Perturb | None = None,
        clip: float | None = None,
        round_decay: float = 1.0,
        blend: Literal["uniform", "arcsine"] = "uniform",
        keep_variance: bool = False,
        recalibrate: int = 0,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 2:
            raise ConfigError(
                "distiller.batch_size", batch_size, "an integer >= 2 (batch norm needs two images)"
            )
        if not 0 <= mixup <= 1:
            raise ConfigError("distiller.mixup", mixup, "a share in [0, 1]")
        if clip is not None and not clip > 0:
            raise ConfigError("distiller.clip", clip, "a number > 0, or null")
        if not 0 < round_decay <= 1:
            raise ConfigError("distiller.round_decay", round_decay, "a number in (0, 1]")
        self.perturb, self.clip, self.round_decay = perturb, clip, round_decay
        self.loss: DistillLoss = KL() if loss is None else loss
        if mixup > 0 and self.loss.needs_pool:
            raise ConfigError(
                "distiller.mixup", mixup, f"0, because loss={self.loss} tells single images apart"
            )
        if blend not in ("uniform", "arcsine"):
            raise ConfigError("distiller.blend", blend, "uniform or arcsine")
        if isinstance(recalibrate, bool) or not isinstance(recalibrate, int) or recalibrate < 0:
            raise ConfigError("distiller.recalibrate", recalibrate, "an integer >= 0")
        if not isinstance(keep_variance, bool):
            raise ConfigError("distiller.keep_variance", keep_variance, "true or false")
        self.mixup, self.blend, self.keep_variance = mixup, blend, keep_variance
        self.recalibrate = recalibrate
        self.make_optimizer, self.schedule = optimizer, schedule
        self.batch_size = batch_size
        self.targets: Targets = Fresh() if targets is None else targets
        self.augment: Augment = Identity() if augment is None else augment

    def check(self, ensemble: Ensemble, student: nn.Module) -> None:
        """Raise ConfigError where these teachers, or this student, lack what targets, loss or perturbation need."""
        self.targets.check(ensemble)
        self.loss.check(ensemble, student)
        if self.perturb is not None:
            self.perturb.check(ensemble)

    @property
    def reads_labels(self) -> bool:
        """Whether any batch is taught by labels that the pool has cached."""
        return self.targets.reads_labels and self.perturb is None and self.mixup < 1

    def begin(self, student: nn.Module, server_round: int = 1) -> "Lesson":
        """A fresh optimizer, and a fresh memory of the loss, for a round of lessons."""
        return Lesson(self, student, server_round)


class Lesson:
    """One student being taught: the state of optimizer and loss between calls."""

    def __init__(self, distiller: Distiller, student: nn.Module, server_round: int = 1) -> None:
        self.distiller, self.student = distiller, student
        self.loss = copy.deepcopy(distiller.loss)
        self.optimizer = distiller.make_optimizer(student.parameters())
        self.decay = distiller.round_decay ** (server_round - 1)
        self.set_rate = optimizing(self.optimizer, self.schedule)
        self.calls = 0
        self.begun = False
        self.waiting: Tree = None  # an optimizer's state from before, until all its parameters are there

    def schedule(self, progress: float) -> float:
        """The distiller's schedule, lower by the rounds that are over."""
        return self.decay * self.distiller.schedule(progress)

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
            FloatingPointError: If the loss is not finite; the student is left as it was before that step.
        """
        # A stream of the loss's own: what it draws shifts neither the images nor their augmentation.
        own = stream(rng.initial_seed(), "loss", self.calls)
        self.calls += 1
        was_training = self.student.training
        self.student.train()
        losses = []
        for step in range(steps):
            answers = self.ask(ensemble, draws, rng)
            if not self.begun:
                self.begin(answers, own)
            try:
                loss = self.loss(answers, own)
                losses.append(finite(loss, str(self.loss)))
            except FloatingPointError as error:
                raise FloatingPointError(f"distillation step {step}: {error}") from error
            self.set_rate(progress[0] + (progress[1] - progress[0]) * step / steps)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.distiller.clip is not None:
                nn.utils.clip_grad_norm_(self.student.parameters(), self.distiller.clip)
            self.optimizer.step()
        self.student.train(was_training)
        return sum(losses) / len(losses) if losses else 0.0

    def settle(self, draws: Draws, rng: torch.Generator) -> None:
        """After a lesson: give the student's batch norm the statistics of images as they are, where wanted."""
        size, own = self.distiller.batch_size, stream(rng.initial_seed(), "statistics")
        if batches := range(0, self.distiller.recalibrate, size):
            recalibrate(self.student, (draws.draw(size, own).x for _ in batches))

    def relabel(self, ensemble: Ensemble, pool: Pool) -> None:
        """Label a pool's images anew, after a change of teachers or of their rule, where labels are read."""
        if self.distiller.reads_labels:
            pool.relabel_all(ensemble.label, ensemble.num_examples_K.device)

    def ask(self, ensemble: Ensemble, draws: Draws, rng: torch.Generator) -> Answers:
        """Draw a batch, and let teachers and student answer to it."""
        d, device = self.distiller, ensemble.num_examples_K.device
        batch = draws.draw(d.batch_size, rng)
        x, labels, aims = batch.x, batch.labels, None
        if batch.y is not None:
            aims = F.one_hot(batch.y, ensemble.num_classes).float()
        mixed = d.mixup > 0 and bool(torch.rand((), generator=rng) < d.mixup)
        if mixed:
            x, aims = blend(x, aims, rng, d.blend == "arcsine", d.keep_variance)
        x = d.augment(x.to(device), rng)
        if d.perturb is not None:
            x = d.perturb(ensemble, x, rng)
        stale = mixed or d.perturb is not None
        cached = None if stale or labels is None else labels.to(device)
        watched = list(ensemble.models) if d.loss.needs_features else []
        layered = list(ensemble.models) if d.loss.needs_layers else []
        with watching(watched) as taught, watching(layered, layer_outputs) as taught_layers, torch.no_grad():
            target = d.targets(ensemble, x, cached, None if aims is None else aims.to(device))
            if not all(taught) or not all(taught_layers):  # the targets came from the cache
                ensemble.logits(x)
        own = [self.student]
        with (
            watching(own if d.loss.needs_features else []) as learnt,
            watching(own if d.loss.needs_layers else [], layer_outputs) as learnt_layers,
        ):
            logits = ensemble.run(self.student, x)
        return Answers(
            target,
            logits,
            learnt[0][0] if learnt else None,
            [found[0] for found in taught],
            None if mixed or batch.pool is None else batch.index,
            None if mixed or batch.y is None else batch.y.to(device),
            None if mixed else batch.pool,
            [full(h) for h in learnt_layers[0]] if learnt_layers else (),
            [[full(h) for h in outputs] for outputs in taught_layers],
        )

    def begin(self, answers: Answers, rng: torch.Generator) -> None:
        """Train the loss's own parameters with the student's: at the same rate, decay and schedule."""
        own = list(self.loss.begin(answers, rng))
        if own:
            self.optimizer.add_param_group({"params": own})
            self.set_rate = optimizing(self.optimizer, self.schedule)
        if self.waiting is not None:
            self.optimizer.load_state_dict(self.waiting)
            self.waiting = None
        self.begun = True

    def state_dict(self) -> Tree:
        """Optimizer, loss and the number of calls; the student has its own."""
        begun = self.begun or self.waiting is not None
        optimizer = self.optimizer.state_dict() if self.begun else self.waiting
        loss = self.loss.state_dict() if begun else {}
        return {"calls": self.calls, "optimizer": optimizer, "loss": loss}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from `state`, in a lesson that has not begun; the next batch completes it."""
        assert not self.begun, "a lesson that has begun has a state of its own"
        self.calls, self.waiting = state["calls"], state["optimizer"]
        if self.waiting is not None:
            self.loss.load_state_dict(state["loss"])


@contextmanager
def watching(
    models: Sequence[nn.Module],
    what: Callable[[nn.Module], AbstractContextManager[list[Tensor]]] = classifier_input,
) -> Iterator[list[list[Tensor]]]:
    """Collect what the classifier of each model sees, or the outputs of its parts: a list per model."""
    with ExitStack() as stack:
        yield [stack.enter_context(what(model)) for model in models]


def finite(loss: Tensor, name: str) -> float:
    """The loss as a number; an error that names it if it is none."""
    value = loss.item()
    if value - value != 0:  # inf - inf and NaN - NaN are NaN
        raise FloatingPointError(f"{name} is not finite ({value})")
    return value


def blend(
    x: Tensor, aims: Tensor | None, rng: torch.Generator, arcsine: bool = False, keep_variance: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`l x_i + (1 - l) x_j` with j from a permutation of the batch and l drawn for each image; labels likewise.

    `l = u ~ U(0, 1)`, or `l = sin^2(pi u / 2)`, which is Beta(1/2, 1/2). To keep the variance of independent images
    the blend's distance from the batch's mean m, one number a channel, is stretched (after Tokozume, Ushiku, Harada
    2018, BC+, arXiv 1711.10284, who take each image's mean and deviation): `m + (blend - m) / sqrt(l^2 + (1 - l)^2)`,
    clipped to [0, 1].
    """
    other = torch.randperm(len(x), generator=rng)
    share = torch.rand(len(x), 1, generator=rng)
    if arcsine:
        share = (math.pi / 2 * share).sin().square()
    wide = share[:, :, None, None].to(x.device)
    blended = wide * x + (1 - wide) * x[other]
    if keep_variance:
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        blended = (mean + (blended - mean) / (wide**2 + (1 - wide) ** 2).sqrt()).clamp(0, 1)
    return blended, None if aims is None else share * aims + (1 - share) * aims[other]
