"""The nouns of the package: frozen data that every layer shares."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Architecture",
    "ConfigError",
    "Images",
    "Shape",
    "State",
    "Task",
    "Teacher",
    "Update",
    "architecture",
    "same_architecture",
]

State = dict[str, Tensor]
"""A model's parameters and buffers by name, on the CPU."""

Architecture = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of a model's tensors: models in which these are the same can be averaged."""

Shape = tuple[int, int, int]
"""Channels, height, width."""


SPELT = {"None": "null", "True": "true", "False": "false"}
"""Values as users write them."""


class ConfigError(ValueError):
    """A user's mistake, told in one line: the config key, its value and what is allowed.

    Args:
        key: The config key as typed on the command line, such as `partition.alpha`.
        value: What was given.
        allowed: What would be accepted, such as `a number > 0`.
    """

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        super().__init__(f"{key}={SPELT.get(str(value), value)}: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the trip between processes with all three parts."""
        return type(self), (self.key, self.value, self.allowed)


@dataclass(frozen=True)
class Images:
    """Labelled images, unnormalized.

    Args:
        x: Pixels (N, C, H, W): uint8 in 0..255, or float in [0, 1].
        y: Labels (N,), int64 in 0..num_classes-1.
        num_classes: Number of classes, also those that no image here has.
    """

    x: Tensor
    y: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or len(self.x) != len(self.y):
            raise ValueError(f"images {tuple(self.x.shape)} do not fit labels {tuple(self.y.shape)}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of one image."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> "Images":
        """The images at `indices` (int64), in that order."""
        return Images(self.x[indices], self.y[indices], self.num_classes)

    def pixels(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """The pixels at `indices` as float32 in [0, 1]."""
        x = self.x[indices]
        return x.float().div_(255) if x.dtype == torch.uint8 else x.float()

    def class_counts(self) -> Tensor:
        """Images per class, int64 (num_classes,)."""
        return torch.bincount(self.y, minlength=self.num_classes)


@dataclass(frozen=True)
class Task:
    """What a classifier has to fit.

    Args:
        shape: Channels, height and width of its images.
        num_classes: Number of classes.
        mean: Mean of each channel's pixels in [0, 1], for the model's first layer.
        std: Standard deviation of the same.
    """

    shape: Shape
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Update:
    """What one client sent in one round.

    Args:
        client: Partition id of the client.
        num_examples: Size of its training set.
        class_counts: Its images per class (C,), or None where the client keeps them.
        state: Its trained model. What of it stays on the client (see `private`) is here for the report alone.
        extra: Records that a method's clients send beside the model, by name.
        private: Names of the tensors of `state` that did not really leave the client.
    """

    client: int
    num_examples: int
    class_counts: Tensor | None
    state: State
    extra: Mapping[str, State] = field(default_factory=dict)
    private: frozenset[str] = frozenset()

    @property
    def shared(self) -> State:
        """The part of the model that the server received."""
        return {name: value for name, value in self.state.items() if name not in self.private}


@dataclass(frozen=True)
class Teacher:
    """A client's model as the server uses it: an update, rebuilt into a network."""

    client: int
    num_examples: int
    class_counts: Tensor | None
    model: nn.Module


def architecture(state: Mapping[str, Tensor]) -> Architecture:
    """What a model is, apart from its weights, in whatever order they come."""
    return tuple(sorted((name, tuple(value.shape)) for name, value in state.items()))


def same_architecture(states: Iterable[Mapping[str, Tensor]]) -> bool:
    """Whether all states, at least one, are of one architecture, so that they can be averaged."""
    return len({architecture(state) for state in states}) == 1
