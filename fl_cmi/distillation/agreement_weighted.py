"""An ensemble that believes its teachers as far as they agree with each other on the synthetic images.

Shape letters: K teachers, B batch, C classes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.robust import check_saturation, class_weights, weighted_probs
from fl_cmi.trust import trust_scores, trust_weights
from fl_cmi.types import ConfigError

__all__ = ["AgreementWeighted"]

CHANGE = 0.1
"""Of a weight, below which the labels at hand are good enough."""


class AgreementWeighted:
    """`P_c ~ sum_k V_kc softmax(t_k)_c`, `V_kc = w_k W_kc / sum_j w_j W_jc`: trust times class counts.

    W is `class_weights`, w is `trust_weights`, found on the pool between synthesis and distillation and 1 before.
    Only a schedule that keeps a pool (grow_pool) teaches the weights; elsewhere they stay 1. Trust is a client's, and
    goes with it from round to round.

    Args:
        saturation: See `class_weights`; None: teachers have equal weights in all classes.
        least: See `trust_weights`, in [0, 1).
        rest: See `trust_weights`, in [0, 1).
        images: Of the pool, that trust is found on, >= 1.
    """

    def __init__(
        self, saturation: float | None = 20.0, least: float = 0.3, rest: float = 0.2, images: int = 1000
    ) -> None:
        check_saturation(saturation)
        for name, value in (("least", least), ("rest", rest)):
            if not 0 <= value < 1:
                raise ConfigError(f"combine.{name}", value, "a number in [0, 1)")
        if images < 1:
            raise ConfigError("combine.images", images, "an integer >= 1")
        self.saturation, self.least, self.rest, self.images = saturation, least, rest, images
        self.by_client: dict[int, float] = {}

    def weights(self, clients: Sequence[int]) -> Float[Tensor, " teachers"]:
        """What these clients' teachers weigh; 1 for those that were never looked at."""
        return torch.tensor([self.by_client.get(client, 1.0) for client in clients])

    def __call__(
        self, logits_KBC: Float[Tensor, "teachers batch classes"], ensemble: Ensemble
    ) -> Float[Tensor, "batch classes"]:
        """The weighted mean of the probabilities, as logarithms."""
        weight_KC = class_weights(ensemble, logits_KBC.shape[2], self.saturation)
        trusted_KC = self.weights(ensemble.clients).to(weight_KC)[:, None] * weight_KC
        total_C = trusted_KC.sum(dim=0)
        return weighted_probs(logits_KBC, trusted_KC / torch.where(total_C > 0, total_C, 1.0))

    def begin(self, clients: Sequence[int]) -> None:
        """What is known of clients who come back stays."""

    def learn(
        self, ensemble: Ensemble, pool: Pool, batch_size: int, epoch: int, rng: torch.Generator
    ) -> None:
        """Look at the pool, and see what the teachers weigh by that: the same, where it would change little."""
        before = [self.by_client.get(client, 1.0) for client in ensemble.clients]
        scores = trust_scores(ensemble, pool, rng, self.images)
        after = trust_weights(scores, ensemble.num_classes, self.least, self.rest)
        if max(abs(a - b) for a, b in zip(after, before, strict=True)) < CHANGE:
            after = before
        self.by_client |= dict(zip(ensemble.clients, after, strict=True))

    def state_dict(self, scene: object = None) -> Tree:
        """The weights by client, wherever they are put back."""
        return {"by_client": dict(self.by_client)}

    def load_state_dict(self, state: Tree, scene: object = None) -> None:
        """Go on from `state`."""
        self.by_client = dict(state["by_client"])
