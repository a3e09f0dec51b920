"""Pixels as a source: every value of every image is its own parameter."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.synthesis.source import MakeOptimizer, follow
from fl_cmi.types import ConfigError, Task

__all__ = ["MakeSchedule", "PixelSource", "on_grid"]

MakeSchedule = Callable[[Optimizer], LRScheduler]

Batch = Float[Tensor, "batch channels height width"]


class PixelSource:
    """Images that are optimized directly, by a new optimizer for each batch.

        v ~ N(0, 1)                  x = v (space `pixels`)  or  x = std v + mean (space `normalized`)
        each step:  x' = the nearest k/255 of x, gradient straight through   (every `grid_every` steps, else x)
                    optimizer and schedule step;  v <- v clipped such that 0 <= x <= 1

    References:
        Yin et al. 2020 (DeepInversion), arXiv 1912.08795: normalized space, start not clipped, no grid.
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274: pixels, start clipped, on the grid at every step
        (20 in a later version of the authors' code).

    Args:
        optimizer: Makes the optimizer of the pixels.
        space: Where the start is normal and the steps are taken: `normalized` or `pixels`.
        clip_start: Whether the start is clipped as well; without it the images of the first step leave [0, 1].
        grid_every: n >= 1: the images of steps n, 2n, ... are on the 8-bit grid; None never puts them there.
        schedule: Makes the schedule of the learning rate, stepped once a step; None keeps the rate.
    """

    def __init__(
        self,
        optimizer: MakeOptimizer,
        space: Literal["normalized", "pixels"] = "normalized",
        clip_start: bool = True,
        grid_every: int | None = None,
        schedule: MakeSchedule | None = None,
    ) -> None:
        if space not in ("normalized", "pixels"):
            raise ConfigError("synthesizer.inversion.source.space", space, "normalized or pixels")
        if grid_every is not None and (
            isinstance(grid_every, bool) or not isinstance(grid_every, int) or grid_every < 1
        ):
            key = "synthesizer.inversion.source.grid_every"
            raise ConfigError(key, grid_every, "an integer >= 1, or null for never")
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.space, self.clip_start, self.grid_every = space, clip_start, grid_every
        self.variable: nn.Parameter | None = None
        self.optimizer: Optimizer | None = None
        self.schedule: LRScheduler | None = None

    def begin(self, task: Task, y: Int[Tensor, " batch"], rng: torch.Generator, device: torch.device) -> None:
        """Draw the start, and make optimizer and schedule."""
        unit = self.space == "pixels"
        mean, std = ((0.0,), (1.0,)) if unit else (task.mean, task.std)
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))
        self.variable = nn.Parameter(torch.randn(len(y), *task.shape, generator=rng).to(device))
        self.optimizer = self.make_optimizer([self.variable])
        self.schedule = None if self.make_schedule is None else self.make_schedule(self.optimizer)
        self.num_steps = 0
        if self.clip_start:
            self.clip()

    def images(self) -> Batch:
        """The batch as it stands; on the grid where it is this step's turn."""
        assert self.variable is not None, "begin() comes first"
        x = self.variable * self.std + self.mean
        turn = self.grid_every is not None and (self.num_steps + 1) % self.grid_every == 0
        return on_grid(x) if turn else x

    def step(self) -> None:
        """One step of the pixels and of the learning rate, and back to the valid range."""
        follow(self.optimizer)
        if self.schedule is not None:
            self.schedule.step()
        self.num_steps += 1
        self.clip()

    @torch.no_grad()
    def clip(self) -> None:
        """Put the pixels back into [0, 1], channel by channel."""
        assert self.variable is not None
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        self.variable.copy_(self.variable.maximum(low).minimum(high))

    def finish(self) -> None:
        """Nothing outlives the batch."""

    def state_dict(self, scene: Scene) -> Tree:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Nothing."""


def on_grid(x: Batch) -> Batch:
    """`k/255` with the k in 0..255 that is nearest to 255 x; the gradient is that of x itself (straight through)."""
    nearest = (x.detach().clamp(0, 1) * 255).round() / 255
    # x - x is 0 exactly, so the value is a point of the grid to the last bit.
    return nearest + (x - x.detach())
