"""The moments term: at each place, images look like the client's own on average."""

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.ensemble import Ensemble
from fl_cmi.moments import has_moments, moments_distance
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["Moments"]


class Moments(Term):
    """Distance of the batch's moments (`fl_cmi.moments`) from those that each client sent, averaged over clients.

    Ours: batch norm's statistics let the parts of a garment be anywhere; moments say where.

    Args:
        weight: Factor of the term, >= 0.
    """

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher needs batch norm, and moments of its images."""
        for teacher in ensemble.teachers:
            if not has_moments(teacher.model):
                raise ConfigError(
                    "synthesizer...moments.weight",
                    self.weight,
                    f"0, because client {teacher.client} sends no moments"
                    " (strategy=fed_cmi_moments has clients with batch norm send them)",
                )

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean over teachers of `moments_distance`."""
        return torch.stack([moments_distance(inputs) for inputs in seen.seen]).mean()
