"""Clients that tell, beside their model, what its batch-norm layers see of their images on average."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fl_cmi.federated.method import ClientMethod, Visit
from fl_cmi.moments import MOMENTS, moments_of, remember
from fl_cmi.session import Contribution, Session
from fl_cmi.types import ConfigError, State, Task

__all__ = ["LayerMoments"]


class LayerMoments(ClientMethod):
    """Plain training; then the trained model looks at the client's images once more, for `fl_cmi.moments`.

    Args:
        batch_size: Images looked at together, >= 1; nothing depends on it but the last bits.
        least: A client with fewer images, >= 1, refuses: means over few images show them. A rule of thumb and no
            guarantee: 100 images of Fashion-MNIST are nearly twice as many numbers as the maps of a small convnet,
            but clients tell anew in every round, and a class of which there is one image is not told apart.
    """

    def __init__(self, batch_size: int = 256, least: int = 100) -> None:
        for key, value in (("batch_size", batch_size), ("least", least)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"strategy.client.{key}", value, "an integer >= 1")
        self.batch_size, self.least = batch_size, least

    @property
    def trains_plainly(self) -> bool:
        """A look changes nothing."""
        return type(self) is LayerMoments

    def check_images(self, sizes: Sequence[int]) -> None:
        """At least `least` each."""
        fewest = min(sizes)
        if fewest < self.least:
            few = f"client {list(sizes).index(fewest)} has so few images, whose mean maps would show them"
            raise ConfigError("strategy.client.least", self.least, f"at most {fewest}, because {few}")

    def begin(self, visit: Visit) -> "Looking":
        """A look comes at the end.

        Raises:
            ValueError: A client with too few images.
        """
        if len(visit.images) < self.least:
            number = f"it has {len(visit.images)} images, fewer than strategy.client.least={self.least}"
            raise ValueError(f"{number}: their mean maps would show them")
        return Looking(visit, self.batch_size)

    def records(self, model: nn.Module, task: Task) -> dict[str, State]:
        """Two maps a channel of each batch-norm layer."""
        return {MOMENTS: moments_of(model, [torch.zeros(1, *task.shape)])}

    def attach(self, model: nn.Module, extra: Mapping[str, State]) -> None:
        """Its layers remember the moments."""
        remember(model, extra.get(MOMENTS, {}))

    def disclosed(self, model: nn.Module, task: Task) -> list[str]:
        """How many numbers they are."""
        numbers = sum(value.numel() for value in self.records(model, task)[MOMENTS].values())
        return [f"its mean image, and mean maps of what each batch-norm layer sees ({numbers:,} numbers)"]


class Looking(Session):
    """One visit of a client.

    Args:
        visit: The client.
        batch_size: Images looked at together.
    """

    def __init__(self, visit: Visit, batch_size: int) -> None:
        self.visit, self.batch_size = visit, batch_size

    def finish(self) -> Contribution:
        """The trained model's moments."""
        visit = self.visit
        rows = torch.arange(len(visit.images)).split(self.batch_size)
        seen = (visit.images.pixels(some).to(visit.device) for some in rows)
        return Contribution(sent={MOMENTS: moments_of(visit.model, seen)})
