"""FastDFKD's batch-norm term: a batch need not show everything that its predecessors have shown."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.batchnorm import Seen, batch_statistics
from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.terms.batch_norm import require_batch_norm
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["BatchNormMemory"]

Memory = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""Variance and mean of each layer's input over the batches so far."""


class BatchNormMemory(Term):
    """`L_bn` with the statistics of all batches so far in the place of one batch's.

        L = sum_l ||running_var - (1 - a) Var(f) - a var_ema|| + ||running_mean - (1 - a) Mean(f) - a mean_ema||
        after each batch:  ema <- a ema + (1 - a) current            a = .9

    The statistics of the pool should be the teacher's, and a batch of few steps cannot show all of them. The first
    batch has no predecessors: there the term is the plain `L_bn`, and its statistics are the first memory. Current are
    those of the batch's last step. Averaged over clients. A teacher that is met for the first time (another round's)
    starts like the first batch.

    References:
        G. Fang et al., *Up to 100x Faster Data-Free Knowledge Distillation* (FastDFKD), AAAI 2022, released code.

    Args:
        weight: Factor of the term, >= 0.
        momentum: a, in [0, 1); 0 is the plain term.
        over_clients: `mean` or `sum`.
    """

    averages = False

    def __init__(
        self,
        weight: float = 10.0,
        momentum: float = 0.9,
        over_clients: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(weight)
        if not 0 <= momentum < 1:
            raise ConfigError("synthesizer...bn.momentum", momentum, "a number in [0, 1)")
        if over_clients not in ("mean", "sum"):
            raise ConfigError("synthesizer...bn.over_clients", over_clients, "mean or sum")
        self.momentum, self.over_clients = momentum, over_clients
        self.memory: Memory = {}
        self.current: Memory = {}

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher needs batch norm; the loss over zero layers would silently be 0."""
        require_batch_norm(ensemble, "synthesizer...bn.weight", self.weight)

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean or the sum over teachers."""
        self.current = {}
        distances = torch.stack([self.distance(inputs) for inputs in seen.seen])
        return distances.mean() if self.over_clients == "mean" else distances.sum()

    def distance(self, inputs: Seen) -> Float[Tensor, ""]:
        """`L` of one teacher; keeps the statistics for `finish`."""
        total, current = [], dict(self.current)
        for layer, f in inputs.items():
            assert layer.running_mean is not None and layer.running_var is not None
            mean, var = batch_statistics(f)
            current[layer] = var.detach(), mean.detach()
            var, mean = self.blended(layer, var, mean)
            total.append((layer.running_var - var).norm() + (layer.running_mean - mean).norm())
        self.current = current
        return torch.stack(total).sum()

    def blended(self, layer: nn.Module, var: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """`(1 - a) current + a ema`, or the current ones where there is no memory."""
        if layer not in self.memory:
            return var, mean
        (old_var, old_mean), a = self.memory[layer], self.momentum
        return (1 - a) * var + a * old_var, (1 - a) * mean + a * old_mean

    def finish(self) -> None:
        """Take the last step's statistics into the memory; forget the layers of other teachers."""
        self.memory = {layer: self.blended(layer, *found) for layer, found in self.current.items()}

    def state_dict(self, scene: Scene) -> Tree:
        """The memory of the teachers' layers by name; between rounds none, for the next ones have others."""
        return {name: self.memory[layer] for name, layer in scene.layers.items() if layer in self.memory}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.current = {}
        self.memory = {
            scene.layers[name]: (var.to(scene.device), mean.to(scene.device))
            for name, (var, mean) in state.items()
        }
