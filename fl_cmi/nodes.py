"""What can be said of a configuration before anything is built: every value fits the parameter it is meant for.

A node is a mapping with a `_target_`. Its keys are parameters of that class or function, so their annotations tell
what a value may be, and an error can name the one key at fault instead of whatever failed later.
"""

import inspect
import pkgutil
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from fl_cmi.types import ConfigError

__all__ = ["check_nodes"]

NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def check_nodes(config: dict[str, Any]) -> None:
    """Raise ConfigError for the first value that cannot be what its parameter asks for.

    Only plain annotations are judged (numbers, texts, true or false, literals and unions of them); optimizers, whose
    annotations say little, are built once on a made-up parameter.
    """
    # Strategy and teacher repeat other nodes; a mistake there is told with the key that the user typed.
    last = {key: config[key] for key in sorted(config, key=lambda key: key in ("strategy", "teacher"))}
    for path, node in nodes(last, ""):
        target = pkgutil.resolve_name(node["_target_"])
        values = {key: value for key, value in node.items() if not key.startswith("_")}
        if isinstance(target, type) and issubclass(target, torch.optim.Optimizer):
            check_optimizer(path, target, values)
            continue
        hints = hints_of(target)
        for key, value in values.items():
            allowed = flatten(hints.get(key, Any))
            if allowed and not any(fits(value, kind) for kind in allowed):
                raise ConfigError(f"{path}.{key}", value, " or ".join(name(kind) for kind in allowed))


def nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node inside `value` with the key that leads to it, outermost first."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, part in value.items():
            yield from nodes(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from nodes(part, f"{path}.{number}")


def hints_of(target: Any) -> dict[str, Any]:
    """Annotations of what a class or function is called with."""
    function = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009
    try:
        return get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError):  # a library's annotations may be for type checkers only
        return {}


def flatten(hint: Any) -> tuple[Any, ...]:
    """The plain alternatives of an annotation; empty where some alternative is not plain."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = all(part in NAMES or get_origin(part) is Literal for part in parts)
    return tuple(parts) if plain else ()


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from YAML is of a plain kind; whole numbers are numbers, true and false are not."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def name(kind: Any) -> str:
    """What a plain kind is called in an error."""
    return " or ".join(str(part) for part in get_args(kind)) if get_origin(kind) is Literal else NAMES[kind]


def check_optimizer(path: str, target: type[torch.optim.Optimizer], values: dict[str, Any]) -> None:
    """Build the optimizer, so that its own checks speak before the run begins."""
    for key, value in values.items():
        if isinstance(value, str):
            raise ConfigError(f"{path}.{key}", value, "a number")
    try:
        target([torch.nn.Parameter(torch.zeros(1))], **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(path, values, f"what {target.__name__} takes: {error}") from None
