"""Where images come from: the thing that is optimized during inversion."""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.models.generator import ImageGenerator
from fl_cmi.types import ConfigError, Shape, Task

__all__ = ["GeneratorSource", "Samples", "Source", "TrainedGenerator"]

MakeGenerator = Callable[[Shape], ImageGenerator]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Source(Protocol):
    """Images as a function of parameters, and the optimizer that moves these."""

    def begin(self, task: Task, y: Int[Tensor, " batch"], rng: torch.Generator, device: torch.device) -> None:
        """Start a new batch that is to show the labels y."""
        ...

    def images(self) -> Float[Tensor, "batch channels height width"]:
        """The batch in [0, 1], as a function of the parameters."""
        ...

    def step(self) -> None:
        """Follow the gradients of the last backward pass, and clear them."""
        ...

    def finish(self) -> None:
        """The batch is over: what outlives it is updated here."""
        ...


@runtime_checkable
class Samples(Protocol):
    """A source that can make any number of images without being optimized for them."""

    def sample(
        self, task: Task, batch_size: int, rng: torch.Generator, device: torch.device
    ) -> Float[Tensor, "batch channels height width"]:
        """Fresh images, without gradient."""
        ...


class GeneratorSource:
    """`x = G(z)`: a generator and the batch's latents, both optimized, by a new optimizer for each batch.

    The generator stays in train mode: its batch norm uses the statistics of the batch at hand.

    Args:
        generator: Makes a generator for an image shape.
        optimizer: Makes the optimizer of weights and latents.
        reset: True re-initializes the generator for each batch (CMI, paper); False lets it go on from the last batch.
        clip: Longest gradient of the weights, by its 2-norm, > 0; longer ones are scaled down (Co-Boosting). None
            leaves them as they are.
    """

    def __init__(
        self,
        generator: MakeGenerator,
        optimizer: MakeOptimizer,
        reset: bool = True,
        clip: float | None = None,
    ) -> None:
        if clip is not None and not clip > 0:
            raise ConfigError("synthesizer.inversion.source.clip", clip, "a number > 0, or null")
        self.make, self.make_optimizer, self.reset, self.clip = generator, optimizer, reset, clip
        self.generator: ImageGenerator | None = None
        self.latents: nn.Parameter | None = None
        self.optimizer: Optimizer | None = None

    def begin(self, task: Task, y: Int[Tensor, " batch"], rng: torch.Generator, device: torch.device) -> None:
        """Draw z ~ N(0, I) and, where wanted, new weights."""
        if self.generator is None:
            self.generator = self.make(task.shape)
            self.generator.reset(rng)
        elif self.reset:
            self.generator.reset(rng)
        self.generator.to(device).to(memory_format=torch.channels_last).train()
        self.task = task
        latents = torch.randn(len(y), self.generator.num_latents, generator=rng)
        self.latents = nn.Parameter(latents.to(device))
        self.optimizer = self.make_optimizer([*self.generator.parameters(), self.latents])

    def images(self) -> Float[Tensor, "batch channels height width"]:
        """G(z) for the latents as they stand."""
        assert self.generator is not None and self.latents is not None, "begin() comes first"
        return self.generator.images(self.latents, self.task)

    def step(self) -> None:
        """One step of weights and latents."""
        if self.clip is not None and self.generator is not None:
            nn.utils.clip_grad_norm_(self.generator.parameters(), self.clip)
        follow(self.optimizer)

    def finish(self) -> None:
        """Nothing outlives the batch but the weights themselves."""

    def state_dict(self, scene: Scene) -> Tree:
        """The weights, where they do; None where each batch has new ones, or before the first."""
        return None if self.reset or self.generator is None else self.generator.state_dict()

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.generator = self.latents = self.optimizer = None
        if state is not None:
            self.generator = self.make(scene.task.shape)
            self.generator.load_state_dict(state)


