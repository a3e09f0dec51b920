"""Local training: what one client does with its own images."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fl_cmi.augment import Augment, Identity
from fl_cmi.losses import label_log_prior
from fl_cmi.session import Session
from fl_cmi.types import ConfigError, Images

__all__ = ["LocalTraining", "Schedule", "constant", "cosine", "optimizing", "step_decay", "warm_stairs"]

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class Schedule(Protocol):
    """The learning rate's factor after a given share, in [0, 1), of all steps."""

    def __call__(self, progress: float) -> float:
        """The factor."""
        ...


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float, floor: float = 0.0) -> float:
    """`floor + (1 - floor) (1 + cos(pi p)) / 2`: from 1 to the floor, a little at each step (papers: at each epoch)."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def step_decay(progress: float, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> float:
    """`factor` to the power of how many of the shares `at` are behind: `x factor` at each."""
    return float(factor ** sum(progress >= share for share in at))


def warm_stairs(
    progress: float,
    warmup: float = 10 / 80,
    flat: float = 25 / 80,
    end: float = 65 / 80,
    stairs: int = 40,
    floor: float = 0.01,
) -> float:
    """Cosine from 0 to 1 until `warmup`, 1 until `flat`, cosine in `stairs` stairs to `floor` until `end`, `floor`.

    The Knowledge Within (Haroush et al. 2020, arXiv 1912.01274) on CIFAR: 10, 15, 40 and 15 of 80 epochs, to 1e-3 of
    .1; on ImageNet 5 epochs of warm-up and 95 of cosine out of 120, to 1e-3 of the peak.
    """
    if progress < warmup:
        return (1 - math.cos(math.pi * progress / warmup)) / 2
    if progress < flat:
        return 1.0
    if progress >= end:
        return floor
    # Rounding must not put the beginning of a stair onto the one before.
    stair = math.floor((progress - flat) / (end - flat) * stairs + 1e-9)
    return cosine(stair / stairs, floor)


def optimizing(optimizer: Optimizer, schedule: Schedule) -> Callable[[float], None]:
    """A function of the progress that sets the learning rates of `optimizer` by `schedule`."""
    initial = [group["lr"] for group in optimizer.param_groups]

    def set_rate(progress: float) -> None:
        for group, rate in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = rate * schedule(progress)

    return set_rate


class LocalTraining:
    """Supervised training on a client's images.

        L = CE(f(x) + prior, y) + mu/2 ||w - w_start||^2

    Args:
        optimizer: Makes the optimizer from the parameters.
        start: What a client trains in a round: the server's model (`broadcast`), a new one (`scratch`), or the one
            it trained last (`own`). Whoever runs the client acts on it.
        schedule: Learning rate over the training.
        epochs: Passes over the images; exactly one of `epochs` and `steps` is given.
        steps: Optimizer steps, independent of the number of images.
        batch_size: Images a step; the last batch of an epoch may be smaller (but see below).
        augment: Applied to every batch.
        prior_correction: Adds the log prior of the client's own labels to the logits inside the loss, so that the
            trained model itself is free of the client's label mix (Menon et al. 2021, arXiv 2007.07314, equation 9).
        drop_last: Leaves out every last batch that is smaller than the others, unless it is the only one.
        shuffle: Whether each epoch has an order of its own; else images come in the order they are stored in.
        round_decay: d in (0, 1]: the learning rate is multiplied by d^r (FedFTG .998, FedGen's code .99).
        decay_by: What r is: the number of rounds before this one (`round`), or before the client's last one, 0 where
            it has had none (`last_visit`, as in FedGen's code). Whoever runs the client tells.
        clip: Largest norm of a step's gradient, > 0 (Co-Boosting's clients 10); None: any.

    A last batch of a single image is left out, because batch norm cannot be trained on it, unless it is the only one.

    References:
        Li et al. 2020 (FedProx), arXiv 1812.06127, equation 2, for the proximal term.
    """

    def __init__(
        self,
        optimizer: MakeOptimizer,
        start: Literal["broadcast", "scratch", "own"] = "broadcast",
        schedule: Schedule = constant,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int = 64,
        augment: Augment | None = None,
        prior_correction: bool = False,
        drop_last: bool = False,
        shuffle: bool = True,
        round_decay: float = 1.0,
        decay_by: Literal["round", "last_visit"] = "round",
        clip: float | None = None,
    ) -> None:
        if start not in ("broadcast", "scratch", "own"):
            raise ConfigError("local.start", start, "one of broadcast, scratch, own")
        if (epochs is None) == (steps is None):
            raise ConfigError(
                "local.epochs", epochs, "a number, or null with local.steps given (one of the two)"
            )
        for name, value in (("epochs", epochs), ("steps", steps), ("batch_size", batch_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"local.{name}", value, "an integer >= 1")
        if not 0 < round_decay <= 1:
            raise ConfigError("local.round_decay", round_decay, "a number in (0, 1]")
        if decay_by not in ("round", "last_visit"):
            raise ConfigError("local.decay_by", decay_by, "round or last_visit")
        if clip is not None and not clip > 0:
            raise ConfigError("local.clip", clip, "a number > 0, or null")
        self.optimizer, self.schedule, self.batch_size = optimizer, schedule, batch_size
        self.start: Literal["broadcast", "scratch", "own"] = start
        self.epochs, self.steps = epochs, steps
        self.augment = Identity() if augment is None else augment
        self.prior_correction, self.drop_last, self.shuffle = prior_correction, drop_last, shuffle
        self.round_decay, self.decay_by, self.clip = round_decay, decay_by, clip

    @property
    def remembers_visits(self) -> bool:
        """Whether a client has to know when it trained last."""
        return self.decay_by == "last_visit" and self.round_decay < 1

    def __call__(
        self,
        model: nn.Module,
        images: Images,
        rng: torch.Generator,
        device: torch.device,
        proximal_mu: float = 0.0,
        session: Session | None = None,
        rounds: int = 0,
    ) -> dict[str, float]:
        """Train `model` in place.

        Args:
            model: On `device`; comes back in the mode it was in.
            images: The client's training set, at least one image.
            rng: Order of the images and augmentation.
            device: Where to train.
            proximal_mu: FedProx's mu >= 0.
            session: What a federated method adds; None: nothing.
            rounds: r >= 0, see `decay_by`.

        Returns:
            `loss` and `accuracy` averaged over the last epoch (or as many images), and `steps`.
        """
        if len(images) == 0:
            raise ValueError("a client without images cannot train")
        parameters = [p for p in model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters] if proximal_mu else []
        optimizer = self.optimizer(parameters)
        for group in optimizer.param_groups:
            group["lr"] *= self.round_decay**rounds
        session = Session() if session is None else session
        session.prepare(optimizer, proximal_mu)
        set_rate = optimizing(optimizer, self.schedule)
        prior = label_log_prior(images.class_counts()).to(device) if self.prior_correction else 0.0
        # A batch of one image has no variance; with two images or more such a remainder is skipped.
        remainder = len(images) % self.batch_size > 1 and not self.drop_last
        batches_per_epoch = max(1, len(images) // self.batch_size + remainder)
        steps = self.steps or (self.epochs or 1) * batches_per_epoch
        was_training = model.training
        model.train(len(images) > 1)
        losses, hits, seen = 0.0, 0, 0
        order: tuple[Tensor, ...] = ()
        for step in range(steps):
            at = step % batches_per_epoch
            if at == 0:
                rows = torch.randperm(len(images), generator=rng)
                order = (rows if self.shuffle else torch.arange(len(images))).split(self.batch_size)
                losses, hits, seen = 0.0, 0, 0
            x, y = images.pixels(order[at]).to(device), images.y[order[at]].to(device)
            logits = model(self.augment(x, rng))
            loss = F.cross_entropy(logits + prior, y)
            if proximal_mu:
                distance = sum((p - q).square().sum() for p, q in zip(parameters, start, strict=True))
                loss = loss + proximal_mu / 2 * distance
            loss = loss + session.loss(logits, y)
            set_rate(step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            session.correct()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            optimizer.step()
            losses += loss.item() * len(y)
            hits += int(((logits + prior).argmax(dim=1) == y).sum())
            seen += len(y)
        model.train(was_training)
        return {"loss": losses / seen, "accuracy": hits / seen, "steps": float(steps)}
