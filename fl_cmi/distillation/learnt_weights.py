"""An ensemble whose teachers' weights are learnt on the images that it labels.

Shape letters: K teachers, B batch, C classes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.bank import Pool, Shuffled
from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import ConfigError

__all__ = ["LearntWeights", "weighted_logits"]


def weighted_logits(
    logits_KBC: Float[Tensor, "teachers batch classes"], weights_K: Float[Tensor, " teachers"]
) -> Float[Tensor, "batch classes"]:
    """`T_w(x) = sum_k w_k t_k / sum_k w_k`."""
    return torch.einsum("k,kbc->bc", weights_K / weights_K.sum(), logits_KBC)


class LearntWeights:
    """`T_w = sum_k w_k t_k / sum_k w_k`, w learnt in a pass over the pool between synthesis and distillation.

        w = 1/K in the first epoch e = 0 of a round; later, for each batch (x, y) of the pool
        w <- clip( w - r d^e sign( grad_w CE(T_w(x), y) ), 0, 1 )

    A teacher who is right about the labels that images were made for gains as much as another one who is wrong
    loses. Only a schedule that keeps a pool (grow_pool) teaches the weights; elsewhere they stay equal.

    References:
        R. Dai et al., *Enhancing One-Shot Federated Learning Through Data and Ensemble Co-Boosting*, ICLR 2024, arXiv
        2402.15070, released code.

    Args:
        learning_rate: r > 0.
        decay: d in (0, 1], by epoch.
    """

    def __init__(self, learning_rate: float = 0.01, decay: float = 0.99) -> None:
        if not learning_rate > 0:
            raise ConfigError("combine.learning_rate", learning_rate, "a number > 0")
        if not 0 < decay <= 1:
            raise ConfigError("combine.decay", decay, "a number in (0, 1]")
        self.learning_rate, self.decay = learning_rate, decay
        self.weights_K: Tensor | None = None

    def begin(self, clients: Sequence[int]) -> None:
        """Equal weights."""
        self.weights_K = torch.full((len(clients),), 1 / len(clients))

    def weights(self, clients: Sequence[int]) -> Float[Tensor, " teachers"]:
        """As they stand; equal where nothing was learnt for so many teachers."""
        if self.weights_K is None or len(self.weights_K) != len(clients):
            return torch.full((len(clients),), 1 / len(clients))
        return self.weights_K

    def __call__(
        self, logits_KBC: Float[Tensor, "teachers batch classes"], ensemble: Ensemble
    ) -> Float[Tensor, "batch classes"]:
        """The weighted mean of the logits."""
        return weighted_logits(logits_KBC, self.weights(ensemble.clients).to(logits_KBC))

    def learn(
        self, ensemble: Ensemble, pool: Pool, batch_size: int, epoch: int, rng: torch.Generator
    ) -> None:
        """One pass over the pool, but in epoch 0."""
        if epoch == 0:
            return
        draws, rate = Shuffled(pool), self.learning_rate * self.decay**epoch
        for _ in range(-(-len(pool) // batch_size)):
            batch = draws.draw(batch_size, rng)
            assert batch.y is not None
            device = ensemble.num_examples_K.device
            with torch.no_grad():
                logits_KBC = ensemble.logits(batch.x.to(device))
            self.weights_K = stepped(self.weights(ensemble.clients), logits_KBC, batch.y.to(device), rate)

    def state_dict(self, scene: Scene) -> Tree:
        """The weights."""
        return self.weights_K

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.weights_K = state


def stepped(
    weights_K: Float[Tensor, " teachers"],
    logits_KBC: Float[Tensor, "teachers batch classes"],
    y: Tensor,
    rate: float,
) -> Float[Tensor, " teachers"]:
    """`clip(w - r sign(grad_w CE(T_w, y)), 0, 1)`; as they were, where that would leave no weight above 0."""
    with torch.enable_grad():
        leaf = weights_K.to(logits_KBC).detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(weighted_logits(logits_KBC, leaf), y), leaf)
    moved_K = (leaf.detach() - rate * slope.sign()).clamp(0, 1).to(weights_K)
    return moved_K if moved_K.sum() > 0 else weights_K