class TrainedGenerator:
    """`x = G(z)` with new latents z ~ N(0, I) at every step: only the weights learn, by one optimizer for the run.

    The generators of DAFL, ZSKT, DFAD, DFQ and RDSKD.

    Args:
        generator: Makes a generator for an image shape.
        optimizer: Makes the optimizer of the weights.
        sample_in_train_mode: Whether `sample` uses the statistics of its own batch (DFAD) instead of running ones.
        scheduler: Makes the scheduler of the optimizer's rate, which counts batches; None keeps the rate.
    """

    def __init__(
        self,
        generator: MakeGenerator,
        optimizer: MakeOptimizer,
        sample_in_train_mode: bool = False,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        self.make, self.make_optimizer, self.make_scheduler = generator, optimizer, scheduler
        self.sample_in_train_mode = sample_in_train_mode
        self.generator: ImageGenerator | None = None
        self.optimizer: Optimizer | None = None
        self.scheduler: LRScheduler | None = None

    def begin(self, task: Task, y: Int[Tensor, " batch"], rng: torch.Generator, device: torch.device) -> None:
        """Make the generator at the first batch; take the stream of this one."""
        self.built(task, rng, device).train()
        self.task, self.batch_size, self.rng, self.device = task, len(y), rng, device

    def built(self, task: Task, rng: torch.Generator, device: torch.device) -> ImageGenerator:
        """The generator, made and initialized when it is first asked for."""
        if self.generator is None:
            generator = self.make(task.shape)
            generator.reset(rng)
            self.settle(generator, device)
        assert self.generator is not None
        return self.generator

    def settle(self, generator: ImageGenerator, device: torch.device) -> Optimizer:
        """Take the generator, on its device, with a new optimizer and its scheduler."""
        self.generator = generator.to(device).to(memory_format=torch.channels_last)
        self.optimizer = self.make_optimizer(self.generator.parameters())
        self.scheduler = None if self.make_scheduler is None else self.make_scheduler(self.optimizer)
        return self.optimizer

    def state_dict(self, scene: Scene) -> Tree:
        """Weights, optimizer and scheduler; None before the first batch."""
        if self.generator is None or self.optimizer is None:
            return None
        rate = self.scheduler
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if rate is None else plain_state(rate),
        }

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.generator = self.optimizer = self.scheduler = None
        if state is not None:
            generator = self.make(scene.task.shape)
            generator.load_state_dict(state["generator"])
            self.settle(generator, scene.device).load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])

    def forget(self) -> None:
        """Clear what the optimizer remembers of earlier steps; weights and rate stay."""
        if self.optimizer is not None:
            self.optimizer.state.clear()

    def images(self) -> Float[Tensor, "batch channels height width"]:
        """G(z) for new latents."""
        assert self.generator is not None, "begin() comes first"
        latents = torch.randn(self.batch_size, self.generator.num_latents, generator=self.rng)
        return self.generator.images(latents.to(self.device), self.task)

    def step(self) -> None:
        """One step of the weights."""
        follow(self.optimizer)

    def finish(self) -> None:
        """Weights and optimizer go on, its rate perhaps at another value."""
        if self.scheduler is not None:
            self.scheduler.step()

    @torch.no_grad()
    def sample(
        self, task: Task, batch_size: int, rng: torch.Generator, device: torch.device
    ) -> Float[Tensor, "batch channels height width"]:
        """Images of fresh latents."""
        generator = self.built(task, rng, device).train(self.sample_in_train_mode)
        latents = torch.randn(batch_size, generator.num_latents, generator=rng)
        return generator.images(latents.to(device), task)


def follow(optimizer: Optimizer | None) -> None:
    """One step and cleared gradients."""
    assert optimizer is not None, "begin() comes first"
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def plain_state(scheduler: LRScheduler) -> Tree:
    """What a scheduler remembers, without the functions that it was made of."""
    found = scheduler.state_dict()
    return {key: value for key, value in found.items() if isinstance(value, int | float | list | None)}
