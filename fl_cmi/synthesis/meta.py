"""FastDFKD's source: a generator that learns to be adapted to a batch in a few steps."""

import copy
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.models.generator import ImageGenerator
from fl_cmi.synthesis.source import MakeGenerator, follow
from fl_cmi.types import ConfigError, Task

__all__ = ["Fomaml", "MetaGenerator", "MetaUpdate", "Reptile", "renew_first_layers"]


class MetaUpdate(Protocol):
    """How the outer generator G learns from its copy F: both methods leave a gradient on G, for the meta-optimizer."""

    def after_backward(self, outer: nn.Module, inner: nn.Module) -> None:
        """F has the gradients of a step, which it has not taken yet."""
        ...

    def after_batch(self, outer: nn.Module, inner: nn.Module) -> None:
        """F has taken the last step."""
        ...


class Fomaml:
    """`grad G = sum over steps of grad F`: first-order MAML (Finn et al. 2017, arXiv 1703.03400)."""

    @torch.no_grad()
    def after_backward(self, outer: nn.Module, inner: nn.Module) -> None:
        """Add the step's gradient."""
        for p, q in zip(outer.parameters(), inner.parameters(), strict=True):
            if q.grad is not None:
                p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad

    def after_batch(self, outer: nn.Module, inner: nn.Module) -> None:
        """Nothing more."""


class Reptile:
    """`grad G = factor * (G - F)`: towards where the copy ended (Nichol et al. 2018, arXiv 1803.02999).

    Args:
        factor: Of the difference, > 0; FastDFKD's is 67.
    """

    def __init__(self, factor: float = 67.0) -> None:
        if not factor > 0:
            raise ConfigError("synthesizer.inversion.source.update.factor", factor, "a number > 0")
        self.factor = factor

    def after_backward(self, outer: nn.Module, inner: nn.Module) -> None:
        """Nothing yet."""

    @torch.no_grad()
    def after_batch(self, outer: nn.Module, inner: nn.Module) -> None:
        """Take the difference for a gradient."""
        for p, q in zip(outer.parameters(), inner.parameters(), strict=True):
            p.grad = self.factor * (p - q)


class MetaGenerator:
    """`x = F(z)`: for each batch a copy F of the lasting generator G, with new latents, adapted in k steps.

        before batch number renew_at: first linear and first batch norm of G anew
        F = copy(G);  z ~ N(0, I);  opt = Adam([F: lr, z: lr_z])
        k steps: L(F(z)).backward();  FOMAML: grad G += grad F;  opt.step()
        REPTILE: grad G = 67 (G - F)
        one step of G by a lasting Adam of rate lr * k

    Without an update (`fast`) there is neither copy nor meta step: opt moves G itself. G and F stay in train mode.

    References:
        G. Fang et al., *Up to 100x Faster Data-Free Knowledge Distillation* (FastDFKD), AAAI 2022, released code.

    Args:
        generator: Makes a generator for an image shape.
        update: How G learns: `Fomaml()`, `Reptile()` or None.
        learning_rate: lr > 0, of F's weights.
        latent_rate: lr_z > 0, of the latents.
        steps: k, those of the inversion, which the meta rate grows with.
        betas: Of every Adam here.
        renew_at: Number, from 1, of the batch before which the first layers start anew (120 + FastDFKD's warm-up of
            20); None never does it.
    """

    def __init__(
        self,
        generator: MakeGenerator,
        update: MetaUpdate | None,
        learning_rate: float = 2e-3,
        latent_rate: float = 1e-2,
        steps: int = 10,
        betas: tuple[float, float] = (0.5, 0.999),
        renew_at: int | None = 140,
    ) -> None:
        for key, value in (("learning_rate", learning_rate), ("latent_rate", latent_rate), ("steps", steps)):
            if not value > 0:
                raise ConfigError(f"synthesizer.inversion.source.{key}", value, "a number > 0")
        if renew_at is not None and (not isinstance(renew_at, int) or renew_at < 1):
            raise ConfigError("synthesizer.inversion.source.renew_at", renew_at, "an integer >= 1, or null")
        self.make, self.update, self.renew_at = generator, update, renew_at
        self.learning_rate, self.latent_rate = learning_rate, latent_rate
        self.meta_rate, self.betas = learning_rate * steps, (betas[0], betas[1])
        self.batch = 0
        self.outer: ImageGenerator | None = None
        self.inner: ImageGenerator | None = None
        self.meta_optimizer: Optimizer | None = None
        self.optimizer: Optimizer | None = None

    def begin(self, task: Task, y: Int[Tensor, " batch"], rng: torch.Generator, device: torch.device) -> None:
        """Copy G, draw z ~ N(0, I) and make their optimizer."""
        self.batch += 1
        outer = self.built(task, rng, device)
        if self.batch == self.renew_at:
            renew_first_layers(outer, rng)
        self.task = task
        self.inner = outer if self.update is None else copy.deepcopy(outer)
        self.latents = nn.Parameter(torch.randn(len(y), outer.num_latents, generator=rng).to(device))
        self.optimizer = Adam(
            [
                {"params": list(self.inner.parameters()), "lr": self.learning_rate},
                {"params": [self.latents], "lr": self.latent_rate},
            ],
            betas=self.betas,
        )

    def built(self, task: Task, rng: torch.Generator, device: torch.device) -> ImageGenerator:
        """G, made and initialized when it is first asked for."""
        if self.outer is None:
            outer = self.make(task.shape)
            outer.reset(rng)
            self.settle(outer, device)
        assert self.outer is not None
        return self.outer

    def settle(self, outer: ImageGenerator, device: torch.device) -> Optimizer:
        """Take G, on its device, with a new meta-optimizer."""
        self.outer = outer.to(device).to(memory_format=torch.channels_last).train()
        self.meta_optimizer = Adam(self.outer.parameters(), self.meta_rate, betas=self.betas)
        return self.meta_optimizer

    def images(self) -> Float[Tensor, "batch channels height width"]:
        """F(z) for the latents as they stand."""
        assert self.inner is not None, "begin() comes first"
        return self.inner.images(self.latents, self.task)

    def step(self) -> None:
        """One step of F and the latents; G hears of the gradient."""
        if self.update is not None and self.outer is not None and self.inner is not None:
            self.update.after_backward(self.outer, self.inner)
        follow(self.optimizer)

    def finish(self) -> None:
        """One step of G."""
        if self.update is not None and self.outer is not None and self.inner is not None:
            self.update.after_batch(self.outer, self.inner)
            follow(self.meta_optimizer)

    def state_dict(self, scene: Scene) -> Tree:
        """G, its optimizer and the number of batches."""
        if self.outer is None or self.meta_optimizer is None:
            return {"batch": 0}
        state = {"outer": self.outer.state_dict(), "optimizer": self.meta_optimizer.state_dict()}
        return {"batch": self.batch, **state}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.batch = state["batch"]
        self.outer = self.inner = self.meta_optimizer = self.optimizer = None
        if "outer" in state:
            outer = self.make(scene.task.shape)
            outer.load_state_dict(state["outer"])
            self.settle(outer, scene.device).load_state_dict(state["optimizer"])


@torch.no_grad()
def renew_first_layers(generator: nn.Module, rng: torch.Generator) -> None:
    """Draw the first linear layer and the first batch norm anew: weights ~ N(0, .02), biases 0.

    The batch norm's weight is drawn around 0 and not around 1, as FastDFKD's code has it.
    """
    for kind in (nn.Linear, nn.BatchNorm2d):
        layer = next(module for module in generator.modules() if isinstance(module, kind))
        layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0.0, 0.02, generator=rng))
        layer.bias.zero_()
