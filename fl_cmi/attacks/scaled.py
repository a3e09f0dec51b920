"""An update out of proportion."""

import torch
from torch import nn

from fl_cmi.attacks.attack import Attack, parameters_changed
from fl_cmi.types import State

__all__ = ["Scaled"]


class Scaled(Attack):
    """`w_0 + factor (w - w_0)`, w_0 what training started from; batch norm's statistics are the trained ones.

    References:
        Bagdasaryan et al. 2020, arXiv 1807.00459, equation 3 (model replacement); a negative factor is the sign flip
        of Li et al. 2019, arXiv 1811.03761.

    Args:
        factor: Any number; 1 is honest.
    """

    def __init__(self, factor: float = 10.0) -> None:
        self.factor = factor

    def state(self, model: nn.Module, start: State, rng: torch.Generator) -> State:
        """The scaled model."""
        scaled = {
            name: start[name] + self.factor * (parameter.detach().cpu() - start[name])
            for name, parameter in model.named_parameters()
        }
        return parameters_changed(model, scaled)
