"""Flower's arrays on Ray's way: their bytes beside the pickle, not within it."""

import numpy as np
import ray
from flwr.app import Array
from numpy.typing import NDArray

__all__ = ["send_arrays_as_arrays"]


def send_arrays_as_arrays() -> None:
    """Let Ray move the bytes of Flower's arrays beside the pickle, not within it.

    For a ResNet-18 this makes putting it into the object store some 20 times faster. It holds for what this
    process sends; who receives needs nothing.
    """
    ray.util.register_serializer(Array, serializer=_array_parts, deserializer=_array_of_parts)


def _array_parts(array: Array) -> tuple[str, tuple[int, ...], str, NDArray[np.uint8]]:
    return array.dtype, array.shape, array.stype, np.frombuffer(array.data, dtype=np.uint8)


def _array_of_parts(parts: tuple[str, tuple[int, ...], str, NDArray[np.uint8]]) -> Array:
    dtype, shape, stype, data = parts
    return Array(dtype, shape, stype, data.tobytes())
