"""A client's round, compared with an ordinary client of Flower's: same network, same images, same optimizer.

Both get the same kind of message and answer it in this process; seconds are CPU time on one thread. How much of an
ordinary client's time its loader takes depends on the network, so there are two: LeNet, of the quickstart's size, and
the convnet of the project's own studies.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import nn

from fl_cmi.compose import (
    Config,
    client_side,
    compose_config,
    dataset,
    make_model,
    make_partition,
    task,
)
from fl_cmi.flower.client import client_images, handle_train
from fl_cmi.flower.grid import PartitionGrid
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.records import to_record
from simulations.bench.figures import Figure, Scale, at_least, in_turn
from simulations.bench.quickstart_client import QuickstartClient

__all__ = ["figures"]

MODELS = ("lenet", "convnet")

SHIFT = 2
"""Pixels, where images are augmented."""


def figures(scale: Scale) -> Iterator[Figure]:
    """Two lines for each network: images as they are, and shifted at random."""
    for name, shift in product(MODELS, (0, SHIFT)):
        data, clients = ("digits", 3) if scale.tiny else ("fashion_mnist", 100)
        epochs = scale.choose(5, 1)
        config = compose_config(
            [
                *(f"data={data}", f"model={name}", f"num_clients={clients}", f"local.epochs={epochs}"),
                *("partition=iid", "local.prior_correction=false", "strategy=fedavg", "device=cpu"),
                *(
                    [f"local.augment={{_target_: fl_cmi.augment.CropFlip, padding: {shift}, flip: 0.0}}"]
                    if shift
                    else []
                ),
            ]
        )
        times = in_turn(*clients_of(config, shift), scale.repeat(15, 5))
        what = f"{name}, shifted images" if shift else name
        yield at_least(f"a client's round, {what}, CPU s: ours, quickstart-style client", times, 3.0)


def clients_of(config: Config, shift: int) -> tuple[Callable[[], Message], Callable[[], Message]]:
    """A round of our client, and one of the ordinary client."""
    data = dataset(config)
    partition = make_partition(config, data)
    config_json = json.dumps(config)
    side = client_side(config_json)
    local, optimizer = side.local, config["local"]["optimizer"]
    network = partial(plain_network, config)
    theirs = QuickstartClient(
        network,
        client_images(side, partition, 0),
        data.mean,
        data.std,
        epochs=local.epochs or 1,
        batch_size=local.batch_size,
        rate=optimizer["lr"],
        momentum=optimizer["momentum"],
        weight_decay=optimizer["weight_decay"],
        shift=shift,
    )
    # The grid gives messages an origin and clients a context.
    grid: PartitionGrid = LocalGrid(None, 1)
    settings = ConfigRecord({"server-round": 1})
    model = side.build(0)
    ours_message = Message(
        RecordDict({"arrays": to_record(model.state_dict()), "config": settings}), 0, "train"
    )
    theirs_message = Message(RecordDict({"arrays": ArrayRecord(network().state_dict())}), 0, "train")

    def context() -> Context:
        return grid.fresh_context(0)

    return (
        lambda: handle_train(ours_message, context(), config_json, partition),
        lambda: theirs.train(theirs_message, context()),
    )


def plain_network(config: Config) -> nn.Module:
    """As everybody's: tensors in PyTorch's own layout, normalization left to the transforms."""
    model = make_model(config["model"], task(dataset(config)), 0)
    model.normalize = nn.Identity()
    return model.to(memory_format=torch.contiguous_format)
