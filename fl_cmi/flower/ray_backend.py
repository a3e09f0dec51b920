"""Clients on Ray actors: as many processes at once as fit on this machine or on a cluster."""

from collections.abc import Mapping
from functools import partial

import ray

from fl_cmi.flower.backend import MakeApp, Serve, check_timeouts, flower_log
from fl_cmi.flower.client import client_app
from fl_cmi.flower.ray_grid import RayGrid
from fl_cmi.flower.ray_session import ClientResources, num_actors_that_fit, ray_session
from fl_cmi.flower.surroundings import describe
from fl_cmi.partition import Partition
from fl_cmi.types import ConfigError

__all__ = ["RayBackend"]


class RayBackend:
    """Runs the clients in processes that Ray places.

    Args:
        address: None for a Ray of our own on this machine, with the CPUs and GPUs it finds (limits of a
            container count); `auto` or `host:port` for a cluster (docs/cluster.md), which stays up afterwards.
            Its machines may join and be lost on the way.
        num_actors: Clients at work at once, at most; None for as many as fit. More than fit are refused without an
            address.
        client_resources: What Ray sets aside for one client: `num_cpus` (1) and `num_gpus` (0).
        retries: How often a client is asked again after its process died.
        timeout: Seconds for all replies of a round; a client that is late is killed and counts as failed.
        client_timeout: The same for each client, from when a process begins with it.
    """

    makes_room = True
    """For workers of the server, while clients have nothing to do."""

    def __init__(
        self,
        address: str | None = None,
        num_actors: int | None = None,
        client_resources: Mapping[str, float] | None = None,
        retries: int = 1,
        timeout: float | None = None,
        client_timeout: float | None = None,
    ) -> None:
        if num_actors is not None and num_actors < 1:
            raise ConfigError("backend.num_actors", num_actors, "an integer >= 1, or null for as many as fit")
        if retries < 0:
            raise ConfigError("backend.retries", retries, "an integer >= 0")
        check_timeouts(timeout, client_timeout)
        self.client_resources = ClientResources.of(client_resources)
        self.address, self.num_actors, self.retries = address, num_actors, retries
        self.timeout, self.client_timeout = timeout, client_timeout

    def run(
        self,
        config_json: str,
        partition: Partition,
        num_clients: int,
        serve: Serve,
        make_app: MakeApp = client_app,
    ) -> None:
        """As `fl_cmi.flower.backend.Backend`."""
        with flower_log(), ray_session(self.address):
            # Machines may join a cluster later, and have the room that is not there now.
            joining, describing = self.address is not None, None
            wanted = None if joining else self.num_actors
            num_actors = num_actors_that_fit(self.client_resources, num_clients, wanted)
            if joining:
                num_actors = min(self.num_actors or num_clients, num_clients)
                # An app that is not the package's has its own data.
                describing = partial(describe, config_json if make_app is client_app else None)
            grid = RayGrid(
                make_app,
                (config_json, ray.put(partition)),
                num_clients,
                num_actors,
                self.client_resources.by_name,
                self.retries,
                self.timeout,
                self.client_timeout,
                describing,
            )
            try:
                serve(grid)
            finally:
                grid.close()
