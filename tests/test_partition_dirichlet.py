"""The Dirichlet family against the loops that were published."""

from collections.abc import Callable

import numpy as np
import pytest
from partition_cases import balanced, named, rng

from fl_cmi import partition
from fl_cmi.partition.client_prior import fill_clients
from fl_cmi.partition.dirichlet import dirichlet_counts
from fl_cmi.types import ConfigError

# --- Dirichlet by class ---


def published_loop(sizes: list[int], num_clients: int, alpha: float, cap: float, seed: int) -> np.ndarray:
    """One attempt of the published loop, image lists and all, on the draws that `dirichlet_counts` makes."""
    p = rng(seed).dirichlet([alpha] * num_clients, size=len(sizes))
    held: list[list[int]] = [[] for _ in range(num_clients)]
    for c, size in enumerate(sizes):
        share = [p[c][k] if len(held[k]) < cap else 0.0 for k in range(num_clients)]
        start, total = 0, 0.0
        for k in range(num_clients):
            total += share[k] / sum(share)
            end = size if k == num_clients - 1 else int(total * size)
            held[k] += [c] * (end - start)
            start = end
    return np.array([[own.count(c) for c in range(len(sizes))] for own in held])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("capped", [True, False])
def test_counts_equal_the_published_loop(seed: int, capped: bool) -> None:
    sizes = [60, 55, 70, 65, 50, 40]
    cap = sum(sizes) / 4 if capped else np.inf
    expected = published_loop(sizes, 4, 1.0, cap, seed)
    assert expected.sum(axis=1).min() >= 1, "the comparison needs a first attempt that succeeds"
    counts = dirichlet_counts(np.array(sizes), 4, rng(seed), alpha=1.0, min_size=1, cap=cap)
    # The last client takes what rounding leaves over; ours is the last one below the cap.
    assert np.abs(counts - expected).max() <= 1
    assert np.array_equal(counts.sum(axis=0), sizes)
    assert (counts != expected).sum() <= 2


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0])
def test_cap_is_respected(alpha: float) -> None:
    for seed in range(10):
        counts = partition.dirichlet_class(balanced(2000), 5, rng(seed), alpha=alpha, min_size=1).counts(
            balanced(2000), 10
        )
        before = np.cumsum(counts, axis=1) - counts
        assert (counts[before >= 400] == 0).all()
        assert (counts.sum(axis=1) < 400 + 200).all()  # below the cap, then one class of 200 at most


def test_without_cap_someone_exceeds_it() -> None:
    labels = balanced(2000)
    largest = [max(partition.dirichlet_class_uncapped(labels, 5, rng(s), alpha=0.1).sizes) for s in range(10)]
    assert max(largest) > 600


def test_min_size_holds_or_is_an_error() -> None:
    labels = balanced(2000)
    for seed in range(10):
        assert min(partition.dirichlet_class(labels, 10, rng(seed), alpha=0.1, min_size=40).sizes) >= 40
        assert min(partition.quantity_dirichlet(labels, 10, rng(seed), beta=0.5, min_size=15).sizes) >= 15
    with pytest.raises(ConfigError, match=r"^partition.min_size=201: at most 200: .* 2000 images for 10"):
        partition.dirichlet_class(labels, 10, rng(), alpha=1.0, min_size=201)
    with pytest.raises(ConfigError, match=r"^partition.min_size=0: a whole number >= 1"):
        partition.dirichlet_class(labels, 10, rng(), alpha=1.0, min_size=0)
    with pytest.raises(ConfigError, match=r"^partition.alpha=0.01: a larger number, fewer clients"):
        partition.dirichlet_class(balanced(200, 2), 5, rng(), alpha=0.01, min_size=39)
    with pytest.raises(ConfigError, match=r"^partition.beta=0.01: a larger number"):
        partition.quantity_dirichlet(labels, 10, rng(), beta=0.01, min_size=150)


