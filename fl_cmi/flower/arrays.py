"""Arrays that came from elsewhere, read without trust: nothing is unpickled or allocated before it has been checked."""

import io
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["MessageError", "values_of"]

KINDS = frozenset(("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"))
"""Types of number that models have; above all, no objects."""

HEADER = 4096
"""Bytes of a header at most."""


class MessageError(ValueError):
    """A message that is not what a client or the server of this program sends."""


def values_of(array: Array) -> NDArray[np.generic]:
    """The values of an array as Flower carries it, NumPy's own format in bytes; they share no memory with it.

    The header has to agree with what the array says of itself, and what it declares has to be there, byte for byte, so
    that no more is allocated than arrived.

    Raises:
        MessageError: Anything else.
    """
    if array.stype != "numpy.ndarray":
        raise MessageError(f"an array is of the kind {array.stype!r}, not numpy.ndarray")
    file = io.BytesIO(array.data)
    try:
        shape, columns_first, dtype = read_header(file)
    except Exception as error:  # NumPy's parser fails in many ways; one is enough here
        raise MessageError(f"an array's header cannot be read ({type(error).__name__})") from None
    if str(dtype) not in KINDS or not dtype.isnative:
        raise MessageError(f"an array holds {dtype}, not one of {', '.join(sorted(KINDS))}")
    if str(dtype) != array.dtype or shape != tuple(array.shape):
        raise MessageError(f"an array of {dtype} {shape} says that it is one of {array.dtype} {array.shape}")
    there, number = len(array.data) - file.tell(), 1
    for size in shape:
        number *= size
    if any(size < 0 for size in shape) or number * dtype.itemsize != there:
        raise MessageError(f"an array of {dtype} {shape} comes with {there} bytes")
    try:
        flat = np.frombuffer(array.data, dtype, number, file.tell()) if number else np.empty(0, dtype)
        values = flat.copy().reshape(shape[::-1] if columns_first else shape)
    except (ValueError, OverflowError, MemoryError) as error:  # such as 0 x 2^62
        raise MessageError(f"an array of {dtype} {shape} cannot be made ({error})") from None
    return values.transpose() if columns_first else values


def read_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type, of which nothing has been judged yet; the file stands at the values."""
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file, max_header_size=HEADER)
    if version == (2, 0):
        return npy.read_array_header_2_0(file, max_header_size=HEADER)
    raise ValueError(f"version {version}")
