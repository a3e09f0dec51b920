"""The type checker of the tests: beartype, except where it would hide what the package itself says."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

__all__ = ["checked"]

# An int is a float (PEP 484): `weight=1` is no mistake.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its arguments and result checked against its annotations at each call.

    The values of a constructor come from YAML: a list for a tuple is welcome, and a mistake is for the
    package's own ConfigError to tell. So of an `__init__` only tensors and arrays are checked.
    """
    hints = function.__annotations__
    for name, hint in hints.items():
        parts = [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type)]
        if function.__name__ == "__init__" and not any(issubclass(part, AbstractArray) for part in parts):
            hints[name] = Any
        for part in parts:
            # Protocols are not `runtime_checkable` in the package; here each is made so when it is first met.
            if getattr(part, "_is_protocol", False):
                typing.runtime_checkable(part)
    return _beartype(function)
