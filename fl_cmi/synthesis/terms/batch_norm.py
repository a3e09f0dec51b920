"""The batch-norm term: statistics of the images should be those that the teachers remember."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.batchnorm import statistics_distance
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["BatchNorm", "require_batch_norm", "require_unless_skipped"]


class BatchNorm(Term):
    """`L_bn`: distance of the batch's statistics from the running ones, summed over layers, averaged over clients.

    Each client with its own statistics, never averaged ones. The mean keeps the weight's meaning at any number of
    clients: the sum of ten would swamp the classification term.

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795, equation 4.

    Args:
        weight: Factor of the term, >= 0.
        over_clients: `mean` or `sum`.
        hook: `all` layers are looked at, or none: with `empty` the term is the sum over no layers, 0, as in DENSE's
            released code, whose ensemble hides its clients in a plain list.
        missing: Teachers without batch norm are refused (`refuse`) or left out (`skip`, for mixed architectures).
    """

    def __init__(
        self,
        weight: float = 1.0,
        over_clients: Literal["mean", "sum"] = "mean",
        hook: Literal["all", "empty"] = "all",
        missing: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        super().__init__(weight)
        if over_clients not in ("mean", "sum"):
            raise ConfigError("synthesizer...bn.over_clients", over_clients, "mean or sum")
        if hook not in ("all", "empty"):
            raise ConfigError("synthesizer...bn.hook", hook, "all or empty")
        if missing not in ("refuse", "skip"):
            raise ConfigError("synthesizer...bn.missing", missing, "refuse or skip")
        self.over_clients, self.hook, self.missing = over_clients, hook, missing
        self.averages = over_clients == "mean" and missing == "refuse"

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher (one, with `skip`) needs batch norm; the loss over zero layers would silently be 0."""
        if self.hook != "empty":
            require_unless_skipped(ensemble, "synthesizer...bn.weight", self.weight, self.missing)

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean or the sum over teachers of `statistics_distance`."""
        hooked = [] if self.hook == "empty" else [inputs for inputs in seen.seen if inputs]
        if not hooked:
            return seen.teacher.new_zeros(())
        distances = torch.stack([statistics_distance(inputs) for inputs in hooked])
        return distances.mean() if self.over_clients == "mean" else distances.sum()


def require_unless_skipped(ensemble: Ensemble, key: str, value: object, missing: str) -> None:
    """As `require_batch_norm`, where a term can leave teachers without batch norm out: `missing=skip` asks for one."""
    some = any(ensemble.batch_norm_counts)
    if missing == "refuse" or not some:
        remedy = "skip such clients (missing=skip), " if some else ""
        require_batch_norm(ensemble, key, value, remedy)


def require_batch_norm(ensemble: Ensemble, key: str, value: object, remedy: str = "") -> None:
    """Raise ConfigError, naming the first teacher without batch norm and the config `key` that asks for it.

    Args:
        ensemble: The teachers.
        key: What is wrong.
        value: Its value.
        remedy: What there is to do beside removing the term, with a comma at its end.
    """
    for teacher, layers in zip(ensemble.teachers, ensemble.batch_norm_counts, strict=True):
        if layers == 0:
            name = type(teacher.model).__name__
            raise ConfigError(
                key,
                value,
                f"no batch-norm term, because client {teacher.client}'s model ({name}) has no batch norm;"
                f" {remedy}remove the term or choose another model",
            )
