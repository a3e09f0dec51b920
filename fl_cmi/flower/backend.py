"""A backend runs clients somewhere and serves a grid that reaches them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fl_cmi.partition import Partition
from fl_cmi.types import ConfigError

__all__ = ["Backend", "MakeApp", "Serve", "check_timeouts", "flower_log"]

Serve = Callable[[Grid], None]
"""The server: called once, with the grid."""

MakeApp = Callable[[str, Partition], ClientApp]
"""Makes the client app from the run's config (JSON) and the partition; other processes import it by name."""


class Backend(Protocol):
    """Where the clients of a run live.

    One with a true `makes_room` leaves room on Ray for workers of the server, while clients have nothing to do.
    """

    def run(
        self, config_json: str, partition: Partition, num_clients: int, serve: Serve, make_app: MakeApp = ...
    ) -> None:
        """Bring up `num_clients` clients, call `serve` with a grid, and take the clients down again.

        Raises:
            ConfigError: Resources that are not there.
            Exception: What `serve` raises, unchanged.
        """


def check_timeouts(timeout: float | None, client_timeout: float | None) -> None:
    """Refuse a timeout of a round or of a client that ends before it begins."""
    for key, seconds in (("backend.timeout", timeout), ("client_timeout", client_timeout)):
        if seconds is not None and not seconds > 0:
            raise ConfigError(key, seconds, "a number of seconds > 0, or null for none")


@contextmanager
def flower_log(level: int = logging.WARNING) -> Iterator[None]:
    """Flower's log lines, from `level` up, go to the program's handlers and to nothing else.

    Flower prints them itself and passes them on, so that whoever has a handler of their own sees each line
    twice.
    """
    logger = logging.getLogger("flwr")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [], True
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.handlers, _, logger.propagate = before
        logger.setLevel(before[1])
