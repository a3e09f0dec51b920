"""Pixels as a source: where they start, what a step does to them, and when they are on the 8-bit grid."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny import SHAPE, TASK, ensemble, inversion, network, pixels, rng
from torch import Tensor

from fl_cmi.ensemble import by_class_counts
from fl_cmi.synthesis.inversion import Inversion
from fl_cmi.synthesis.pixels import PixelSource, on_grid
from fl_cmi.synthesis.source import Samples
from fl_cmi.synthesis.synthesizers import Joint, PerClient
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.types import ConfigError, Task

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.5)
RGB = Task((3, 4, 4), 4, (0.2, 0.5, 0.8), (0.1, 0.2, 0.4))
Y = torch.zeros(50, dtype=torch.int64)


def begun(task: Task = TASK, y: Tensor = Y, seed: int = 1, **more: Any) -> PixelSource:
    source = PixelSource(SGD, **more)
    source.begin(task, y, rng(seed), CPU)
    return source


class Recorded(Inversion):
    """An inversion whose views record the images of each step."""

    def __init__(self, source: PixelSource, steps: int, keep: Any = "last") -> None:
        super().__init__(source, {"oh": OneHot()}, steps=steps, keep=keep)
        self.shown: list[Tensor] = []
        self.global_view = self.record

    def record(self, x: Tensor, rng: torch.Generator) -> Tensor:
        self.shown.append(x.detach().clone())
        return x


def is_on_grid(x: Tensor) -> bool:
    """Whether every pixel is a k/255; random ones hardly are."""
    return torch.equal(x, (x * 255).round() / 255)


def test_the_start_is_normal_in_the_space_of_the_variable() -> None:
    free = begun(RGB, clip_start=False)
    draws = torch.randn(50, *RGB.shape, generator=rng(1))
    mean, std = (torch.tensor(v)[:, None, None] for v in (RGB.mean, RGB.std))
    torch.testing.assert_close(free.images(), draws * std + mean)
    assert free.images().min() < 0
    raw = begun(RGB, space="pixels", clip_start=False)
    assert torch.equal(raw.images(), draws)
    torch.testing.assert_close(begun(RGB).images(), (draws * std + mean).clamp(0, 1))
    assert torch.equal(begun(RGB, space="pixels").images(), draws.clamp(0, 1))


@pytest.mark.parametrize("space", ["normalized", "pixels"])
def test_a_step_descends_in_that_space_and_is_clipped(space: Any) -> None:
    source = begun(RGB, space=space)
    before = source.images().detach()
    source.images().sum().backward()
    source.step()
    # A gradient of 1 per pixel is one of std per normalized unit, and this moves a pixel by std^2.
    scale = 1.0 if space == "pixels" else torch.tensor(RGB.std)[:, None, None] ** 2
    torch.testing.assert_close(source.images().detach(), (before - 0.5 * scale).clamp(0, 1))
    assert source.variable is not None
    assert source.variable.grad is None


def test_after_a_step_every_channel_keeps_to_its_range() -> None:
    source = begun(RGB, clip_start=False)
    low = begun(RGB, clip_start=False)
    for made, sign in ((source, 1.0), (low, -1.0)):
        (sign * 1e4 * made.images().sum()).backward()
        made.step()
    torch.testing.assert_close(source.images().detach(), torch.zeros(50, *RGB.shape), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(low.images().detach(), torch.ones(50, *RGB.shape), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("space", ["normalized", "pixels"])
@pytest.mark.parametrize(("every", "turns"), [(None, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (7, [])])
def test_images_are_on_the_grid_at_every_nth_step(space: Any, every: int | None, turns: list[int]) -> None:
    loop = Recorded(PixelSource(SGD, space=space, grid_every=every), steps=6)
    found = loop(ensemble(), network(9), torch.tensor([0, 1, 3]), TASK, rng())
    assert [step + 1 for step, x in enumerate(loop.shown) if is_on_grid(x)] == turns
    assert torch.equal(found.x, loop.shown[-1])


def test_the_grid_is_that_of_bytes_and_lets_the_gradient_through() -> None:
    assert not is_on_grid(pixels(3))
    levels = torch.arange(256, dtype=torch.uint8)
    x = (levels / 255.0).view(1, 1, 16, 16)
    assert torch.equal(on_grid(x), x)
    x = 2 * torch.randn(1, 1, 100, 100, generator=rng())
    assert torch.equal(on_grid(x), (x.clamp(0, 1) * 255).round() / 255)
    x = torch.tensor([-0.3, 0.0019, 0.0021, 0.4999, 1.2]).view(1, 1, 1, 5).requires_grad_()
    torch.testing.assert_close((on_grid(x) * 255).flatten(), torch.tensor([0.0, 0, 1, 127, 255]))
    (on_grid(x) * torch.arange(5.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_variable_itself_stays_between_the_levels() -> None:
    """Steps smaller than half a level add up; rounding the variable would swallow them all."""
    source = PixelSource(partial(torch.optim.SGD, lr=1e-4), space="pixels", grid_every=1)
    source.begin(TASK, Y, rng(), CPU)
    assert source.variable is not None
    with torch.no_grad():
        source.variable.fill_(100 / 255)
    for _ in range(40):
        source.images().sum().backward()
        source.step()
    assert (source.images() * 255).round().unique().tolist() == [99.0]


def test_milestones_lower_the_rate_and_each_batch_begins_at_the_full_one() -> None:
    schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[3, 5], gamma=0.1)
    source = begun(space="pixels", schedule=schedule)
    for _ in range(2):
        rates = []
        for _ in range(7):
            assert source.optimizer is not None
            rates.append(source.optimizer.param_groups[0]["lr"])
            source.images().sum().backward()
            source.step()
        assert rates == pytest.approx([0.5] * 3 + [0.05] * 2 + [0.005] * 2)
        source.finish()
        source.begin(TASK, Y, rng(2), CPU)


def test_each_batch_has_new_pixels_and_a_new_optimizer() -> None:
    source = begun()
    first, optimizer = source.images().detach(), source.optimizer
    source.begin(TASK, Y, rng(2), CPU)
    assert source.optimizer is not optimizer
    assert not torch.equal(source.images(), first)
    source.begin(TASK, Y, rng(1), CPU)
    assert torch.equal(source.images(), first)


@pytest.mark.parametrize("clients", ["joint", "per client"])
def test_pixels_are_not_drawn_on_demand_and_serve_any_synthesizer(clients: str) -> None:
    made = inversion(steps=2, source=PixelSource(SGD))
    synthesizer = Joint(made, 4) if clients == "joint" else PerClient(made, 4)
    assert not isinstance(made.source, Samples)
    with pytest.raises(ConfigError, match="source=PixelSource"):
        synthesizer.check_sample()
    team = ensemble(combine=by_class_counts)
    x = synthesizer(team, network(9), TASK, rng()).x
    assert x.shape == (4, *SHAPE)
    assert torch.equal(x, synthesizer(team, network(9), TASK, rng()).x)


def test_optimizing_pixels_lowers_the_loss_within_the_range() -> None:
    adam = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.99))
    loop = inversion(steps=60, terms={"oh": OneHot()}, source=PixelSource(adam))
    found = loop(ensemble(), network(9), torch.tensor([0, 1, 2, 3]), TASK, rng())
    short = inversion(steps=1, terms={"oh": OneHot()}, source=PixelSource(adam))
    start = short(ensemble(), network(9), torch.tensor([0, 1, 2, 3]), TASK, rng())
    # From 1.395 to 1.356: these teachers are untrained, and their mean hardly moves.
    assert found.losses["oh"] < start.losses["oh"] - 0.02
    assert found.x.min() >= -1e-6
    assert found.x.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PixelSource(SGD, space="bytes"), "source.space=bytes"),  # type: ignore[arg-type]
        (lambda: PixelSource(SGD, grid_every=0), "source.grid_every=0"),
        (lambda: PixelSource(SGD, grid_every=1.5), "source.grid_every=1.5"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_named(make: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()
