"""The client app: what runs where a client's images are.

A client's answer is a function of the message, of its own state and of the seed alone. So it may be asked
again after its process died, and the place where it runs does not matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fl_cmi.compose import client_side
from fl_cmi.data.dataset import Dataset
from fl_cmi.federated.method import Visit
from fl_cmi.flower.records import (
    ARRAYS,
    METRICS,
    from_record,
    load_record,
    pack_update,
    received_records,
    to_record,
)
from fl_cmi.memory import keep_freed_memory
from fl_cmi.partition import Partition, client_tests
from fl_cmi.rng import stream
from fl_cmi.sides import ClientSide
from fl_cmi.types import ConfigError, Images, State, Update

__all__ = ["MakeSide", "client_app", "handle_query", "handle_train", "own_tests"]

CONFIG = "config"
"""The name under which Flower's strategies send a round's settings."""

OWN_MODEL, OWN_PART, OWN_VISIT, OWN_RECORD = "model", "private", "visit", "method."
"""The names under which a client keeps its model in its own state, the part of it that it shares with nobody, when it
trained last, and (a prefix) its method's records."""


MakeSide = Callable[[str], ClientSide]
"""From the run's config as JSON; expected to be quick when asked again in the same process."""


def client_app(config_json: str, partition: Partition, make_side: MakeSide = client_side) -> ClientApp:
    """The app of all clients.

    Args:
        config_json: The run's config.
        partition: Which images are whose.
        make_side: Importable, because processes get it by its name.
    """
    app = ClientApp()
    app.train()(partial(handle_train, config_json=config_json, partition=partition, make_side=make_side))
    app.query()(handle_query)
    return app


def handle_query(message: Message, context: Context) -> Message:
    """Tell the partition id, for servers whose node ids are drawn at random."""
    answer = MetricRecord({"partition-id": client_of(context)})
    return Message(RecordDict({METRICS: answer}), reply_to=message)


def handle_train(
    message: Message,
    context: Context,
    config_json: str,
    partition: Partition,
    make_side: MakeSide = client_side,
) -> Message:
    """Train a client's model on its own images.

    Args:
        message: `arrays`, the global model or the part of it that is shared (read when a client starts from the
            broadcast), `config` with `server-round` and perhaps FedProx's `proximal-mu`, and the method's records.
        context: The client's partition id, and from round to round its own model where it starts from that, the
            part of it that it shares with nobody, and its method's records.
        config_json: The run's config.
        partition: Which images are whose.
        make_side: Makes the client's side from the config.

    Returns:
        The update, packed.

    Raises:
        ValueError: A client without images, or a broadcast that does not fit its architecture.
        RuntimeError: Weights that are no longer finite.
    """
    side = make_side(config_json)
    client, config = client_of(context), message.content.config_records[CONFIG]
    server_round = cast(int, config["server-round"])
    if not partition.sizes[client]:
        raise ValueError(f"client {client} has no images; choose another partition or fewer clients")
    with torch_threads(side.num_threads):
        model = side.build(client)
        _start(side, model, message, context)
        start = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        model.to(side.device)
        attack = side.attack_of(client)
        team = attack.team(client, side.bad_clients)
        name = ("client", team[0], "round", server_round)
        images = joined([client_images(side, partition, member) for member in team])
        images = attack.images(images, stream(side.seed, "attacks", team[0]))
        visit = Visit(
            model,
            images,
            received_records(message.content),
            dict(config),
            _kept(context),
            server_round,
            stream(side.seed, *name, "method"),
            side.device,
        )
        session = side.sharing.method.begin(visit)
        mu = cast(float, config.get("proximal-mu", 0.0))
        metrics = side.local(
            model,
            images,
            stream(side.seed, *name),
            side.device,
            proximal_mu=mu,
            session=session,
            rounds=_rounds(side, server_round, context),
        )
        made = session.finish()
        state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        told = attack.state(model, start, stream(side.seed, *name, "attack"))
    sent = [told, *made.sent.values()]
    broken = [name for part in sent for name, tensor in part.items() if not tensor.isfinite().all()]
    if broken:
        raise RuntimeError(
            f"client {client} diverged in round {server_round}: {broken[0]} is no longer finite; "
            "lower the learning rate of local training"
        )
    _keep(side, model, state, made.kept, context)
    if side.local.remembers_visits:
        context.state[OWN_VISIT] = to_record({"round": torch.tensor(server_round)})
    counts = images.class_counts() if side.share_label_counts else None
    update = Update(client, len(images), counts, told, made.sent, side.sharing.private(model))
    return Message(pack_update(update, metrics), reply_to=message)


