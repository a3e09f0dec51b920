"""The moments term: at each place, images look like the client's own on average."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.ensemble import Ensemble
from fl_cmi.moments import has_moments, moments_distance
from fl_cmi.synthesis.terms.batch_norm import require_unless_skipped
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Moments"]


class Moments(Term):
    """Distance of the batch's moments (`fl_cmi.moments`) from those that each client sent, averaged over clients.

    Ours: batch norm's statistics let the parts of a garment be anywhere; moments say where.

    Args:
        weight: Factor of the term, >= 0.
        missing: Teachers without batch norm are refused (`refuse`) or left out (`skip`, for mixed architectures).
    """

    def __init__(self, weight: float = 1.0, missing: Literal["refuse", "skip"] = "refuse") -> None:
        super().__init__(weight)
        if missing not in ("refuse", "skip"):
            raise ConfigError("synthesizer...moments.missing", missing, "refuse or skip")
        self.missing = missing
        self.averages = missing == "refuse"

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher (with `skip`: that has batch norm, and one has) needs moments of its images."""
        key = "synthesizer...moments.weight"
        require_unless_skipped(ensemble, key, self.weight, self.missing)
        for teacher, layers in zip(ensemble.teachers, ensemble.batch_norm_counts, strict=True):
            if layers and not has_moments(teacher.model):
                why = f"client {teacher.client} sends no moments (strategy=fed_cmi_moments has clients send them)"
                raise ConfigError(key, self.weight, f"0, because {why}")

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean over teachers of `moments_distance`."""
        found = [inputs for inputs in seen.seen if inputs]
        if not found:
            return seen.teacher.new_zeros(())
        return torch.stack([moments_distance(inputs) for inputs in found]).mean()
