"""The batch-norm term of The Knowledge Within: a divergence of normal distributions, the input layer included."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.batchnorm import batch_statistics
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.terms.batch_norm import require_batch_norm
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["BatchNormKL", "normal_kl"]

Channels = Float[Tensor, " channels"]

FLOOR = 1e-5
"""Least variance: a dead channel's would make the divergence infinite."""


def normal_kl(mean: Channels, var: Channels, other_mean: Channels, other_var: Channels) -> Channels:
    """`KL(N(m, v^2) || N(mu, s^2)) = log(s / v) - 1/2 + (v^2 + (m - mu)^2) / (2 s^2)` per channel, in nats."""
    return 0.5 * ((other_var / var).log() - 1 + (var + (mean - other_mean) ** 2) / other_var)


def batch_ref(m: Channels, v: Channels, mu: Channels, s: Channels) -> Channels:
    """`KL(batch || reference)`; m, mu are means and v, s variances, as in the following."""
    return normal_kl(m, v, mu, s)


def ref_batch(m: Channels, v: Channels, mu: Channels, s: Channels) -> Channels:
    """`KL(reference || batch)`."""
    return normal_kl(mu, s, m, v)


def symmetric(m: Channels, v: Channels, mu: Channels, s: Channels) -> Channels:
    """Half the sum of both directions."""
    return 0.5 * (batch_ref(m, v, mu, s) + ref_batch(m, v, mu, s))


def squared_distance(m: Channels, v: Channels, mu: Channels, s: Channels) -> Channels:
    """`(m - mu)^2 + (sqrt v - sqrt s)^2`: the squared 2-Wasserstein distance of the two normal distributions."""
    return (m - mu) ** 2 + (v.sqrt() - s.sqrt()) ** 2


DIRECTIONS: dict[str, Callable[[Channels, Channels, Channels, Channels], Channels]] = {
    "batch_ref": batch_ref,
    "ref_batch": ref_batch,
    "sym": symmetric,
    "mse": squared_distance,
}


class BatchNormKL(Term):
    """`L_BNS = 1/(L + 1) sum_l mean_channels KL_l`, over the L batch-norm layers and the network's input.

    Layer l compares the mean and the (biased) variance of its input over the batch with its running statistics; the
    normalized image is one more layer, whose reference is N(0, 1). Averaged over clients, each with its own statistics.

    `batch_ref` punishes channels that vary too much and only mildly dead ones (1.81 nats at a tenth of the reference's
    standard deviation, 47.2 at ten times); `ref_batch` the reverse. Which of them made the published figures is
    unknown: `batch_ref` is the authors' code. Variances are floored at 1e-5 in the value only, so that a dead channel
    still feels where to go.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274.

    Args:
        weight: Factor of the term, >= 0.
        direction: `batch_ref`, `ref_batch`, `sym` (half the sum of both) or `mse` (squared differences of means and of
            standard deviations).
    """

    def __init__(
        self, weight: float = 1.0, direction: Literal["batch_ref", "ref_batch", "sym", "mse"] = "batch_ref"
    ) -> None:
        super().__init__(weight)
        if direction not in DIRECTIONS:
            raise ConfigError("synthesizer...bn_kl.direction", direction, f"one of {', '.join(DIRECTIONS)}")
        self.divergence = DIRECTIONS[direction]

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher needs batch norm: only the input layer would be left."""
        require_batch_norm(ensemble, "synthesizer...bn_kl.weight", self.weight)

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The mean over teachers."""
        image = seen.normalized
        zero, one = (torch.full_like(image[0, :, 0, 0], value) for value in (0.0, 1.0))
        at_input = self.layer(image, zero, one)
        of_clients = []
        for inputs in seen.seen:
            layers = [at_input]
            for bn, f in inputs.items():
                assert bn.running_mean is not None and bn.running_var is not None
                layers.append(self.layer(f, bn.running_mean, bn.running_var))
            of_clients.append(torch.stack(layers).mean())
        return torch.stack(of_clients).mean()

    def layer(
        self, f: Float[Tensor, "batch channels height width"], mean: Channels, var: Channels
    ) -> Float[Tensor, ""]:
        """One layer's divergence from its reference, averaged over channels."""
        batch_mean, batch_var = batch_statistics(f)
        return self.divergence(batch_mean, floored(batch_var), mean, floored(var)).mean()


def floored(var: Channels) -> Channels:
    """`max(var, 1e-5)` with the gradient of `var` itself."""
    return var.detach().clamp(min=FLOOR) + (var - var.detach())
