"""Several losses at once."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import ConfigError, State

__all__ = ["Sum"]


class Sum(DistillLoss):
    """`L = sum_j w_j L_j`; what any of them needs is what the sum needs.

    Args:
        losses: Named losses.
        weights: w_j >= 0 by name, 1 for those that are not named; a loss of weight 0 is left out.
    """

    def __init__(self, losses: Mapping[str, DistillLoss], weights: Mapping[str, float] | None = None) -> None:
        given = {} if weights is None else weights
        for name, weight in given.items():
            if name not in losses:
                raise ConfigError(f"distiller.loss.weights.{name}", weight, f"only {', '.join(losses)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
                raise ConfigError(f"distiller.loss.weights.{name}", weight, "a number >= 0")
        self.weights = {name: given.get(name, 1.0) for name in losses}
        self.losses = {name: loss for name, loss in losses.items() if self.weights[name] > 0}
        if not self.losses:
            raise ConfigError("distiller.loss.weights", self.weights, "at least one weight > 0")
        self.needs_features = any(loss.needs_features for loss in self.losses.values())
        self.needs_layers = any(loss.needs_layers for loss in self.losses.values())
        self.needs_pool = any(loss.needs_pool for loss in self.losses.values())

    def check(self, ensemble: Ensemble, student: nn.Module) -> None:
        """As each of them."""
        for loss in self.losses.values():
            loss.check(ensemble, student)

    def begin(self, answers: Answers, rng: torch.Generator) -> Iterable[nn.Parameter]:
        """The parameters of all."""
        return [p for loss in self.losses.values() for p in loss.begin(answers, rng)]

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The weighted sum.

        Raises:
            FloatingPointError: If it is not finite; it names the losses at fault.
        """
        parts = {name: loss(answers, rng) for name, loss in self.losses.items()}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        if not total.isfinite():
            bad = [f"{name} ({part.item()})" for name, part in parts.items() if not part.isfinite()]
            raise FloatingPointError(f"{', '.join(bad) or 'the sum of losses'} is not finite")
        return total

    def state_dict(self) -> State:
        """The states of all, each name with its loss's before it."""
        return {
            f"{name}.{key}": value
            for name, loss in self.losses.items()
            for key, value in loss.state_dict().items()
        }

    def load_state_dict(self, state: State) -> None:
        """Each loss its part."""
        assert {key.partition(".")[0] for key in state} <= self.losses.keys()
        for name, loss in self.losses.items():
            own = f"{name}."
            loss.load_state_dict({k.removeprefix(own): v for k, v in state.items() if k.startswith(own)})

    def __str__(self) -> str:
        """Such as `KL + 0.8 CRD`."""
        return " + ".join(
            f"{loss}" if self.weights[name] == 1 else f"{self.weights[name]:g} {loss}"
            for name, loss in self.losses.items()
        )
