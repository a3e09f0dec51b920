"""Arrays on their way, read without trust: of bytes nothing is unpickled or allocated before it has been checked."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["MessageError", "Values", "num_bytes", "values_of", "view_of"]

KINDS = frozenset(("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"))
"""Types of number that models have; above all, no objects."""

KIND = "numpy.ndarray"
"""Flower's name for NumPy's own format."""

HEADER = 4096
"""Bytes of a header at most."""


class MessageError(ValueError):
    """A message that is not what a client or the server of this program sends."""


class Values(Array):
    """An array of Flower's that holds the numbers themselves; Flower's bytes are made where somebody asks for them.

    The package's own grids hand over the numbers, and Ray maps them into the receiver's memory: nothing is encoded,
    and the only copies are those that give sender and receiver a memory of their own.

    Args:
        values: Nobody else writes to them; here they are read only.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        values = values.view()
        values.flags.writeable = False
        # By way of the dictionary: Flower's own setters forget what they have computed of the old values.
        self.__dict__ |= {
            "values": values,
            "dtype": name_of(values.dtype),
            "shape": values.shape,
            "stype": KIND,
        }

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Values":
        """A copy of a tensor.

        Raises:
            TypeError: For bfloat16, which numpy does not know.
        """
        # In the order of the tensor's memory: channels last need not be sorted into rows and back.
        return cls(np.array(tensor.detach().cpu().numpy(), order="K"))

    @property
    def data(self) -> bytes:
        """NumPy's own format, as Flower writes it."""
        file = io.BytesIO()
        np.save(file, self.__dict__["values"], allow_pickle=False)
        return file.getvalue()

    def numpy(self) -> NDArray[Any]:
        """A copy, which may be changed, as of every array of Flower's."""
        return values_of(self)

    def deflate(self) -> bytes:
        """As the plain array: Flower's own way to send it names its class."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return Values, (self.__dict__["values"],)


def values_of(array: Array) -> NDArray[np.generic]:
    """The values of an array as Flower carries it; they share no memory with it.

    Raises:
        MessageError: As `view_of`, or where there is no memory for them.
    """
    view = view_of(array)
    try:
        flat = np.empty(view.size, view.dtype)
    except MemoryError as error:
        raise MessageError(f"an array of {view.dtype} {view.shape} cannot be made ({error})") from None
    values = flat.reshape(view.shape[::-1]).transpose() if view.flags.fnc else flat.reshape(view.shape)
    np.copyto(values, view)
    return values


def view_of(array: Array) -> NDArray[np.generic]:
    """The values of an array as Flower carries it, only to be read: its own numbers, or those in its bytes.

    The header in NumPy's own format has to agree with what the array says of itself, and what it declares has to be
    there, byte for byte, so that no more is allocated than arrived.

    Raises:
        MessageError: Anything else.
    """
    if array.stype != KIND:
        raise MessageError(f"an array is of the kind {array.stype!r}, not {KIND}")
    if isinstance(array, Values):
        values: NDArray[Any] = array.__dict__["values"]
        check_declared(array, values.shape, values.dtype)
        return values
    file = io.BytesIO(array.data)
    try:
        shape, columns_first, dtype = read_header(file)
    except Exception as error:  # NumPy's parser fails in many ways; one is enough here
        raise MessageError(f"an array's header cannot be read ({type(error).__name__})") from None
    check_declared(array, shape, dtype)
    there, number = len(array.data) - file.tell(), 1
    for size in shape:
        number *= size
    if any(size < 0 for size in shape) or number * dtype.itemsize != there:
        raise MessageError(f"an array of {dtype} {shape} comes with {there} bytes")
    try:
        flat = np.frombuffer(array.data, dtype, number, file.tell()) if number else np.empty(0, dtype)
        values = flat.reshape(shape[::-1] if columns_first else shape)
    except (ValueError, OverflowError, MemoryError) as error:  # such as 0 x 2^62
        raise MessageError(f"an array of {dtype} {shape} cannot be made ({error})") from None
    return values.transpose() if columns_first else values


def check_declared(array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise MessageError where values of this shape and type are none of a model, or not what the array says."""
    if name_of(dtype) not in KINDS or not dtype.isnative:
        raise MessageError(f"an array holds {dtype}, not one of {', '.join(sorted(KINDS))}")
    if name_of(dtype) != array.dtype or shape != tuple(array.shape):
        raise MessageError(f"an array of {dtype} {shape} says that it is one of {array.dtype} {array.shape}")


@lru_cache
def name_of(dtype: np.dtype[Any]) -> str:
    """The type's name, which NumPy puts together anew each time."""
    return str(dtype)


def num_bytes(array: Array) -> int:
    """Bytes of an array in NumPy's own format, which need not be made for it."""
    if not isinstance(array, Values):
        return len(array.data)
    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array.__dict__["values"]))
    return len(header.getvalue()) + int(array.__dict__["values"].nbytes)


def read_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type, of which nothing has been judged yet; the file stands at the values."""
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file, max_header_size=HEADER)
    if version == (2, 0):
        return npy.read_array_header_2_0(file, max_header_size=HEADER)
    raise ValueError(f"version {version}")
