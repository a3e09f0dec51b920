"""What every procedure demands of its arguments."""

import math

import numpy as np

from fl_cmi.partition.types import Labels
from fl_cmi.types import ConfigError

__all__ = [
    "MAX_ATTEMPTS",
    "check_clients",
    "check_min_size",
    "check_positive",
    "check_whole",
    "out_of_attempts",
]

MAX_ATTEMPTS = 10_000
"""Redraws before giving up; the published loops go on for ever."""


def check_clients(labels: Labels, num_clients: int) -> None:
    """Between one client and one image per client.

    Raises:
        ConfigError: For `num_clients`.
    """
    assert labels.ndim == 1, "labels are a vector"
    assert np.issubdtype(labels.dtype, np.integer), "labels are integers"
    assert len(labels) == 0 or labels.min() >= 0, "labels start at 0"
    check_whole("num_clients", num_clients)
    if num_clients > len(labels):
        raise ConfigError("num_clients", num_clients, f"at most {len(labels)}, the number of training images")


def check_positive(key: str, value: float) -> None:
    """A finite number > 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise ConfigError(key, value, "a number > 0")


def check_whole(key: str, value: int, at_least: int = 1) -> None:
    """A whole number >= `at_least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < at_least:
        raise ConfigError(key, value, f"a whole number >= {at_least}")


def check_min_size(min_size: int, num_images: int, num_clients: int) -> None:
    """A smallest client that the data can feed."""
    check_whole("partition.min_size", min_size)
    if min_size * num_clients > num_images:
        limit = num_images // num_clients
        raise ConfigError(
            "partition.min_size",
            min_size,
            f"at most {limit}: there are {num_images} images for {num_clients} clients",
        )


def out_of_attempts(key: str, value: float, min_size: int) -> ConfigError:
    """The error of a draw that never gave every client `min_size` images."""
    return ConfigError(
        key,
        value,
        f"a larger number, fewer clients or a smaller minimum: "
        f"{MAX_ATTEMPTS} draws left some client below {min_size} images",
    )
