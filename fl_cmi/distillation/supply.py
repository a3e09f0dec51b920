"""Where a round's batches come from, and what they come to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.crew import Crew
from fl_cmi.synthesis.inversion import Inverted
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import Task

__all__ = ["Supply"]


@dataclass
class Supply:
    """Makes a round's batches, in this process or by a crew, and counts them when they are taken.

    Every batch has its own random stream, so leaving one out shifts no other.

    Args:
        ensemble: The teachers.
        student: As it is when a batch is begun.
        synthesizer: Makes images.
        task: What the models have to fit.
        stream: The random stream of the batch of a number, from 0.
        crew: Makes labelled batches; None: the synthesizer does.
        num_batches: Taken so far.
        num_images: In them.
        losses: Of the last one: each term, unweighted, and `total`.
    """

    ensemble: Ensemble
    student: nn.Module
    synthesizer: Synthesizer
    task: Task
    stream: Callable[[int], torch.Generator]
    crew: Crew | None = None
    num_batches: int = 0
    num_images: int = 0
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def maker(self) -> Synthesizer | Crew:
        """Who makes labelled batches."""
        return self.synthesizer if self.crew is None else self.crew

    def at_once(self, wanted: int, timed: bool) -> int:
        """Of so many labelled batches, those to ask for together: a crew makes all, unless time may be up between."""
        if self.crew is None:
            return 1
        return self.crew.number if timed else wanted

    def labelled(self, number: int) -> Iterator[Inverted]:
        """So many batches with the ensemble's labels."""
        if self.crew is None:
            for _ in range(number):
                yield self.batch().labelled(self.ensemble)
            return
        first = self.num_batches
        seeds = [self.stream(first + b).initial_seed() for b in range(number)]
        for piece in self.crew.make(first, seeds, self.student):
            self.ensemble.count(piece.passes)
            yield self._counted(piece.made)

    def batch(self) -> Inverted:
        """A batch as the synthesizer makes it."""
        rng = self.stream(self.num_batches)
        return self._counted(self.synthesizer(self.ensemble, self.student, self.task, rng))

    def sample(self, batch_size: int, rng: torch.Generator) -> Float[Tensor, "batch channels height width"]:
        """Images of the trained generator, which are no batch and are not counted."""
        return self.synthesizer.sample(self.ensemble, self.task, batch_size, rng)

    def _counted(self, made: Inverted) -> Inverted:
        self.num_batches, self.num_images = self.num_batches + 1, self.num_images + len(made.y)
        self.losses = made.losses
        return made