@pytest.mark.parametrize(
    "procedure",
    [
        partition.dirichlet_class,
        partition.dirichlet_class_uncapped,
        partition.dirichlet_client,
        partition.feddf,
    ],
    ids=named,
)
def test_large_alpha_tends_to_iid(procedure: Callable[..., partition.Partition]) -> None:
    labels = balanced(10_000)

    def spread(alpha: float) -> float:
        part = procedure(labels, 5, rng(), alpha=alpha)
        counts = part.counts(labels, 10)
        return float((counts / counts.sum(axis=1, keepdims=True)).std(axis=0).mean())

    # Class shares of an even split of 10,000 images scatter by sqrt(.1 * .9 / 2000) = .0067.
    assert spread(1e7) < 0.01
    assert spread(0.1) > 0.08


def test_small_alpha_concentrates_without_failing() -> None:
    for alpha in (1e-300, 1e-6, 1e-2):
        part = partition.dirichlet_class(balanced(2000), 5, rng(), alpha=alpha)
        assert sum(part.sizes) == 2000


# --- Dirichlet by client ---


def one_by_one(left: list[int], sizes: list[int], prior: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The published procedure, one image at a time."""
    counts = np.zeros(prior.shape)
    todo = list(sizes)
    while sum(todo):
        k = int(draw.integers(len(sizes)))
        if not todo[k]:
            continue
        c = int(draw.choice(len(left), p=prior[k]))
        while not left[c]:
            c = int(draw.choice(len(left), p=prior[k]))
        todo[k] -= 1
        left[c] -= 1
        counts[k, c] += 1
    return counts


def test_fill_clients_has_the_law_of_the_published_loop() -> None:
    prior = np.array([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]])
    left, sizes, repeats = [10, 12, 8], [14, 9, 7], 1500
    draw = rng(1)
    naive = np.stack([one_by_one(list(left), sizes, prior, draw) for _ in range(repeats)])
    ours = np.stack([fill_clients(np.array(left), np.array(sizes), prior, draw)[0] for _ in range(repeats)])
    assert (ours.sum(axis=1) == left).all()
    assert (ours.sum(axis=2) == sizes).all()
    # Five standard errors of the difference of two means; the same for the second moments.
    for power in (1, 2):
        a, b = naive**power, ours.astype(float) ** power
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / repeats)
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 5 * error + 1e-12).all()


def test_client_that_outlives_its_prior_takes_what_remains_and_is_noted() -> None:
    prior = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    counts, outlived = fill_clients(np.array([4, 3, 3]), np.array([5, 5]), prior, rng())
    assert counts.sum(axis=0).tolist() == [4, 3, 3]
    assert outlived == [0, 1]
    part = partition.dirichlet_client(balanced(1000), 5, rng(), alpha=1e-9)
    assert any("own classes ran out" in note for note in part.notes)
    assert sum(part.sizes) == 1000


def test_client_sizes() -> None:
    labels = balanced(1003)
    assert partition.dirichlet_client(labels, 5, rng(), alpha=0.3).sizes == (203, 200, 200, 200, 200)
    draws = np.concatenate(
        [partition.dirichlet_client(labels, 20, rng(s), alpha=1.0, sigma=0.5).sizes for s in range(30)]
    )
    assert np.log(draws).std() == pytest.approx(
        0.5, abs=0.06
    )  # 600 draws; standard error .015, less one mean
    with pytest.raises(ConfigError, match=r"^partition.sigma=-1.0: a number > 0"):
        partition.dirichlet_client(labels, 5, rng(), alpha=1.0, sigma=-1.0)


def test_overlap_draws_from_the_whole_set_without_replacement() -> None:
    labels = balanced(1000)
    part = partition.dirichlet_client_overlap(labels, 5, rng(), alpha=0.3, size=600)
    assert part.sizes == (600,) * 5
    assert all(len(np.unique(own)) == 600 for own in part.indices)
    assert len(np.unique(np.concatenate(part.indices))) < 3000
    assert partition.dirichlet_client_overlap(labels, 7, rng(), alpha=0.3).sizes == (142,) * 7
    assert any(
        "ran out" in note for note in partition.dirichlet_client_overlap(labels, 2, rng(), alpha=1e-6).notes
    )
    with pytest.raises(ConfigError, match=r"^partition.size=1001: at most 1000"):
        partition.dirichlet_client_overlap(labels, 5, rng(), alpha=0.3, size=1001)
