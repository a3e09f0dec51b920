"""An ensemble that believes its teachers as far as they agree with each other on the synthetic images.

Shape letters: K teachers, B batch, C classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.ensemble import Ensemble
from fl_cmi.robust import class_weights, weighted_probs
from fl_cmi.trust import trust_scores, trust_weights
from fl_cmi.types import ConfigError

__all__ = ["AgreementWeighted"]


class AgreementWeighted:
    """`P_c ~ sum_k V_kc softmax(t_k)_c`, `V_kc = w_k W_kc / sum_j w_j W_jc`: trust times class counts.

    W is `class_weights`, w is `trust_weights`, found on the pool between synthesis and distillation and 1 before. A
    class whose owners have no trust at all has probability 0. Images whose labels were made under other weights are
    labelled anew. Only a schedule that keeps a pool (grow_pool) teaches the weights; elsewhere they stay 1.

    Args:
        saturation: See `class_weights`; None: teachers have equal weights in all classes.
        least: See `trust_weights`.
        images: Of the pool, that trust is found on, >= 1.
    """

    def __init__(self, saturation: float | None = 20.0, least: float = 0.5, images: int = 1000) -> None:
        if saturation is not None and not saturation > 0:
            raise ConfigError("combine.saturation", saturation, "a number of images > 0, or null for equal weights")
        if not 0 <= least < 1:
            raise ConfigError("combine.least", least, "a number in [0, 1)")
        if images < 1:
            raise ConfigError("combine.images", images, "an integer >= 1")
        self.saturation, self.least, self.images = saturation, least, images
        self.by_client: dict[int, float] = {}

    def weights(self, num_teachers: int) -> Float[Tensor, " teachers"]:
        """Of the teachers that were looked at last; 1 where nothing was learnt for so many."""
        found = list(self.by_client.values())
        return torch.tensor(found if len(found) == num_teachers else [1.0] * num_teachers)

    def __call__(
        self, logits_KBC: Float[Tensor, "teachers batch classes"], ensemble: Ensemble
    ) -> Float[Tensor, "batch classes"]:
        """The weighted mean of the probabilities, as logarithms."""
        weight_KC = class_weights(ensemble, logits_KBC.shape[2], self.saturation)
        trust = [self.by_client.get(teacher.client, 1.0) for teacher in ensemble.teachers]
        trusted_KC = torch.tensor(trust).to(weight_KC)[:, None] * weight_KC
        total_C = trusted_KC.sum(dim=0)
        return weighted_probs(logits_KBC, trusted_KC / torch.where(total_C > 0, total_C, 1.0))

    def learn(
        self, ensemble: Ensemble, pool: Pool, batch_size: int, epoch: int, rng: torch.Generator
    ) -> None:
        """Look at the pool; where that changes what the teachers weigh, label it anew."""
        before = [self.by_client.get(teacher.client, 1.0) for teacher in ensemble.teachers]
        scores = trust_scores(ensemble, pool, rng, self.images)
        after = trust_weights(scores, ensemble.num_classes, self.least)
        if max(abs(a - b) for a, b in zip(after, before, strict=True)) < CHANGE:
            after = before
        self.by_client = {t.client: w for t, w in zip(ensemble.teachers, after, strict=True)}
        if after != before:
            device = ensemble.num_examples_K.device
            for some in torch.arange(len(pool)).split(256):
                pool.relabel(some, ensemble.label(pool.get(some).x.to(device)))


CHANGE = 0.1
"""Of a weight, below which the labels at hand are good enough."""
