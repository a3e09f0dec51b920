"""How the parts of a run give and take their state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from fl_cmi.checkpoint.tree import NotResumableError, Tree
from fl_cmi.types import Task

__all__ = ["Checkpoints", "NotResumableError", "Resumable", "Scene", "restore", "state_of"]


@dataclass(frozen=True)
class Scene:
    """Where a state is taken and put back: what parts that are made late have to be made for.

    Args:
        task: What generators are made for.
        device: Where parts live.
        layers: The teachers' modules by name, the same in both processes; empty between rounds, when there are none.
    """

    task: Task
    device: torch.device
    layers: Mapping[str, nn.Module] = field(default_factory=dict)


@runtime_checkable
class Resumable(Protocol):
    """A part that remembers something from one piece of work to the next."""

    def state_dict(self, scene: Scene) -> Tree:
        """All that it remembers; what is made for a batch and gone after it does not count."""
        ...

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`, whatever it remembers now."""
        ...


class Checkpoints(Protocol):
    """Where the state of a transfer is kept, so that another process can go on with it."""

    def resumed(self) -> Tree:
        """The state of this very transfer as an earlier process left it, or None."""
        ...

    def reached(self, state: Callable[[], Tree]) -> None:
        """Called wherever the transfer could go on from, with its state for whoever wants to keep it."""
        ...


def state_of(part: Any, scene: Scene) -> Tree:
    """What a part remembers; None for functions and frozen dataclasses, which remember nothing.

    Raises:
        NotResumableError: If it does not tell.
    """
    if isinstance(part, Resumable):
        return part.state_dict(scene)
    function = part.func if isinstance(part, partial) else part
    if isinstance(function, FunctionType):
        return None
    if is_dataclass(part) and getattr(type(part), "__dataclass_params__").frozen:  # noqa: B009 - unknown to mypy
        return None
    raise NotResumableError(f"{type(part).__name__} does not tell its state (it has no state_dict)")


def restore(part: Any, state: Tree, scene: Scene) -> None:
    """Give a part what `state_of` has told of it."""
    if isinstance(part, Resumable):
        part.load_state_dict(state, scene)
    else:
        assert state is None, "a state without an owner"
