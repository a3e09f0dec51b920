"""A run whose clients do next to nothing, importable by name in other processes.

A message's setting `faults`, as JSON, says who misbehaves:
`{"raise": [1], "die": [2], "die_once": {"2": "<marker file>"}, "hang": [0], "seconds": 60, "memory": [3]}`.
Who dies is killed with SIGKILL. With `{"machines": "<folder>"}` each machine of a Ray that has a client touches a file
there, by the name of its id.
"""

import json
import os
import signal
import time
from pathlib import Path

import ray
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fl_cmi.compose import ClientSide
from fl_cmi.flower.client import client_app
from fl_cmi.partition import Partition
from fl_cmi.session import Session
from fl_cmi.types import Images


class Nudge:
    """Local training with a result that can be computed by hand: every parameter gains the mean pixel.

    The batch norm's counter gains the number of images, and a random number is drawn from the
    client's stream.
    """

    remembers_visits = False

    def __call__(
        self,
        model: nn.Module,
        images: Images,
        rng: torch.Generator,
        device: torch.device,
        proximal_mu: float = 0.0,
        session: Session | None = None,
        rounds: int = 0,
    ) -> dict[str, float]:
        gain = images.pixels().mean()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += gain
        model[1].num_batches_tracked += len(images)
        return {"loss": float(gain), "draw": float(torch.rand((), generator=rng)), "mu": proximal_mu}


def network(client: int) -> nn.Module:
    """The same weights for all clients, with an integer buffer."""
    torch_rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_rng))
    return model


def train_images() -> Images:
    """Twelve images of 1x2x2 pixels in three classes."""
    x = torch.arange(48, dtype=torch.uint8).view(12, 1, 2, 2)
    return Images(x, torch.arange(12) % 3, 3)


def side(config_json: str) -> ClientSide:
    """What `fl_cmi.compose.client_side` would make."""
    config = json.loads(config_json)
    return ClientSide(
        train=train_images(),
        build=network,
        local=Nudge(),  # type: ignore[arg-type]
        start=config.get("start", "broadcast"),
        seed=config.get("seed", 0),
        device=torch.device("cpu"),
        share_label_counts=config.get("share_label_counts", True),
        num_threads=1,
    )


def app(config_json: str, partition: Partition) -> ClientApp:
    """The package's client app over the fake side, with the faults that a message asks for."""
    real = client_app(config_json, partition, side)

    def train(message: Message, context: Context) -> Message:
        client = context.node_config["partition-id"]
        faults = json.loads(message.content.config_records["config"].get("faults", "{}"))
        if client in faults.get("raise", []):
            raise ZeroDivisionError("as told")
        if client in faults.get("memory", []):
            raise MemoryError("as told")
        if "machines" in faults:
            (Path(faults["machines"]) / ray.get_runtime_context().get_node_id()).touch()
        if client in faults.get("hang", []):
            time.sleep(faults.get("seconds", 60))
        if client in faults.get("die", []):
            os.kill(os.getpid(), signal.SIGKILL)
        marker = faults.get("die_once", {}).get(str(client))
        if marker is not None and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(message=message, context=context)

    faulty = ClientApp()
    faulty.train()(train)
    faulty.query()(lambda message, context: real(message=message, context=context))
    return faulty


def dead_app(config_json: str, partition: Partition) -> ClientApp:
    """An app that cannot even be made."""
    raise ImportError("no such module, as told")
