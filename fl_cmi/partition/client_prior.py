"""Dirichlet by client: every client has a label mix of its own and fills up from it."""

import numpy as np
from jaxtyping import Float, Int

from fl_cmi.partition.checks import MAX_ATTEMPTS, check_clients, check_positive, check_whole, out_of_attempts
from fl_cmi.partition.deal import deal
from fl_cmi.partition.types import Counts, Labels, Param, Partition, listed, seal
from fl_cmi.types import ConfigError

__all__ = ["dirichlet_client", "dirichlet_client_overlap", "fill_clients", "outlived_notes"]


def dirichlet_client(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, alpha: float, sigma: float = 0.0
) -> Partition:
    """Fill clients of given sizes, image by image, from priors `q_k ~ Dir(alpha, ..., alpha)` over classes.

    While some client lacks images: take a client uniformly among those not yet full, draw `c ~ q_k` among the
    classes not yet exhausted, give it one image of c. Where all classes of a client's prior are exhausted
    (the published code then loops for ever) it draws in proportion to what remains at that moment, and the
    notes name it.

    References:
        Acar et al. 2021 (FedDyn), arXiv:2111.04263, released code; used by FedFTG, Co-Boosting, FedLab.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K, at most N.
        rng: Source of every draw.
        alpha: Concentration, > 0.
        sigma: Spread of the sizes: log-normal(ln(N/K), sigma), rescaled to N and floored, the rest to client
            0; 0 means equal sizes.

    Raises:
        ConfigError: For an impossible argument, or when some client's size stays 0.
    """
    check_clients(labels, num_clients)
    check_positive("partition.alpha", alpha)
    sizes_K = _lognormal_sizes(len(labels), num_clients, sigma, rng)
    class_sizes_C = np.bincount(labels)
    prior_KC = rng.dirichlet(np.full(len(class_sizes_C), float(alpha)), size=num_clients)
    counts_KC, outlived = fill_clients(class_sizes_C, sizes_K, prior_KC, rng)
    params: dict[str, Param] = {"alpha": alpha, "sigma": sigma}
    indices = deal(labels, counts_KC, rng)
    return seal("dirichlet_client", params, indices, labels, notes=outlived_notes(outlived))


def dirichlet_client_overlap(
    labels: Labels, num_clients: int, rng: np.random.Generator, *, alpha: float, size: int | None = None
) -> Partition:
    """Each client draws `size` images from the whole set, with weights `q_k[label]`, `q_k ~ Dir(alpha)`.

    Without replacement within a client; clients overlap. The draw is an exponential race, equal in law to
    taking one image after the other in proportion to its weight. Once the weighted images run out the rest is
    drawn uniformly.

    References:
        plato (Li et al.), `samplers/dirichlet.py`.

    Args:
        labels: Classes (N,), 0..C-1.
        num_clients: K, at most N.
        rng: Source of every draw.
        alpha: Concentration, > 0.
        size: Images per client, 1..N; None means N/K, rounded down.

    Raises:
        ConfigError: For an impossible argument.
    """
    check_clients(labels, num_clients)
    check_positive("partition.alpha", alpha)
    chosen = len(labels) // num_clients if size is None else size
    check_whole("partition.size", chosen)
    if chosen > len(labels):
        raise ConfigError("partition.size", chosen, f"at most {len(labels)}, the number of training images")
    class_sizes_C = np.bincount(labels)
    prior_KC = rng.dirichlet(np.full(len(class_sizes_C), float(alpha)), size=num_clients)
    indices = []
    for q_C in prior_KC:
        # The floor makes classes of weight 0 come last rather than divide by 0.
        arrival = rng.exponential(size=len(labels)) / np.maximum(q_C, 1e-290)[labels]
        first = np.argpartition(arrival, chosen - 1)[:chosen]
        indices.append(rng.permutation(first))
    short = [k for k, q_C in enumerate(prior_KC) if class_sizes_C[q_C > 1e-290].sum() < chosen]
    notes = ["clients overlap: an image may be held by several"]
    if short:
        notes.append(f"{listed('client', short)}: own classes ran out, the rest drawn uniformly")
    return seal("dirichlet_client_overlap", {"alpha": alpha, "size": chosen}, indices, labels, notes=notes)


