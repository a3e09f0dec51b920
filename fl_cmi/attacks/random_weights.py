"""Noise in place of a model."""

import torch
from torch import nn

from fl_cmi.attacks.attack import Attack, parameters_changed
from fl_cmi.types import ConfigError, State

__all__ = ["RandomWeights"]


class RandomWeights(Attack):
    """`w ~ N(mean(w_k), factor^2 var(w_k))` for each parameter tensor w_k of the trained model.

    The scale is the honest one, so that no norm gives the client away; batch norm's statistics are the trained ones.

    References:
        Fang et al. 2020, arXiv 1911.11815, section 5.1.2 (Gaussian attack).

    Args:
        factor: Of the standard deviation, >= 0; 1 is the honest scale.
    """

    def __init__(self, factor: float = 1.0) -> None:
        if not factor >= 0:
            raise ConfigError("attacks.attack.factor", factor, "a number >= 0")
        self.factor = factor

    def state(self, model: nn.Module, start: State, rng: torch.Generator) -> State:
        """Drawn tensor by tensor, in the model's order."""
        drawn = {}
        for name, parameter in model.named_parameters():
            w = parameter.detach().cpu()
            noise = torch.randn(w.shape, generator=rng, dtype=w.dtype)
            drawn[name] = w.mean() + self.factor * w.std(correction=0) * noise
        return parameters_changed(model, drawn)