def client_of(context: Context) -> int:
    """The partition id of the client whose context this is."""
    return int(context.node_config["partition-id"])


def client_images(side: ClientSide, partition: Partition, client: int) -> Images:
    """A client's training set, with its feature noise where the partition has some.

    `x + sd_k N(0, 1)` on pixels in [0, 1], the same noise in every round, not clamped.

    References:
        Li et al. 2022 (NIID-Bench), arXiv 2102.02079, section 4.2.
    """
    images = side.train.subset(torch.tensor(partition.indices[client]))
    return noisy(images, partition, client, stream(side.seed, "noise", client))


def own_tests(data: Dataset, partition: Partition, seed: int) -> list[Images]:
    """FedGen's local tests (`partition.client_tests`), one set for each client, with its feature noise as well.

    Raises:
        ConfigError: No client gets any.
    """
    slices = client_tests(partition, data.train.y.numpy(), data.test.y.numpy())
    if not any(map(len, slices)):
        why = f"false, or fewer clients: no class has a test image for each of the {partition.num_clients}"
        raise ConfigError("own_tests", "true", why)
    return [
        noisy(
            data.test.subset(torch.from_numpy(indices)),
            partition,
            client,
            stream(seed, "noise", "test", client),
        )
        for client, indices in enumerate(slices)
    ]


def noisy(images: Images, partition: Partition, client: int, rng: torch.Generator) -> Images:
    """With the client's feature noise, where the partition has some."""
    sd = 0.0 if partition.noise_sd is None else partition.noise_sd[client]
    if not sd:
        return images
    noise = torch.randn(images.x.shape, generator=rng)
    return Images(images.pixels() + sd * noise, images.y, images.num_classes)


def joined(parts: Sequence[Images]) -> Images:
    """The images of all parts, at least one, in their order."""
    if len(parts) == 1:
        return parts[0]
    # Where one part has noise on it, all are numbers in [0, 1].
    same = len({part.x.dtype for part in parts}) == 1
    x = torch.cat([part.x if same else part.pixels() for part in parts])
    return Images(x, torch.cat([part.y for part in parts]), parts[0].num_classes)


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """So many threads inside: sums are split by threads, so their number is part of the result."""
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start(side: ClientSide, model: nn.Module, message: Message, context: Context) -> None:
    """Give a new model the weights from which a client's training starts, `scratch` being the initial ones it has."""
    initial = model.state_dict()
    records = context.state.array_records
    if side.start == "own" and OWN_MODEL in records:
        load_record(records[OWN_MODEL], initial)
    if side.start == "broadcast":
        private = side.sharing.private(model)
        shared = {name: value for name, value in initial.items() if name not in private}
        load_record(message.content.array_records[ARRAYS], shared)
        if OWN_PART in records:
            load_record(records[OWN_PART], {name: initial[name] for name in records[OWN_PART]})


def _rounds(side: ClientSide, server_round: int, context: Context) -> int:
    """How many rounds the learning rate has fallen for."""
    if not side.local.remembers_visits:
        return server_round - 1
    records = context.state.array_records
    return int(from_record(records[OWN_VISIT])["round"]) - 1 if OWN_VISIT in records else 0


def _keep(
    side: ClientSide, model: nn.Module, state: State, records: dict[str, State], context: Context
) -> None:
    """Remember for the next round what training starts from, and the method's records."""
    if side.start == "own":
        context.state[OWN_MODEL] = to_record(state)
    own = side.sharing.kept(model)
    if side.start == "broadcast" and own:
        context.state[OWN_PART] = to_record({name: state[name] for name in sorted(own)})
    for name, record in records.items():
        context.state[OWN_RECORD + name] = to_record(record)


def _kept(context: Context) -> dict[str, State]:
    """The records that the client's method kept at its last visit."""
    return {
        name.removeprefix(OWN_RECORD): from_record(record)
        for name, record in context.state.array_records.items()
        if name.startswith(OWN_RECORD)
    }