def _lognormal_sizes(num_images: int, num_clients: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Client sizes (K,) that sum to N."""
    if sigma == 0:
        equal_K = np.full(num_clients, num_images // num_clients, dtype=np.int64)
        equal_K[0] += num_images % num_clients
        return equal_K
    check_positive("partition.sigma", sigma)
    for _ in range(MAX_ATTEMPTS):
        raw_K = rng.lognormal(np.log(num_images / num_clients), sigma, size=num_clients)
        sizes_K: np.ndarray = np.floor(raw_K / raw_K.sum() * num_images).astype(np.int64)
        sizes_K[0] += num_images - sizes_K.sum()
        if sizes_K.min() >= 1:
            return sizes_K
    raise out_of_attempts("partition.sigma", sigma, 1)


def fill_clients(
    class_sizes_C: Int[np.ndarray, " classes"],
    sizes_K: Int[np.ndarray, " clients"],
    prior_KC: Float[np.ndarray, "clients classes"],
    rng: np.random.Generator,
) -> tuple[Counts, list[int]]:
    """Run the one-image-at-a-time procedure of `dirichlet_client` in C vectorized steps; equal in law.

    The order in which clients draw does not depend on the classes, so it comes first. All draws then pick a
    class at once; at the first draw that a class cannot serve, what came before is settled, and only the
    later draws of that class choose again among the others: redrawing c restricts the prior to the rest.

    Returns:
        Images per client and class, and the clients that outlived their priors, ascending.
    """
    owner = _client_order(sizes_K, rng)
    left_C, counts_KC = class_sizes_C.copy(), np.zeros(prior_KC.shape, dtype=np.int64)
    choice, outlived = _choose(owner, prior_KC, left_C, rng)
    while True:
        over = _first_unserved(choice, left_C)
        np.add.at(counts_KC, (owner[:over], choice[:over]), 1)
        left_C -= np.bincount(choice[:over], minlength=len(left_C))
        if over == len(choice):
            return counts_KC, sorted(set(outlived))
        owner, choice = owner[over:], choice[over:]
        again = choice == choice[0]
        choice[again], more = _choose(owner[again], prior_KC, left_C, rng)
        outlived += more


def outlived_notes(clients: list[int]) -> list[str]:
    """What the manifest says of clients that `fill_clients` had to serve beyond their priors."""
    if not clients:
        return []
    return [
        f"{listed('client', clients)}: own classes ran out, the rest drawn in proportion to what remained"
    ]


def _client_order(sizes_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Who draws when: uniform among the clients that are not full, (sum of sizes,)."""
    left_K, parts = sizes_K.copy(), []
    while left_K.any():
        waiting = np.flatnonzero(left_K)
        drawn = waiting[rng.integers(len(waiting), size=left_K.sum())]
        by_client = np.argsort(drawn, kind="stable")
        per_client = np.bincount(drawn, minlength=len(left_K))
        rank = np.empty(len(drawn), dtype=np.int64)
        rank[by_client] = np.arange(len(drawn)) - np.repeat(np.cumsum(per_client) - per_client, per_client)
        parts.append(drawn[rank < left_K[drawn]])  # a full client is skipped
        left_K -= np.bincount(parts[-1], minlength=len(left_K))
    return np.concatenate(parts)


def _choose(
    owner: np.ndarray, prior_KC: np.ndarray, left_C: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """A class for each draw, from its client's prior over the classes with images left, and who has none."""
    choice, uniform = np.empty(len(owner), dtype=np.int64), rng.random(len(owner))
    outlived = []
    by_client = np.argsort(owner, kind="stable")
    for draws in np.split(by_client, np.flatnonzero(np.diff(owner[by_client])) + 1):
        k = int(owner[draws[0]])
        weight_C = prior_KC[k] * (left_C > 0)
        if not weight_C.any():
            weight_C = left_C.astype(float)
            outlived.append(k)
        cumulative = np.cumsum(weight_C)
        found = np.searchsorted(cumulative, uniform[draws] * cumulative[-1], side="right")
        # The product may round up to the total, which would be one class too far.
        choice[draws] = np.minimum(found, np.flatnonzero(weight_C)[-1])
    return choice, outlived


def _first_unserved(choice: np.ndarray, left_C: np.ndarray) -> int:
    """Position of the first draw whose class is used up by those before it; the length if there is none."""
    asked_C = np.bincount(choice, minlength=len(left_C))
    short = np.flatnonzero(asked_C > left_C)
    return min((int(np.flatnonzero(choice == c)[left_C[c]]) for c in short), default=len(choice))
