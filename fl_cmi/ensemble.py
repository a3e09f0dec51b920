"""The client ensemble and the rules that combine it.

Shape letters: K teachers, B batch, C classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.bank import Pool
from fl_cmi.batchnorm import Observed, batch_norm_layers, classifier_input, observe
from fl_cmi.losses import label_log_prior
from fl_cmi.precision import Precision, exact
from fl_cmi.types import ConfigError, Teacher

__all__ = [
    "Combine",
    "Ensemble",
    "Learns",
    "by_class_counts",
    "by_energy",
    "by_num_examples",
    "majority",
    "mean_logits",
    "mean_probs",
    "owner_weights",
    "prior_corrected_logits",
]

Logits = Float[Tensor, "teachers batch classes"]
Combined = Float[Tensor, "batch classes"]


class Combine(Protocol):
    """A rule that turns the teachers' logits into one row of logits per image.

    Rules that average probabilities return their logarithm: softmax gives the probabilities back.
    """

    def __call__(self, logits_KBC: Logits, ensemble: "Ensemble") -> Combined:
        """The combined logits."""
        ...


@runtime_checkable
class Learns(Protocol):
    """A rule with weights of its own that learn from the synthetic images (Co-Boosting, agreement-weighted)."""

    def begin(self, clients: Sequence[int]) -> None:
        """A round with these clients begins."""

    def learn(
        self, ensemble: "Ensemble", pool: Pool, batch_size: int, epoch: int, rng: torch.Generator
    ) -> None:
        """One pass over the pool, in the round's epoch of this number, from 0; labels in the pool stay as they are."""

    def weights(self, clients: Sequence[int]) -> Tensor:
        """As they stand, one for the teacher of each of these clients."""
        ...


def mean_logits(logits_KBC: Logits, ensemble: "Ensemble") -> Combined:
    """`1/K sum_k t_k` (DENSE, FedDF)."""
    return logits_KBC.mean(dim=0)


def mean_probs(logits_KBC: Logits, ensemble: "Ensemble") -> Combined:
    """`log( 1/K sum_k softmax(t_k) )`."""
    return logits_KBC.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits_KBC))


def by_num_examples(logits_KBC: Logits, ensemble: "Ensemble") -> Combined:
    """`sum_k n_k t_k / sum_k n_k`: logits weighted by the size of each client's training set."""
    weight_K = (ensemble.num_examples_K / ensemble.num_examples_K.sum()).to(logits_KBC)
    return torch.einsum("k,kbc->bc", weight_K, logits_KBC)


def by_energy(logits_KBC: Logits, ensemble: "Ensemble", temperature: float = 2.0) -> Combined:
    """`log sum_k w_k softmax(t_k)` with `w_k ~ exp(E_k / T)`, `E_k = log sum_c exp(t_kc)`, per image.

    A model's free energy E tells familiar images from strange ones, so that clients who have seen the like of an image
    judge it; nothing but logits is needed.

    References:
        Liu et al. 2020, arXiv 2010.03759, equation 4, whose score is -E; the weighting is ours.

    Args:
        logits_KBC: Of each teacher.
        ensemble: The teachers.
        temperature: T > 0; large is the plain mean of probabilities.
    """
    if not temperature > 0:
        raise ConfigError("combine.temperature", temperature, "a number > 0")
    energy_KB = logits_KBC.logsumexp(dim=2)
    log_weight_KB = (energy_KB / temperature).log_softmax(dim=0)
    return (logits_KBC.log_softmax(dim=2) + log_weight_KB[:, :, None]).logsumexp(dim=0)


