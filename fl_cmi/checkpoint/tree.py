"""Trees of tensors and plain values, as tensors by name and a text: what safetensors and JSON can hold."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from fl_cmi.types import State

__all__ = ["NotResumableError", "Tree", "pack", "unpack"]

Tree = Any
"""Dicts (keys are texts or integers), lists and tuples of tensors, numbers, texts, true, false and None."""


class NotResumableError(TypeError):
    """A part does not tell what it remembers, or tells what no checkpoint can hold."""


def pack(tree: Tree) -> tuple[State, str]:
    """Tensors by number, on the CPU, and the shape of the tree as JSON.

    Bits, dtypes and strides come back as they were: with other strides, sums may be taken in another order.

    Raises:
        NotResumableError: For anything else in the tree.
    """
    tensors: State = {}

    def shape(node: Tree) -> Any:
        if isinstance(node, Tensor):
            name = str(len(tensors))
            value = node.detach()
            # A dense tensor is kept in the order of its memory; others are no state of anything here.
            tensors[name] = value.cpu().contiguous().clone()
            return {"tensor": name, "stride": list(value.stride())}
        if isinstance(node, dict):
            if not all(type(key) in (str, int) for key in node):
                raise NotResumableError(f"keys of a state are texts or integers, not {list(node)[:3]}")
            return {"dict": [[key, shape(value)] for key, value in node.items()]}
        if isinstance(node, list):
            return {"list": [shape(value) for value in node]}
        if isinstance(node, tuple):
            return {"tuple": [shape(value) for value in node]}
        if isinstance(node, float) and not math.isfinite(node):
            return {"float": repr(node)}
        if node is None or type(node) in (bool, int, float, str):
            return node
        raise NotResumableError(f"a {type(node).__name__} has no place in a checkpoint")

    text = json.dumps(shape(tree), allow_nan=False)
    return tensors, text


def unpack(tensors: State, text: str) -> Tree:
    """The tree that was packed.

    Raises:
        ValueError: If the two do not belong together.
    """

    def build(node: Any) -> Tree:
        if not isinstance(node, dict):
            return node
        (kind, value), *rest = node.items()
        if kind == "tensor":
            return laid_out(tensors[value], tuple(dict(rest)["stride"]))
        if kind == "dict":
            return {key: build(part) for key, part in value}
        if kind == "list":
            return [build(part) for part in value]
        if kind == "tuple":
            return tuple(build(part) for part in value)
        if kind == "float":
            return float(value)
        raise ValueError(f"{kind}: no part of a state")

    try:
        return build(json.loads(text))
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"not a packed state ({error})") from error


def laid_out(value: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The same values with these strides, where these make it dense; as it is elsewhere."""
    if stride == value.stride():
        return value
    order = sorted(range(value.ndim), key=lambda axis: stride[axis], reverse=True)
    expected = 1
    for axis in reversed(order):
        if value.shape[axis] != 1 and stride[axis] != expected:
            return value
        expected *= value.shape[axis]
    return torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)
