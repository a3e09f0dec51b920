"""The mode-seeking term: where predictions differ, images should differ too."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["ModeSeeking"]


class ModeSeeking(Term):
    """`L_ds = 1 / (l_z + 1e-20)`, `l_z = ||x2 - x1|| / ||p2 - p1||` over the two halves 1, 2 of a batch.

    The halves come from one pass of the generator, each of B/2 latents; x are normalized images, p the teachers'
    probabilities. The paper's `frobenius` norm over all of a half makes L_ds about `1 / sqrt(channels * H * W)` for
    uncorrelated images of unit variance: .03 at 1x32x32, vanishing on larger ones. `rms` divides each norm by the root
    of its number of entries, which leaves about .3 at any size (ten classes, sure predictions).

    References:
        P. Han et al. 2021 (RDSKD), ICASSP, arXiv 2011.03749; after Mao et al. 2019, arXiv 1903.05628.

    Args:
        weight: Factor of the term, >= 0.
        norm: `frobenius` or `rms`.
    """

    combined = halves = True

    def __init__(self, weight: float = 1.0, norm: Literal["frobenius", "rms"] = "frobenius") -> None:
        super().__init__(weight)
        if norm not in ("frobenius", "rms"):
            raise ConfigError("synthesizer...ds.norm", norm, "frobenius or rms")
        self.norm = norm

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """The inverse ratio of distances, as `d_p / (d_x + 1e-20 d_p)`: also finite where predictions coincide.

        Raises:
            ConfigError: If the batch cannot be halved.
        """
        if len(seen.x) % 2:
            raise ConfigError(
                "synthesizer.batch_size", len(seen.x), "an even number, for the mode-seeking term"
            )
        d_x, d_p = self.distance(seen.normalized), self.distance(seen.teacher.softmax(dim=1))
        return d_p / (d_x + 1e-20 * d_p)

    def distance(self, values: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
        """The norm of the difference between the halves."""
        first, second = values.chunk(2)
        norm = torch.linalg.vector_norm(second - first)
        return norm if self.norm == "frobenius" else norm / first.numel() ** 0.5
