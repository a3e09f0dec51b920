"""What strategies remember from round to round, Flower's own included."""

from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_cmi.checkpoint.state import NotResumableError, Resumable, Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.flower.records import from_record, to_record

__all__ = ["restore_strategy", "strategy_state"]


def strategy_state(strategy: Strategy, scene: Scene) -> Tree:
    """What a strategy tells; of Flower's, which tell nothing, all attributes that hold arrays or plain values.

    Raises:
        NotResumableError: For an attribute of another kind.
    """
    if isinstance(strategy, Resumable):
        return strategy.state_dict(scene)
    return {name: held(value, name) for name, value in vars(strategy).items() if not callable(value)}


def restore_strategy(strategy: Strategy, state: Tree, scene: Scene) -> None:
    """Give a strategy what `strategy_state` has told of it."""
    if isinstance(strategy, Resumable):
        strategy.load_state_dict(state, scene)
        return
    for name, (kind, value) in state.items():
        setattr(strategy, name, HELD[kind](value))


HELD = {
    "plain": lambda value: value,
    "record": to_record,
    "list": lambda value: [part.numpy() for part in value],
    "dict": lambda value: {key: part.numpy() for key, part in value.items()},
}
"""From what a checkpoint holds to what an attribute is."""


def held(value: Any, name: str) -> Tree:
    """An attribute's kind and value."""
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    if isinstance(value, ArrayRecord):
        return ["record", from_record(value)]
    if isinstance(value, list) and all(isinstance(part, np.ndarray | np.generic) for part in value):
        return ["list", [tensor(part) for part in value]]
    if isinstance(value, dict) and all(isinstance(part, np.ndarray | np.generic) for part in value.values()):
        return ["dict", {key: tensor(part) for key, part in value.items()}]
    raise NotResumableError(f"the strategy's {name} is a {type(value).__name__}")


def tensor(array: np.ndarray | np.generic) -> torch.Tensor:
    """Of the same values and type."""
    return torch.from_numpy(np.array(array))
