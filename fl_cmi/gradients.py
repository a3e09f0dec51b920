"""Whether images can follow what an ensemble says: not every rule passes gradients on to the teachers."""

from functools import partial

import torch

from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.types import ConfigError

__all__ = ["require_gradients", "rule_name"]


def require_gradients(ensemble: Ensemble, why: str) -> None:
    """Raise ConfigError, telling why, if the rule passes none on, as a vote: the images would stay where they are."""
    like = ensemble.num_examples_K
    with torch.enable_grad():
        logits_KBC = like.new_zeros(len(ensemble), 1, ensemble.num_classes).requires_grad_()
        followed = ensemble.combine(logits_KBC, ensemble).requires_grad
    if not followed:
        allowed = f"a rule with a gradient, such as mean_probs, because {why}"
        raise ConfigError("combine", rule_name(ensemble.combine), allowed)


def rule_name(combine: Combine) -> str:
    """A rule by the name of its function or class."""
    rule = combine.func if isinstance(combine, partial) else combine
    return str(getattr(rule, "__name__", type(rule).__name__))
