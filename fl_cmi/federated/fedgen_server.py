"""FedGen's server half: a generator of features, taught by the clients' heads."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import owner_weights
from fl_cmi.federated.fedgen_losses import released_teacher
from fl_cmi.losses import pairwise_diversity
from fl_cmi.models.latent import LatentGenerator
from fl_cmi.types import ConfigError

__all__ = ["GeneratorTraining", "LabelCounts", "TeacherLoss"]


class TeacherLoss(Protocol):
    """How sure the clients' heads are of the labels that features were made for."""

    def __call__(
        self,
        logits_KBC: Float[Tensor, "clients batch classes"],
        y: Int[Tensor, " batch"],
        weights_CK: Float[Tensor, "classes clients"],
    ) -> Float[Tensor, ""]:
        """The loss; `weights_CK` is each client's share of each class."""
        ...


class LabelCounts:
    """What the server knows of the clients' labels: the last counts of each client it has heard of.

    Args:
        start: What every class starts with in a client's counts.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.last: dict[int, Int[Tensor, " classes"]] = {}
        self.owned: Tensor | None = None

    def add(self, counts: dict[int, Int[Tensor, " classes"]]) -> None:
        """A round's counts, by client."""
        self.last |= counts
        found = torch.stack([count > self.start for count in counts.values()]).any(dim=0)
        self.owned = found if self.owned is None else self.owned | found

    def prior(self, labels: Literal["owned", "frequent"]) -> Float[Tensor, " classes"]:
        """Uniform over the labels that some client owns, or as frequent as they are with all clients heard of."""
        assert self.owned is not None, "no round is over"
        weights = torch.stack(list(self.last.values())).sum(dim=0) if labels == "frequent" else self.owned
        return weights.float() / weights.sum()


class GeneratorTraining:
    """Some steps on the generator in each round.

        y ~ labels;  z = G(y, eps);  L = teacher_weight * L_teacher(h_k(z), y) + diversity_weight * L_div(eps, z)

    The generator is in train mode, the heads are frozen; the optimizer's state lasts over the rounds.

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, equation 4; defaults of the released code for MNIST.

    Args:
        optimizer: Makes the optimizer.
        steps: In a round, >= 1.
        batch_size: Labels a step, >= 2.
        rate_decay: Of the learning rate, per round, in (0, 1].
        teacher: `released_teacher` (the code's), `weighted_teacher` (what it meant) or `mean_logits_teacher` (the
            paper's).
        teacher_weight: >= 0.
        diversity_weight: >= 0.
        labels: `owned` draws labels uniformly from those that some of the round's clients owns (the code's);
            `frequent` as frequent as they are with the round's clients (the paper's).
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        steps: int = 50,
        batch_size: int = 32,
        rate_decay: float = 0.98,
        teacher: TeacherLoss = released_teacher,
        teacher_weight: float = 1.0,
        diversity_weight: float = 1.0,
        labels: Literal["owned", "frequent"] = "owned",
    ) -> None:
        for key, value, least in (("steps", steps, 1), ("batch_size", batch_size, 2)):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"strategy.training.{key}", value, f"an integer >= {least}")
        if not 0 < rate_decay <= 1:
            raise ConfigError("strategy.training.rate_decay", rate_decay, "a number in (0, 1]")
        for key, weight in (("teacher_weight", teacher_weight), ("diversity_weight", diversity_weight)):
            if not weight >= 0:
                raise ConfigError(f"strategy.training.{key}", weight, "a number >= 0")
        if labels not in ("owned", "frequent"):
            raise ConfigError("strategy.training.labels", labels, "owned or frequent")
        self.steps, self.batch_size, self.rate_decay = steps, batch_size, rate_decay
        self.teacher, self.teacher_weight, self.diversity_weight = teacher, teacher_weight, diversity_weight
        self.labels: Literal["owned", "frequent"] = labels
        self.make_optimizer = optimizer
        self.optimizer: Optimizer | None = None

    def __call__(
        self,
        generator: LatentGenerator,
        heads: Sequence[nn.Module],
        counts: LabelCounts,
        rng: torch.Generator,
    ) -> dict[str, float]:
        """Train in place.

        Args:
            generator: On its device, the same one in every round.
            heads: The round's clients' last layers, on that device.
            counts: The labels of the same clients, in that order.
            rng: Labels and noise.

        Returns:
            `teacher` and `diversity`, the mean losses of the round.
        """
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(generator.parameters())
        device = generator.out.weight.device
        prior = counts.prior(self.labels)
        weights_CK = owner_weights(torch.stack(list(counts.last.values()))).float().T.to(device)
        for head in heads:
            head.eval().requires_grad_(False)
        generator.train()
        totals = {"teacher": 0.0, "diversity": 0.0}
        for _ in range(self.steps):
            y = torch.multinomial(prior, self.batch_size, replacement=True, generator=rng).to(device)
            eps = generator.draw(self.batch_size, rng, device)
            z = generator(eps, y)
            sure = self.teacher(torch.stack([head(z) for head in heads]), y, weights_CK)
            alike = pairwise_diversity(z, eps)
            self.optimizer.zero_grad(set_to_none=True)
            (self.teacher_weight * sure + self.diversity_weight * alike).backward()
            self.optimizer.step()
            totals["teacher"] += sure.item() / self.steps
            totals["diversity"] += alike.item() / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] *= self.rate_decay
        return totals

    def state_dict(self) -> Tree:
        """The optimizer's; None before the first round."""
        return None if self.optimizer is None else self.optimizer.state_dict()

    def load_state_dict(self, state: Tree, generator: LatentGenerator) -> None:
        """Go on from `state` with this generator."""
        self.optimizer = None
        if state is not None:
            self.optimizer = self.make_optimizer(generator.parameters())
            self.optimizer.load_state_dict(state)
