"""The noise control: normal pixels with the data set's statistics, labelled by the ensemble."""

from pathlib import Path

import pytest
import torch
from test_transfer import run
from tiny import CLASSES, ensemble, network, rng

from fl_cmi.distillation.schedules import Alternate, GrowPool
from fl_cmi.ensemble import by_class_counts
from fl_cmi.synthesis.noise import Noise
from fl_cmi.types import ConfigError, Task

WIDE = Task((2, 8, 8), CLASSES, (0.3, 0.6), (0.05, 0.1))
"""Clamping hardly touches pixels so close to their mean, so moments can be compared."""


def test_pixels_have_the_data_set_s_moments_and_lie_on_the_grid() -> None:
    x = Noise().sample(ensemble(), WIDE, 500, rng())
    assert x.shape == (500, *WIDE.shape)
    for channel, (mean, std) in enumerate(zip(WIDE.mean, WIDE.std, strict=True)):
        values = x[:, channel]
        # 32,000 values; the grid adds a variance of 1 / (12 * 255^2).
        assert values.mean().item() == pytest.approx(mean, abs=5 * std / 32_000**0.5)
        assert values.std().item() == pytest.approx(std, rel=0.03)
    assert torch.equal(x, (x * 255).round() / 255)
    pairs = x[:, 0, :, :-1].flatten(), x[:, 0, :, 1:].flatten()
    assert torch.corrcoef(torch.stack(pairs))[0, 1].abs() < 0.03, "neighbors are independent"


def test_pixels_beyond_the_range_are_clamped() -> None:
    loud = Task((1, 8, 8), CLASSES, (0.5,), (5.0,))
    x = Noise().sample(ensemble(), loud, 200, rng())
    assert x.min() == 0
    assert x.max() == 1
    # P(|z| < .1) = .0797 lies within.
    inside = ((x > 0) & (x < 1)).float().mean().item()
    assert inside == pytest.approx(0.0797, abs=0.012)


def test_a_batch_is_labelled_by_the_ensemble_and_repeats_with_the_stream() -> None:
    task = Task((1, 8, 8), CLASSES, (0.5,), (0.25,))
    team, made = ensemble(combine=by_class_counts), Noise(batch_size=12)
    made.check(team)
    made.check_sample()
    found = made(team, network(9), task, rng(4))
    assert team.passes == 3
    assert found.labelled(team) is found, "who has labels is not asked again"
    assert found.labels is not None
    assert torch.equal(found.labels, team.label(found.x))
    assert torch.equal(found.y, found.labels.argmax(dim=1))
    assert found.losses == {"total": 0.0}
    assert found.client == -1
    assert torch.equal(found.x, made(team, network(9), task, rng(4)).x)
    assert not torch.equal(found.x, made(team, network(9), task, rng(5)).x)


def test_noise_fills_a_pool_and_teaches(tmp_path: Path) -> None:
    metrics, pool, student, _ = run(tmp_path, GrowPool(epochs=1, batches=3, steps=2), Noise(batch_size=6))  # type: ignore[arg-type]
    # Three teachers: the labels of each batch, and the lessons.
    assert metrics["teacher-passes"] == 3 * (3 + 2)
    assert torch.equal(pool.targets, pool.tensors()["labels"].argmax(dim=1))
    assert len(pool) == metrics["images"] == 18
    start = network(9).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in student.state_dict().items())
    run(tmp_path / "fresh", Alternate(epochs=1, iterations=2, steps=2, show=4), Noise(batch_size=6))  # type: ignore[arg-type]


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=1"):
        Noise(batch_size=1)
