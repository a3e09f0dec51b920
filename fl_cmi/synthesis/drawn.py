"""Some of the teachers in the place of all, so that the cost of a step does not grow with the clients.

For each batch m of K teachers are drawn without replacement, all sets of m being equally likely. A teacher's weight
among them is 1/m: its weight among all, 1/K, over its chance of being drawn, m/K. So for whatever is a mean over
teachers of something g_k(x), at given images x and over the draws of S,

    E mean_{k in S} g_k = mean_k g_k,    Var mean_{k in S} g_k = (K - m) / (m (K - 1)) Var_k g_k

Such are the combined logits (with `mean_probs` the combined probabilities), the batch-norm terms and the activation
term, and their gradients. What is no linear function of these is not right on average: the cross-entropy with drawn
teachers is too large (it is convex, Jensen), the less so the larger m, and what compares teachers with the student may
err either way. Rules that weigh teachers against each other, the contrast, whose bank compares features of
the same teachers, and terms that add up over teachers or remember each are refused.

All steps of a batch have the same teachers: they pull to one place, and the totals among which the `best` iterate is
chosen are of one kind. So a batch fits the teachers it drew, and it is over batches that all are heard: as gradient
steps of a generator that lasts, or as images of a generator that starts afresh.
"""

from functools import partial

import torch

from fl_cmi.ensemble import Combine, Ensemble, mean_logits, mean_probs, prior_corrected_logits
from fl_cmi.gradients import rule_name
from fl_cmi.synthesis.inversion import Inversion
from fl_cmi.types import ConfigError

__all__ = ["MEANS", "check_drawing", "draw"]

MEANS: tuple[Combine, ...] = (mean_logits, mean_probs, prior_corrected_logits)
"""The rules that are a mean over teachers, of logits or of probabilities."""


def draw(ensemble: Ensemble, number: int | None, rng: torch.Generator) -> Ensemble:
    """So many teachers, in their order; all, and no number from `rng`, for None and where there are no more."""
    if number is None or number >= len(ensemble):
        return ensemble
    positions = torch.randperm(len(ensemble), generator=rng)[:number].sort().values
    return ensemble.some(positions.tolist(), ensemble.combine)


def check_drawing(ensemble: Ensemble, inversion: Inversion, number: int) -> None:
    """Raise ConfigError where drawn teachers would not stand for all of them."""
    rule = ensemble.combine.func if isinstance(ensemble.combine, partial) else ensemble.combine
    obstacle = None
    if rule not in MEANS:
        means = ", ".join(rule_name(mean) for mean in MEANS)
        obstacle = f"combine={rule_name(rule)} is no plain mean over teachers, as {means} are"
    elif inversion.contrast is not None:
        obstacle = "the contrast compares features of the same teachers (contrast=null goes without)"
    for name, term in inversion.terms.items():
        if not term.averages:
            obstacle = f"terms.{name} is no mean over teachers that remembers none of them"
    if obstacle is not None:
        raise ConfigError("synthesizer.teachers", number, f"null, because {obstacle}")
