"""Measures of a synthetic set: equal to plain loops, exact where the answer is known, and in their ranges."""

import math

import pytest
import reference_measures
import torch
from tiny import CLASSES, ensemble, images, network, rng, rows
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.ensemble import Ensemble
from fl_cmi.measures import class_balance, diversity, frechet_distance, manifold_share, measure_pool
from fl_cmi.types import Images

KEYS = {"images", "balance", "confidence", "aimed", "frechet", "precision", "recall"}
KEYS |= {"diversity", "diversity_real"}


def classes(number: int, seed: int = 0) -> Tensor:
    return torch.randint(3, (number,), generator=rng(seed))


def test_balance_is_the_loops() -> None:
    predicted = classes(17)
    expected = reference_measures.class_balance(predicted.tolist(), 5)
    assert class_balance(predicted, 5) == pytest.approx(expected, abs=1e-12)


def test_balance_of_equal_shares_and_of_one_class() -> None:
    assert class_balance(torch.arange(12) % 4, 4) == pytest.approx(1.0, abs=1e-12)
    assert math.copysign(1.0, class_balance(torch.full((9,), 2), 4)) == 1.0  # printed as 0, not as -0
    assert class_balance(torch.full((9,), 2), 4) == 0.0
    assert class_balance(torch.arange(10) % 2, 4) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("number", [20, 3])
def test_frechet_is_the_loops(number: int) -> None:
    """Three rows of four features: the covariance lacks rank."""
    a, b = rows(number, 1), 0.5 * rows(number + 2, 2) + 1
    expected = reference_measures.frechet_distance(a.tolist(), b.tolist())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_frechet_of_what_is_known() -> None:
    a = rows(50, 0)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(a, a[torch.randperm(50, generator=rng())]) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(4 * 9, abs=1e-6)  # four features, moved by 3 each
    # Twice as wide: tr(S + 4 S - 2 * 2 S) = tr S.
    centered = a - a.mean(dim=0)
    assert frechet_distance(centered, 2 * centered) == pytest.approx(
        centered.T.cov().trace().item(), abs=1e-6
    )


def test_frechet_does_not_lose_digits_far_from_zero() -> None:
    """Covariances from sums of squares cancel; float64 leaves enough of them."""
    a, b = rows(40, 0), rows(40, 1)
    assert frechet_distance(a + 1e3, b + 1e3) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_frechet_takes_float32_features() -> None:
    a, b = rows(40, 0), rows(40, 1)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a, b), rel=1e-5)


def test_diversity_is_the_loops() -> None:
    features, own = rows(15, 3), classes(15)
    expected = reference_measures.diversity(features.tolist(), own.tolist())
    assert diversity(features, own) == pytest.approx(expected, abs=1e-9)


def test_diversity_of_what_is_known() -> None:
    copies = rows(1, 0).expand(6, -1)
    assert diversity(copies, torch.zeros(6, dtype=torch.int64)) == pytest.approx(0.0, abs=1e-9)
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0]])
    # The single image of class 1 counts for nothing, and its distance to class 0 neither.
    assert diversity(features, torch.tensor([0, 0, 1])) == pytest.approx(5.0)
    assert diversity(features, torch.arange(3)) == 0.0
    assert diversity(7 * rows(9, 0), classes(9)) == pytest.approx(7 * diversity(rows(9, 0), classes(9)))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_is_the_loops(k: int) -> None:
    a, b = rows(14, 1), 0.7 * rows(11, 2)
    found = manifold_share(a, b, k)
    assert found == pytest.approx(reference_measures.manifold_share(a.tolist(), b.tolist(), k))
    assert 0 < found < 1, "or the test could not fail"


def test_manifold_of_what_is_known() -> None:
    a = rows(12, 0)
    assert manifold_share(a, a) == 1.0
    assert manifold_share(a + 1e3, a) == 0.0
    # On a line at 0, 1, 2, 10 with k = 1 the radii are 1, 1, 1, 8.
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert manifold_share(torch.tensor([[-1.0], [2.5], [18.0], [18.5], [-1.5]]), line, 1) == pytest.approx(
        3 / 5
    )
    assert manifold_share(line[:2], line[:2], k=3) == 1.0, "k is lowered"


def as_pool(real: Images, team: Ensemble, y: Tensor | None = None) -> Pool:
    pool = Pool()
    labels = team.label(real.pixels())
    pool.add(real.pixels(), labels.argmax(dim=1) if y is None else y, labels)
    return pool


def test_a_pool_of_the_real_images_is_perfect() -> None:
    real, team = images(40), ensemble()
    found = measure_pool(as_pool(real, team), team, real, rng())
    assert found.keys() == KEYS
    assert found["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert found["precision"] == found["recall"] == 1.0
    assert found["aimed"] == 1.0
    assert found["diversity"] == pytest.approx(found["diversity_real"])
    assert found["images"] == 40
    assert 1 / CLASSES <= found["confidence"] <= 1
    logits = team(real.pixels())
    expected = reference_measures.class_balance(logits.argmax(dim=1).tolist(), CLASSES)
    assert found["balance"] == pytest.approx(expected)
    assert found["confidence"] == pytest.approx(
        logits.softmax(dim=1).max(dim=1).values.mean().item(), rel=1e-5
    )


def test_a_pool_of_something_else_is_not() -> None:
    real, team = images(40), ensemble()
    flat = Images(torch.full_like(real.x, 255), real.y, CLASSES)
    found = measure_pool(
        as_pool(flat, team, (team.label(flat.pixels()).argmax(dim=1) + 1) % 4), team, real, rng()
    )
    assert found["frechet"] > 1e-3
    assert found["aimed"] == 0.0
    assert found["balance"] == 0.0
    assert found["diversity"] == pytest.approx(0.0, abs=1e-6)
    assert found["recall"] < 0.5


def test_features_of_an_ensemble_lie_side_by_side() -> None:
    """Two copies of a teacher: distances grow by sqrt(2), shares and the mean Frechet distance stay."""
    real, other = images(30), images(30, seed=7)
    single, twins = ensemble([None]), ensemble([None, None], make=lambda k: network(0))
    one, two = (measure_pool(as_pool(other, team), team, real, rng()) for team in (single, twins))
    assert two["diversity"] == pytest.approx(math.sqrt(2) * one["diversity"], rel=1e-5)
    for name in ("frechet", "precision", "recall", "balance", "confidence"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_at_most_so_many_images_are_measured_by_the_stream_given() -> None:
    real, team = images(50), ensemble()
    pool = as_pool(images(60, seed=3), team)
    first, again, other = (measure_pool(pool, team, real, rng(seed), most=10) for seed in (0, 0, 1))
    assert first["images"] == 10
    assert first == again
    assert first != other


def test_two_images_are_enough() -> None:
    team = ensemble()
    found = measure_pool(as_pool(images(2), team), team, images(2, seed=5), rng())
    assert all(math.isfinite(value) for value in found.values())


def test_measuring_changes_no_teacher() -> None:
    team = ensemble()
    before = {name: value.clone() for name, value in team.state_dict().items()}
    measure_pool(as_pool(images(20), team), team, images(20, seed=1), rng())
    assert all(torch.equal(value, before[name]) for name, value in team.state_dict().items())
