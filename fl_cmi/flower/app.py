"""The same run as Flower apps, for `flwr run .`: not the main path (see docs/flwr_run.md).

`flwr run . --run-config 'overrides="experiment=demo seed=1"'`; the number of clients is the federation's number of
SuperNodes. Results go to `outputs/flwr/` under the working directory of the ServerApp.
"""

import functools
import json
import shlex
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_cmi.compose import Config, compose_config, dataset, make_partition
from fl_cmi.flower.backend import MakeApp, Serve
from fl_cmi.flower.client import client_app as default_app
from fl_cmi.flower.client import handle_query, handle_train
from fl_cmi.partition import Partition
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError

__all__ = ["client_app", "server_app"]

client_app = ClientApp()
server_app = ServerApp()
client_app.query()(handle_query)


@functools.lru_cache(maxsize=1)
def _world(overrides: str, num_clients: int) -> tuple[str, Partition]:
    """The run's config and partition, made anew in every process: both follow from the overrides."""
    config = compose_config([*shlex.split(overrides), f"num_clients={num_clients}"])
    return json.dumps(config), make_partition(config, dataset(config))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client."""
    overrides, num_clients = str(context.run_config["overrides"]), int(context.node_config["num-partitions"])
    return handle_train(message, context, *_world(overrides, num_clients))


class GivenGrid:
    """A backend whose clients already run somewhere.

    Args:
        grid: Reaches them.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def run(
        self,
        config_json: str,
        partition: Partition,
        num_clients: int,
        serve: Serve,
        make_app: MakeApp = default_app,
    ) -> None:
        """Serve on the grid as it is."""
        serve(self.grid)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The server's half, on whatever nodes the federation has."""
    overrides = str(context.run_config["overrides"])
    num_clients = len(list(grid.get_node_ids()))
    config = compose_config([*shlex.split(overrides), f"num_clients={num_clients}"])
    check(config)
    run_dir = Path("outputs") / "flwr" / time.strftime("%Y-%m-%d_%H-%M-%S")
    run(config, run_dir, f"flwr run . --run-config 'overrides=\"{overrides}\"'", GivenGrid(grid))
    print(run_dir.resolve())


def check(config: Config) -> None:
    """Raise ConfigError for what Flower's engine could not do, and would leave undone without a word."""
    for key, instead in (
        ("client_timeout", "Flower's engine waits for its clients"),
        ("resume", "each run has a folder of its own"),
    ):
        if config[key] is not None:
            raise ConfigError(key, config[key], f"null with flwr run, where {instead}")
