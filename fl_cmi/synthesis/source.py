"""Where images come from: the thing that is optimized during inversion."""

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.models.generator import Generator
from fl_cmi.types import Shape

__all__ = ["GeneratorSource", "Source"]


class Source(Protocol):
    """Images as a function of parameters that an inversion optimizes."""

    def begin(
        self, shape: Shape, batch_size: int, rng: torch.Generator, device: torch.device
    ) -> list[nn.Parameter]:
        """Start a new batch; return what is to be optimized."""
        ...

    def images(self) -> Float[Tensor, "batch channels height width"]:
        """The batch in [0, 1], as a function of the parameters."""
        ...


class GeneratorSource:
    """`x = G(z)`: a generator and the batch's latents, both optimized.

    The generator stays in train mode: its batch norm uses the statistics of the batch at hand.

    Args:
        generator: Makes a generator for an image shape; it has `reset(rng)` and `num_latents`.
        reset: True re-initializes the generator for each batch (CMI, paper); False lets it go on from the last batch.
    """

    def __init__(self, generator: Callable[[Shape], Generator], reset: bool = True) -> None:
        self.make, self.reset = generator, reset
        self.generator: Generator | None = None
        self.latents: nn.Parameter | None = None

    def begin(
        self, shape: Shape, batch_size: int, rng: torch.Generator, device: torch.device
    ) -> list[nn.Parameter]:
        """Draw z ~ N(0, I) and, where wanted, new weights."""
        if self.generator is None:
            self.generator = self.make(shape)
            self.generator.reset(rng)
        elif self.reset:
            self.generator.reset(rng)
        self.generator.to(device).to(memory_format=torch.channels_last).train()
        latents = torch.randn(batch_size, self.generator.num_latents, generator=rng)
        self.latents = nn.Parameter(latents.to(device))
        return [*self.generator.parameters(), self.latents]

    def images(self) -> Float[Tensor, "batch channels height width"]:
        """G(z) for the latents as they stand."""
        assert self.generator is not None and self.latents is not None, "begin() comes first"
        return self.generator(self.latents)