def by_class_counts(
    logits_KBC: Logits,
    ensemble: "Ensemble",
    saturation: float = math.inf,
    without_counts: Combine | None = None,
) -> Combined:
    """`P_c ~ sum_k W_kc softmax(t_k)_c` with `W_kc ~ n_k(c) / (1 + n_k(c) / s)`, renormalized over clients and classes.

    Each class is judged by those who own it; a class without owner has probability 0 (log -inf is avoided by a floor,
    for those classes only). Computed on logarithms, so that the gradient does not vanish where the owners are sure of
    another class.

    Args:
        logits_KBC: Of each teacher.
        ensemble: The teachers.
        saturation: s > 0, in images: beyond some s of them more images of a class give no more say in it. Infinite
            (the field's rule): by counts. Teachers trained with the prior-corrected loss want it small, for their
            logits are free of their label mix already.
        without_counts: The rule where clients keep their label counts; None: that is an error.
    """
    if not saturation > 0:
        raise ConfigError("combine.saturation", saturation, "a number of images > 0")
    if ensemble.class_counts_KC is None and without_counts is not None:
        return without_counts(logits_KBC, ensemble)
    counts_KC = ensemble.require_class_counts("combine=by_class_counts").to(logits_KBC)
    counts_KC = counts_KC / (1 + counts_KC / saturation)
    owned_C = counts_KC.sum(dim=0) > 0
    # Where nobody owns the class, all weights are -inf, and the gradient of logsumexp would be NaN.
    log_weight_KC = torch.where(owned_C, (counts_KC / counts_KC.sum(dim=0)).log(), 0.0)
    log_p_BC = (logits_KBC.log_softmax(dim=2) + log_weight_KC[:, None, :]).logsumexp(dim=0)
    return F.log_softmax(torch.where(owned_C, log_p_BC, math.log(1e-12)), dim=1)


def owner_weights(counts_KC: Int[Tensor, "teachers classes"]) -> Float[Tensor, "teachers classes"]:
    """`W_kc = n_k(c) / sum_j n_j(c)`, 0 for a class that nobody owns (FedFTG, FedGen)."""
    return counts_KC.double() / counts_KC.sum(dim=0).clamp(min=1)


def prior_corrected_logits(logits_KBC: Logits, ensemble: "Ensemble") -> Combined:
    """`1/K sum_k (t_k - log prior_k)`: every client's own label mix taken out first (Menon et al. 2021, equation 8).

    Needs label counts; clients that keep theirs can train with the prior-corrected loss instead and be combined by
    `mean_logits`.
    """
    counts_KC = ensemble.require_class_counts("combine=prior_corrected_logits")
    return (logits_KBC - label_log_prior(counts_KC).to(logits_KBC)[:, None, :]).mean(dim=0)


def majority(logits_KBC: Logits, ensemble: "Ensemble") -> Combined:
    """`log` of each class's share of the teachers' votes, one half vote added to each; without gradient."""
    votes_BC = F.one_hot(logits_KBC.argmax(dim=2), logits_KBC.shape[2]).sum(dim=0) + 0.5
    return F.log_softmax(votes_BC.to(logits_KBC).log(), dim=1)


