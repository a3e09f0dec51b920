"""Flower's arrays on Ray's way: their numbers beside the pickle, not within it."""

from typing import Any

import ray
from flwr.app import Array

from fl_cmi.flower.arrays import MessageError, Values, view_of

__all__ = ["send_arrays_as_arrays"]


def send_arrays_as_arrays() -> None:
    """Let Ray move the numbers of Flower's arrays beside the pickle, not within it: who receives reads them in place.

    For a ResNet-18 this makes putting it into the object store some 20 times faster. It holds for what this
    process sends; who receives needs nothing. `Values` travels so by itself.
    """
    ray.util.register_serializer(Array, serializer=_parts, deserializer=_array)


def _parts(array: Array) -> Values | tuple[Any, ...]:
    try:
        return Values(view_of(array))
    except MessageError:  # for the receiver to judge
        return array.dtype, array.shape, array.stype, array.data


def _array(parts: Values | tuple[Any, ...]) -> Array:
    return parts if isinstance(parts, Values) else Array(*parts)
