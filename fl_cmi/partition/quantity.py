"""Label mixes alike, sizes or image quality different."""

from collections.abc import Sequence

import numpy as np

from fl_cmi.partition.checks import (
    MAX_ATTEMPTS,
    check_clients,
    check_min_size,
    check_positive,
    out_of_attempts,
)
from fl_cmi.partition.deal import cut
from fl_cmi.partition.types import Labels, Param, Partition, seal
from fl_cmi.types import ConfigError

__all__ = [
    "feature_noise",
    "iid",
    "quantity_dirichlet",
    "quantity_explicit",
    "quantity_exponential",
    "quantity_linear",
    "quantity_square",
]


def iid(labels: Labels, num_clients: int, rng: np.random.Generator) -> Partition:
    """Permute and split evenly; the first `N mod K` clients hold one image more.

    Args:
        labels: Classes (N,).
        num_clients: K, at most N.
        rng: Source of the permutation.

    Raises:
        ConfigError: For `num_clients`.
    """
    check_clients(labels, num_clients)
    return seal("iid", {}, np.array_split(rng.permutation(len(labels)), num_clients), labels)


def feature_noise(labels: Labels, num_clients: int, rng: np.random.Generator, *, noise: float) -> Partition:
    """`iid`, and client k's images, its local tests too, carry Gaussian noise of `sd_k = noise * k / (K-1)`.

    Whoever hands out the images adds the noise, after conversion to [0, 1]. A single client has none.

    References:
        Li, Diao, Chen, He 2022 (NIID-Bench), arXiv:2102.02079, section 4.2; the released code takes the
        formula as a standard deviation, and so do we.

    Args:
        labels: Classes (N,).
        num_clients: K, at most N.
        rng: Source of the permutation.
        noise: Standard deviation at the last client, > 0, in units of the pixel range.

    Raises:
        ConfigError: For an impossible argument.
    """
    check_clients(labels, num_clients)
    check_positive("partition.noise", noise)
    noise_sd = tuple(float(noise * k / max(num_clients - 1, 1)) for k in range(num_clients))
    indices = np.array_split(rng.permutation(len(labels)), num_clients)
    return seal("feature_noise", {"noise": noise}, indices, labels, noise_sd=noise_sd)


def quantity_dirichlet(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, beta: float, min_size: int = 10
) -> Partition:
    """Permute; cut at `floor(cumsum(p) * N)`, `p ~ Dir(beta, ..., beta)`, redrawn until all hold `min_size`.

    References:
        Li, Diao, Chen, He 2022 (NIID-Bench, "q ~ Dir(beta)"), arXiv:2102.02079, section 4.3. Their code tests
        `p * N` before rounding and may leave one image less; we test the sizes.

    Args:
        labels: Classes (N,).
        num_clients: K, at most N.
        rng: Source of every draw.
        beta: Concentration, > 0.
        min_size: Images of the smallest client, >= 1.

    Raises:
        ConfigError: For an impossible argument, or when bounded redraws did not reach `min_size`.
    """
    check_clients(labels, num_clients)
    check_positive("partition.beta", beta)
    check_min_size(min_size, len(labels), num_clients)
    shuffled = rng.permutation(len(labels))
    for _ in range(MAX_ATTEMPTS):
        total = np.cumsum(rng.dirichlet(np.full(num_clients, float(beta))))
        sizes_K = np.diff(np.floor(total / total[-1] * len(labels)).astype(np.int64), prepend=0)
        if sizes_K.min() >= min_size:
            params: dict[str, Param] = {"beta": beta, "min_size": min_size}
            return seal("quantity_dirichlet", params, cut(shuffled, sizes_K), labels)
    raise out_of_attempts("partition.beta", beta, min_size)


def quantity_explicit(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, sizes: Sequence[int]
) -> Partition:
    """Permute; client k gets `sizes[k]` images. What is left over is held by nobody.

    Args:
        labels: Classes (N,).
        num_clients: K, the number of sizes.
        rng: Source of the permutation.
        sizes: K whole numbers >= 1, at most N in all.

    Raises:
        ConfigError: For an impossible argument.
    """
    check_clients(labels, num_clients)
    given = list(sizes)
    if len(given) != num_clients or not all(_is_size(n) for n in given):
        raise ConfigError(
            "partition.sizes", given, f"{num_clients} whole numbers >= 1, one per client (num_clients)"
        )
    if sum(given) > len(labels):
        raise ConfigError(
            "partition.sizes", given, f"at most {len(labels)} in all, the number of training images"
        )
    sizes_K = np.array(given, dtype=np.int64)
    indices = cut(rng.permutation(len(labels)), sizes_K)
    return seal("quantity_explicit", {"sizes": sizes_K.tolist()}, indices, labels)


def _is_size(n: object) -> bool:
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool) and bool(n >= 1)


def quantity_linear(labels: Labels, num_clients: int, rng: np.random.Generator) -> Partition:
    """Permute; sizes in proportion to `1, 2, ..., K`, floored, the rest to the last client.

    References:
        Flower Datasets, `LinearPartitioner`.

    Args:
        labels: Classes (N,).
        num_clients: K.
        rng: Source of the permutation.

    Raises:
        ConfigError: For `num_clients`, also where a client's share rounds to no image.
    """
    check_clients(labels, num_clients)
    return _proportional("quantity_linear", labels, np.arange(1.0, num_clients + 1), rng)


def quantity_square(labels: Labels, num_clients: int, rng: np.random.Generator) -> Partition:
    """As `quantity_linear` with sizes in proportion to `1, 4, ..., K^2` (Flower's `SquarePartitioner`)."""
    check_clients(labels, num_clients)
    return _proportional("quantity_square", labels, np.arange(1.0, num_clients + 1) ** 2, rng)


def quantity_exponential(labels: Labels, num_clients: int, rng: np.random.Generator) -> Partition:
    """As `quantity_linear` with sizes in proportion to `e, ..., e^K` (Flower's `ExponentialPartitioner`)."""
    check_clients(labels, num_clients)
    return _proportional("quantity_exponential", labels, np.exp(np.arange(1.0 - num_clients, 1)), rng)


def _proportional(name: str, labels: Labels, weight_K: np.ndarray, rng: np.random.Generator) -> Partition:
    sizes_K = np.floor(weight_K / weight_K.sum() * len(labels)).astype(np.int64)
    sizes_K[-1] += len(labels) - sizes_K.sum()
    return seal(name, {}, cut(rng.permutation(len(labels)), sizes_K), labels)
