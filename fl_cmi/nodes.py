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

__all__ = ["as_typed", "check_nodes"]

EXTRAS = {"flwr_datasets": "flwr-datasets"}
"""Packages that a configuration of ours names, and the extra with which they come."""

NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def check_nodes(config: dict[str, Any]) -> None:
    """Raise ConfigError for the first value that cannot be what its parameter asks for.

    Only annotations of numbers, texts, true or false, literals, classes and unions of them are judged; optimizers,
    whose annotations say little, are built once on a made-up parameter.
    """
    # Strategy and teacher repeat other nodes; a mistake there is told with the key that the user typed.
    last = {key: config[key] for key in sorted(config, key=lambda key: key in ("strategy", "teacher"))}
    for path, node in nodes(last, ""):
        target = resolved(path, node["_target_"])
        if not isinstance(node.get("_partial_", False), bool):
            raise ConfigError(f"{path}._partial_", node["_partial_"], "true or false")
        values = {key: value for key, value in node.items() if not str(key).startswith("_")}
        if isinstance(target, type) and issubclass(target, torch.optim.Optimizer):
            check_optimizer(path, target, values)
            continue
        if draws_images(target):
            check_generator(path, target, values)
        hints = hints_of(target)
        for key, value in values.items():
            allowed = flatten(hints.get(key, Any))
            if allowed and not any(fits(value, kind) for kind in allowed):
                raise ConfigError(f"{path}.{key}", value, " or ".join(name(kind) for kind in allowed))


def resolved(path: str, name: Any) -> Any:
    """What a `_target_` names; packages that are an extra are looked for as well.

    Raises:
        ConfigError: If there is no such thing, or nothing that can be called.
    """
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        extra = EXTRAS.get(str(name).partition(".")[0]) if isinstance(error, ImportError) else None
        reason = str(error) if extra is None else f"first pip install 'fl_cmi[{extra}]'"
        raise ConfigError(f"{path}._target_", name, f"a class or function of Python ({reason})") from None
    if not callable(target):
        raise ConfigError(f"{path}._target_", name, "a class or function")
    return target


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
    """The alternatives of an annotation, plain ones or classes; empty where some alternative is neither."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    judged = all(
        get_origin(part) is Literal or (isinstance(part, type) and part is not Any) for part in parts
    )
    return tuple(parts) if judged and object not in parts else ()


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from YAML may be of a kind; whole numbers are numbers, true and false are not."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind not in NAMES:  # a class: what a node makes is its own affair, but no plain value is one
        return isinstance(value, (dict, list))
    return isinstance(value, kind)


def name(kind: Any) -> str:
    """What a kind is called in an error."""
    if get_origin(kind) is Literal:
        return " or ".join(str(part) for part in get_args(kind))
    return NAMES.get(kind) or f"a {kind.__name__}"


def draws_images(target: Any) -> bool:
    """Whether a network needs nothing but the shape of an image: a generator."""
    if not (isinstance(target, type) and issubclass(target, torch.nn.Module)):
        return False
    taken = inspect.signature(target).parameters.values()
    return [p.name for p in taken if p.default is p.empty and p.kind is not p.VAR_KEYWORD] == ["shape"]


def check_generator(path: str, target: type[torch.nn.Module], values: dict[str, Any]) -> None:
    """Build the generator for a made-up shape, without memory, so that its own checks speak before the run begins."""
    try:
        with torch.device("meta"):
            target((3, 32, 32), **values)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.key.rpartition('.')[2]}", error.value, error.allowed) from None
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(path, values, f"what {target.__name__} takes: {reason}") from None


def check_optimizer(path: str, target: type[torch.optim.Optimizer], values: dict[str, Any]) -> None:
    """Build the optimizer, so that its own checks speak before the run begins."""
    for key, value in values.items():
        if isinstance(value, str):
            raise ConfigError(f"{path}.{key}", value, "a number")
    try:
        target([torch.nn.Parameter(torch.zeros(1))], **values)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(path, values, f"what {target.__name__} takes: {error}") from None


def as_typed(error: ConfigError, config: dict[str, Any]) -> ConfigError:
    """The same mistake with the whole key, as the user types it.

    A component knows the names of its own parameters and not where in the configuration it stands, so that it calls a
    key `distiller.loss...temperature`, or `model.width` for `teacher.model.width`: the key is completed where one place
    fits. A value that a strategy takes over from the top level is called by its name there.

    Args:
        error: What was raised.
        config: The configuration that it is about.
    """
    head, dots, tail = error.key.partition("...")
    if dots:
        fitting = {
            key: value
            for key, value in leaves(config, "")
            if key.startswith(f"{head}.") and fits_end(key, tail)
        }
        same = [key for key, value in fitting.items() if str(value) == str(error.value)] or list(fitting)
        return ConfigError(same[0], error.value, error.allowed) if len(same) == 1 else error
    every = dict(leaves(config, ""))
    if error.key in every and str(every[error.key]) != str(error.value):
        copies = [
            key for key, value in every.items() if key.endswith(f".{error.key}") and value == error.value
        ]
        return ConfigError(copies[0], error.value, error.allowed) if len(copies) == 1 else error
    top = error.key.removeprefix("strategy.")
    return ConfigError(top, error.value, error.allowed) if top != error.key and top in config else error


def fits_end(key: str, tail: str) -> bool:
    """Whether a whole key ends as the abbreviated one: in these names, perhaps with others between the last two."""
    first, _, last = tail.rpartition(".")
    return key.endswith(f".{tail}") or (bool(first) and f".{first}." in key and key.endswith(f".{last}"))


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every key inside a configuration with its value, mappings included."""
    for key, part in value.items() if isinstance(value, dict) else ():
        yield f"{path}.{key}" if path else key, part
        yield from leaves(part, f"{path}.{key}" if path else key)