class Ensemble(nn.Module):
    """The clients' models, frozen and in eval mode, combined into one classifier.

    Registered in an `nn.ModuleList`: a plain list would hide the teachers from `modules()` and `eval()`, and a
    batch-norm loss over zero layers is silently 0 (the fault of DENSE's released code).

    Args:
        teachers: At least one, in the order of their partition ids.
        combine: The rule behind `forward`.
        passes: Counter of forward passes of single teachers, shared with another ensemble; None starts one.
        precision: Of the teachers, and of the networks that learn from them: see `run`.
    """

    class_counts_KC: Tensor | None
    num_examples_K: Tensor

    def __init__(
        self,
        teachers: Sequence[Teacher],
        combine: Combine = mean_logits,
        passes: list[int] | None = None,
        precision: Precision = exact,
    ) -> None:
        super().__init__()
        self.precision = precision
        self._passes = [0] if passes is None else passes
        if not teachers:
            raise ValueError("an ensemble needs at least one teacher")
        self.teachers = tuple(teachers)
        self.combine = combine
        self.models = nn.ModuleList(teacher.model for teacher in teachers)
        counts = [teacher.class_counts for teacher in teachers]
        shared = None if any(c is None for c in counts) else torch.stack([c for c in counts if c is not None])
        self.register_buffer("class_counts_KC", shared)
        self.register_buffer("num_examples_K", torch.tensor([float(t.num_examples) for t in teachers]))
        self.requires_grad_(False)
        super().train(False)
        assert len(batch_norm_layers(self)) == sum(self.batch_norm_counts), (
            "a teacher is shared or not registered"
        )

    def train(self, mode: bool = True) -> "Ensemble":
        """Stay in eval mode: teachers are fixed whatever happens to the modules around them."""
        return self

    def __len__(self) -> int:
        return len(self.models)

    @property
    def passes(self) -> int:
        """Forward passes of single teachers so far, those of `only` included."""
        return self._passes[0]

    def count(self, passes: int) -> None:
        """Count so many passes as made, by a process before this one."""
        self._passes[0] += passes

    @property
    def clients(self) -> list[int]:
        """Partition ids, in the order of the teachers."""
        return [teacher.client for teacher in self.teachers]

    @property
    def layers(self) -> dict[str, nn.Module]:
        """All modules of all teachers, by partition id and name."""
        return {
            f"{teacher.client}.{name}": module
            for teacher in self.teachers
            for name, module in teacher.model.named_modules()
        }

    @property
    def num_classes(self) -> int:
        """C."""
        classes = self.models[0].get_submodule("classifier").out_features
        assert isinstance(classes, int)
        return classes

    @property
    def batch_norm_counts(self) -> list[int]:
        """Batch-norm layers of each teacher."""
        return [len(batch_norm_layers(model)) for model in self.models]

    @property
    def owned_classes(self) -> Int[Tensor, " owned"] | None:
        """Classes that at least one client holds, ascending; None where clients keep their label counts."""
        return None if self.class_counts_KC is None else self.class_counts_KC.sum(dim=0).nonzero()[:, 0]

    @property
    def say(self) -> Float[Tensor, " teachers"]:
        """What each teacher's word weighs in a rule that learns it; 1 in any other."""
        return (
            self.combine.weights(self.clients) if isinstance(self.combine, Learns) else torch.ones(len(self))
        )

    def require_class_counts(self, who: str) -> Int[Tensor, "teachers classes"]:
        """The label counts, or an error that names who needs them."""
        if self.class_counts_KC is None:
            raise ConfigError(
                "share_label_counts",
                "false",
                f"true, because {who} needs label counts"
                + (" (combine=by_energy does not)" * who.startswith("combine=")),
            )
        return self.class_counts_KC

    def only(self, k: int) -> "Ensemble":
        """Teacher `k` alone (its position, not its partition id), as an ensemble; weights are shared, not copied."""
        return self.some([k], mean_logits)

    def some(self, positions: Sequence[int], combine: Combine) -> "Ensemble":
        """The teachers at these positions, as an ensemble; weights are shared, not copied."""
        chosen = Ensemble([self.teachers[k] for k in positions], combine, self._passes, self.precision)
        return chosen.to(self.num_examples_K.device)

    def run(self, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """What a network on the ensemble's device, a student or a generator, makes of its inputs, in float32."""
        return self.precision(self.num_examples_K.device, network, *inputs)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Logits:
        """Each teacher's own logits."""
        self._passes[0] += len(self)
        return torch.stack([self.run(model, x) for model in self.models])

    def observe(self, x: Float[Tensor, "batch channels height width"]) -> Observed:
        """Each teacher's logits, with the inputs of its batch-norm layers and of its classifier."""
        self._passes[0] += len(self)
        logits, seen, features = [], [], []
        for model in self.models:
            with observe(model) as inputs, classifier_input(model) as found:
                logits.append(self.run(model, x))
            seen.append(inputs)
            features.extend(found)
        return Observed(logits, seen, features)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Combined:
        """Combined logits."""
        return self.combine(self.logits(x), self)

    @torch.no_grad()
    def label(self, x: Float[Tensor, "batch channels height width"]) -> Combined:
        """Combined log-probabilities, without gradient: soft labels for a pool."""
        return F.log_softmax(self(x), dim=1)
