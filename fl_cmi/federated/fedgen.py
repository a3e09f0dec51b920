"""FedGen's client half: local training with features from the server's generator."""

from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.federated.method import ClientMethod, Visit, from_broadcast
from fl_cmi.losses import kl_divergence
from fl_cmi.models.latent import LatentGenerator
from fl_cmi.session import Contribution, Session
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, Task

__all__ = ["GENERATOR", "LABELS", "LatentRegularized", "MakeGenerator"]

GENERATOR = "generator"
"""The record of the generator's parameters and buffers, down."""

LABELS = "labels"
"""Down `prior` (C,), the distribution of labels to draw; up `count` (C,)."""

LEAST = 1e-4
"""Below this the weights of the two terms do not decay."""

MakeGenerator = Callable[..., LatentGenerator]
"""Given `num_classes` and `num_features`."""


class LatentRegularized(ClientMethod):
    """Local training, regularized by features that the server's generator makes of labels.

        L = CE(f(x), y) + S a_t CE(h(G(y')), y') + b_t KL( stopgrad p(h(G(y))) || p(f(x)) ),    y' ~ prior
        a_t = max(1e-4, a decay^t), b_t likewise;  S = num_samples / batch where `batch_scale`, else 1;  t from 0

    h is the model's last layer, G is not trained here and in eval mode. While no generator comes (in the first round)
    the first term stands alone. Defaults are those of the released code; the paper (equation 5) has a = 1 and no decay,
    b = 0, S = 1.

    References:
        Zhu, Hong, Zhou 2021, arXiv 2105.10056, equation 5 and algorithm 1.

    Args:
        generator: Makes the generator; the server's is of the same.
        cross_entropy: a >= 0.
        divergence: b >= 0, "latent KL": 10 for MNIST and CelebA, 1 for EMNIST, not in the paper.
        decay: Of both, per round, in (0, 1].
        num_samples: Labels y' drawn for a step, >= 1.
        batch_scale: Whether the second term grows with `num_samples / batch`, as in the code.
        counts: What labels a client tells: `batches`, those it trained on in this round, `count_start` added to each
            class (the code's), or `images`, those of its training set (the paper's).
        count_start: See above, >= 0.
        share: `all` of the model, or the `head` alone (the paper's partial sharing): then every client keeps its own
            features, and there is no global model.
    """

    def __init__(
        self,
        generator: MakeGenerator,
        cross_entropy: float = 10.0,
        divergence: float = 10.0,
        decay: float = 0.98,
        num_samples: int = 32,
        batch_scale: bool = True,
        counts: Literal["batches", "images"] = "batches",
        count_start: int = 1,
        share: Literal["all", "head"] = "all",
    ) -> None:
        def need(key: str, value: object, right: bool, allowed: str) -> None:
            if not right:
                raise ConfigError(f"strategy.client.{key}", value, allowed)

        need("cross_entropy", cross_entropy, cross_entropy >= 0, "a number >= 0")
        need("divergence", divergence, divergence >= 0, "a number >= 0")
        need("decay", decay, 0 < decay <= 1, "a number in (0, 1]")
        need("num_samples", num_samples, isinstance(num_samples, int) and num_samples >= 1, "an integer >= 1")
        need("count_start", count_start, isinstance(count_start, int) and count_start >= 0, "an integer >= 0")
        need("counts", counts, counts in ("batches", "images"), "batches or images")
        need("share", share, share in ("all", "head"), "all or head")
        self.generator, self.cross_entropy, self.divergence = generator, cross_entropy, divergence
        self.decay, self.num_samples, self.batch_scale = decay, num_samples, batch_scale
        self.counts, self.share = counts, share
        self.count_start = count_start if counts == "batches" else 0

    def make(self, num_classes: int, num_features: int) -> LatentGenerator:
        """A generator for a model with features of this width."""
        return self.generator(num_classes=num_classes, num_features=num_features)

    def check(self, local: LocalTraining) -> None:
        """From the broadcast."""
        from_broadcast(local, "the server averages the models")

    def private(self, model: nn.Module) -> frozenset[str]:
        """Nothing, or all but the head."""
        names = frozenset(model.state_dict())
        return names - head_names(model) if self.share == "head" else frozenset()

    def begin(self, visit: Visit) -> "LatentSession":
        """Set up the generator that came, if any."""
        return LatentSession(visit, self)

    def disclosed(self, model: nn.Module, task: Task) -> list[str]:
        """Labels."""
        of = "batches of the round" if self.counts == "batches" else "training set"
        return [f"labels of its {of} ({task.num_classes} integers)"]


class LatentSession(Session):
    """One round of a client.

    Args:
        visit: The client.
        method: Its settings.
    """

    def __init__(self, visit: Visit, method: LatentRegularized) -> None:
        self.method, self.device, self.rng = method, visit.device, visit.rng
        self.round = visit.server_round - 1
        self.images, classes = visit.images, visit.images.num_classes
        self.count_C = torch.full((classes,), method.count_start, dtype=torch.int64, device=visit.device)
        self.head = visit.model.get_submodule("classifier")
        self.generator: LatentGenerator | None = None
        if GENERATOR in visit.received:
            self.generator = method.make(classes, cast(int, visit.model.num_features))
            self.generator.load_state_dict(visit.received[GENERATOR])
            self.generator.to(visit.device).eval()
            self.prior_C = visit.received[LABELS]["prior"]

    def loss(
        self, logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""] | float:
        """The second and the third term; the labels are counted."""
        self.count_C += torch.bincount(y, minlength=len(self.count_C))
        if self.generator is None:
            return 0.0
        method = self.method
        drawn = torch.multinomial(self.prior_C, method.num_samples, replacement=True, generator=self.rng)
        drawn = drawn.to(self.device)
        scale = method.num_samples / len(y) if method.batch_scale else 1.0
        loss = (
            scale * self.weight(method.cross_entropy) * F.cross_entropy(self.head(self.latent(drawn)), drawn)
        )
        if method.divergence:
            target = self.head(self.latent(y)).detach()
            loss = loss + self.weight(method.divergence) * kl_divergence(target, logits)
        return loss

    def finish(self) -> Contribution:
        """The labels."""
        counts = self.images.class_counts() if self.method.counts == "images" else self.count_C.cpu()
        return Contribution(sent={LABELS: {"count": counts}})

    def weight(self, first: float) -> float:
        """A term's weight in this round; 0 stays 0."""
        return max(LEAST, first * self.method.decay**self.round) if first else 0.0

    def latent(self, y: Int[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """Features of the labels, without gradient."""
        assert self.generator is not None
        with torch.no_grad():
            z: Tensor = self.generator(self.generator.draw(len(y), self.rng, self.device), y)
        return z


def head_names(model: nn.Module) -> frozenset[str]:
    """Names of the last layer's tensors."""
    return frozenset(name for name in model.state_dict() if name.startswith("classifier."))
