"""What stands for an image in the contrastive term."""

import pytest
import reference
import torch
from tiny import SHAPE, TASK, contrast, ensemble, inversion, network, pixels, rng

from fl_cmi.models.lenet import LeNet
from fl_cmi.rng import stream
from fl_cmi.synthesis.features import BatchNormInputs, Penultimate, RandomProjection, projection
from fl_cmi.types import ConfigError

Y = torch.tensor([0, 0, 1, 1, 3, 3])


def test_all_layers_of_all_teachers_side_by_side() -> None:
    shown = ensemble().observe(pixels(5))
    found = BatchNormInputs()(shown)
    layers = [f for seen in shown.seen for f in seen.values()]
    assert found.shape == (5, 3 * (2 + 4 + 8))
    expected = torch.tensor(reference.pooled([f.double() for f in layers]), dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=1e-6)


def test_the_last_layers_only() -> None:
    shown = ensemble().observe(pixels(5))
    found, everything = BatchNormInputs(last=1)(shown), BatchNormInputs()(shown)
    assert found.shape == (5, 3 * 8)
    assert torch.equal(found, torch.cat([everything[:, 14 * k + 6 : 14 * (k + 1)] for k in range(3)], dim=1))
    with pytest.raises(ConfigError, match="last=0"):
        BatchNormInputs(last=0)


def test_penultimate_features_are_what_the_classifiers_see() -> None:
    team, x = ensemble(), pixels(5)
    found = Penultimate()(team.observe(x))
    torch.testing.assert_close(found, torch.cat([model.features(x) for model in team.models], dim=1))


def test_a_projection_keeps_distances_and_bounds_the_width() -> None:
    team = ensemble()
    plain, projected = BatchNormInputs(), RandomProjection(width=2000)
    shown = team.observe(pixels(6))
    ratio = torch.pdist(projected(shown)) / torch.pdist(plain(shown))
    assert projected(shown).shape == (6, 2000)
    # Standard deviation of a ratio: sqrt(1 / (2 width)) = 1.6 %.
    assert ((ratio - 1).abs() < 0.08).all()
    assert torch.equal(RandomProjection(7)(shown), RandomProjection(7)(shown))
    # The stream of the features' width draws the matrix, and once for all batches.
    wide = plain(shown)
    drawn = torch.randn(wide.shape[1], 7, generator=stream(0, "projection", wide.shape[1]))
    assert torch.equal(RandomProjection(7)(shown), wide @ drawn / 7**0.5)
    assert projection(wide.shape[1], 7) is projection(wide.shape[1], 7)
    with pytest.raises(ConfigError, match="width=0"):
        RandomProjection(0)


@pytest.mark.parametrize("features", [BatchNormInputs(1), Penultimate(), RandomProjection(5)])
def test_every_choice_drives_an_inversion(features: BatchNormInputs | Penultimate | RandomProjection) -> None:
    made = contrast()
    made.features = features
    team = ensemble()
    for seed in range(2):
        found = inversion(contrastive=made)(team, network(9), Y, TASK, rng(seed))
    assert found.losses["contrast"] > 0
    assert len(made.bank) == 2 * len(Y)


def test_without_batch_norm_only_penultimate_features_will_do() -> None:
    team = ensemble(make=lambda k: LeNet(SHAPE, 4, (0.5,), (0.25,)))
    made = contrast()
    for features in (BatchNormInputs(), RandomProjection()):
        made.features = features
        with pytest.raises(ConfigError, match="no batch norm"):
            made.check(team)
    made.features = Penultimate()
    made.check(team)
    found = inversion(terms={}, contrastive=made)(team, network(9), Y, TASK, rng())
    assert found.losses["contrast"] > 0
