"""Distil until a validation set says that it is enough, and go back to the best student."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fl_cmi.bank import Draws
from fl_cmi.distillation.budget import Budget
from fl_cmi.distillation.distiller import Lesson
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import ConfigError

__all__ = ["EarlyStopping", "Stopped"]


@dataclass(frozen=True)
class Stopped:
    """How a distillation ended.

    Args:
        steps: Steps taken.
        best_step: After which of them the student that was kept was; 0: none was better than the start.
        accuracy: Its validation accuracy in [0, 1].
        loss: Mean loss since the last check.
    """

    steps: int
    best_step: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class EarlyStopping:
    """At most `steps` steps; a look at the validation set after every `check_every`; the best student is kept.

    The student as it begins counts as the first look, so the result is never worse on the validation set. Training ends
    when `patience` steps have passed since the best look.

    References:
        Lin, Kong, Stich, Jaggi 2020 (FedDF), arXiv 2006.07242: 10,000 steps, patience 1,000 (2,000 by default in the
        code), a look every 100.

    Args:
        steps: >= 1; the learning rate's schedule spans them all, or the budget where there is one.
        check_every: >= 1.
        patience: >= 1; None never stops early.
    """

    steps: int = 10_000
    check_every: int = 100
    patience: int | None = 1_000

    def __post_init__(self) -> None:
        for key in ("steps", "check_every", "patience"):
            value = getattr(self, key)
            if key == "patience" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"strategy.stopping.{key}", value, "an integer >= 1")

    def __call__(
        self,
        lesson: Lesson,
        ensemble: Ensemble,
        draws: Draws,
        validate: Callable[[nn.Module], float],
        stream: Callable[[int], torch.Generator],
        budget: Budget,
    ) -> Stopped:
        """Teach the lesson's student, in place.

        Args:
            lesson: One that has not begun.
            ensemble: The teachers.
            draws: Images.
            validate: Accuracy of a model on the validation set.
            stream: Random stream of the lesson with this number, from 0.
            budget: Another reason to stop.
        """
        student = lesson.student
        kept, best, best_step, taken, loss = snapshot(student), validate(student), 0, 0, 0.0
        while taken < self.steps and not budget.over:
            steps = min(self.check_every, self.steps - taken)
            with budget.lesson((taken / self.steps, (taken + steps) / self.steps)) as share:
                rng = stream(taken // self.check_every)
                loss = lesson(ensemble, draws, steps, share, rng)
                lesson.settle(draws, rng)
            taken += steps
            accuracy = validate(student)
            if accuracy > best:
                kept, best, best_step = snapshot(student), accuracy, taken
            elif self.patience is not None and taken - best_step >= self.patience:
                break
        student.load_state_dict(kept)
        return Stopped(taken, best_step, best, loss)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
