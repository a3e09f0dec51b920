"""What a round costs, by client and by teacher, measured here; and what follows for many more of both.

python -m simulations.bench.scale              # the coefficients, then the plan of docs/scale.md
python -m simulations.bench.scale --json FILE

The shapes of experiment=fmnist_oneshot on made-up images. Seconds are of one core: CPU time of one thread where
something is computed, wall time where Ray is at work. A cost that grows with a number is the difference of two sizes.
"""

import argparse
import copy
import gc
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_cmi.bank import Pool
from fl_cmi.compose import build, client_side, compose_config, dataset, make_model, make_partition, task
from fl_cmi.ensemble import Ensemble
from fl_cmi.flower.client import client_app, client_images
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.ray_grid import RayGrid
from fl_cmi.flower.ray_session import ray_session
from fl_cmi.flower.records import content_bytes, pack_update, to_record, unpack_updates
from fl_cmi.partition import Partition
from fl_cmi.report.units import byte_size, duration
from fl_cmi.rng import stream
from fl_cmi.types import State, Teacher, Update

__all__ = ["Coefficients", "main", "plan"]

Coefficients = dict[str, float]
"""Seconds and bytes, by the names that the formulas use."""

SETTINGS = (
    *("data=synthetic", "data.side=28", "data.num_classes=10", "data.num_train=4000", "model.blocks=4"),
    *("num_clients=10", "partition=iid", "strategy=fed_cmi", "client_threads=1", "local.epochs=2"),
)

UNITS = {
    "update": "bytes of a client's update",
    "train": "s of training, an image and epoch",
    "carry": "s of the driver, a client asked by Ray",
    "idle": "s of the driver, a client of the run not asked (once)",
    "unpack": "s of the driver, an update read and averaged",
    "context": "bytes of the driver, a client of the run",
    "held": "bytes of the driver, an update in a round",
    "actor": "bytes of an actor, beside the data set",
    "teacher": "bytes of the server, a teacher",
    "generator": "bytes of the server, a teacher's generator and its optimizer (per_client)",
    "label": "s of the server, an image labelled by a teacher",
    "step": "s of the server, a synthesis step of per_client",
    "joint": "s of the server, a teacher in a joint synthesis step",
    "distill": "s of the server, a distillation step beside its labels",
    "pooled": "bytes of an image in the pool",
}


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least CPU time of some calls, after one that warms up."""
    work()
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def resident() -> int:
    """Bytes of memory that this process has (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def empty_app(config_json: str, partition: Partition) -> ClientApp:
    """Clients that send a model back as it is: what is left is carrying."""
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    app.train()(train)
    return app


def sized_app(config_json: str, partition: Partition) -> ClientApp:
    """The package's clients, who also tell how large their process is."""
    app, real = ClientApp(), client_app(config_json, partition)

    def train(message: Message, context: Context) -> Message:
        reply = real(message=message, context=context)
        reply.content.metric_records["metrics"]["resident"] = resident()
        return reply

    app.train()(train)
    return app


def tensor_bytes(states: State) -> int:
    """Bytes of all values."""
    return sum(value.numel() * value.element_size() for value in states.values())


def replies(state: State, number: int) -> list[Message]:
    """Updates of so many clients, as they arrive."""
    made = []
    for client in range(number):
        update = Update(client, 400, torch.full((10,), 40), copy.deepcopy(state))
        made.append(Message(pack_update(update, {"loss": 0.1}), dst_node_id=client, message_type="train"))
    return made


def memory_costs(config: dict[str, Any]) -> Coefficients:
    """Of what a round holds: measured first, because later on memory is used again that was freed before."""
    what, number = task(dataset(config)), 200
    state, kept, sizes = make_model(config["model"], what, 0).state_dict(), list[object](), [resident()]

    def keep(things: object) -> None:
        kept.append(things)
        sizes.append(resident())

    keep([Teacher(k, 400, torch.ones(10), make_model(config["model"], what, k)) for k in range(number)])
    keep(messages := replies(state, number))
    keep(unpack_updates(messages))
    generator = build(config["synthesizer"]["inversion"]["source"]["generator"], "generator")(what.shape)
    return {
        "teacher": (sizes[1] - sizes[0]) / number,
        "held": (sizes[3] - sizes[1]) / number,
        "generator": 3 * tensor_bytes(dict(generator.named_parameters())),  # Adam keeps two more of each
    }


def client_side_costs(config: dict[str, Any]) -> Coefficients:
    """Of training, and of an update on its way and in the driver."""
    side, partition = client_side(json.dumps(config)), make_partition(config, dataset(config))
    model, images = side.build(0), client_images(side, partition, 0)
    state = copy.deepcopy(model.state_dict())

    def train() -> None:
        model.load_state_dict(state)
        side.local(model, images, stream(0, "scale"), side.device)

    seconds = cpu_seconds(train, 1) / (len(images) * config["local"]["epochs"])
    few, many = replies(state, 20), replies(state, 120)

    def unpack(messages: list[Message]) -> None:
        updates = unpack_updates(messages)
        for name in updates[0].state:
            torch.stack([update.state[name].double() for update in updates]).mean(dim=0)

    unpacked = (cpu_seconds(partial(unpack, many)) - cpu_seconds(partial(unpack, few))) / 100
    return {"train": seconds, "update": content_bytes(many[0]), "unpack": unpacked}


def ray_costs(config: dict[str, Any]) -> Coefficients:
    """Of carrying messages, by a grid of one actor; and what the actor of a real client takes."""
    side = client_side(json.dumps(config))
    arrays = to_record(side.build(0).state_dict())
    nothing = Partition("none", {}, (np.arange(2),))

    def messages(number: int, content: RecordDict) -> list[Message]:
        return [Message(content, client, "train") for client in range(number)]

    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    with ray_session():
        before, begin = resident(), time.perf_counter()
        grid = RayGrid(empty_app, ("{}", nothing), 5000, 1)
        found = {"idle": (time.perf_counter() - begin) / 5000, "context": (resident() - before) / 5000}
        taken = {}
        for number in (5, 20, 120):  # the first brings the actor up
            begin = time.perf_counter()
            grid.send_and_receive(messages(number, content))
            taken[number] = time.perf_counter() - begin
        found["carry"] = (taken[120] - taken[20]) / 100
        grid.close()
        real = RayGrid(sized_app, (json.dumps(config), make_partition(config, dataset(config))), 10, 1)
        (reply,) = real.send_and_receive(messages(1, content))
        data = side.train.x.numel() + 8 * len(side.train)
        size = reply.content.metric_records["metrics"]["resident"]
        assert isinstance(size, int)
        found["actor"] = size - data
        real.close()
    return found


def server_costs(config: dict[str, Any]) -> Coefficients:
    """Of the ensemble and of what is done with it."""
    what, few, many = task(dataset(config)), 2, 10
    made = [Teacher(k, 400, torch.full((10,), 40), make_model(config["model"], what, k)) for k in range(many)]
    combine = build(config["combine"], "combine")
    small, large = Ensemble(made[:few], combine), Ensemble(made, combine)
    x, student = torch.rand(128, *what.shape, generator=stream(0, "x")), make_model(config["model"], what, 1)
    label = [cpu_seconds(partial(ensemble.label, x)) for ensemble in (small, large)]
    found = {"label": (label[1] - label[0]) / (many - few) / len(x)}
    synthesizer = build(config["synthesizer"], "synthesizer")
    steps = config["synthesizer"]["inversion"]["steps"]

    def invert(maker: Any, ensemble: Ensemble) -> float:
        return cpu_seconds(lambda: maker(ensemble, student, what, stream(0, "scale")), 1) / steps

    found["step"] = invert(synthesizer, large)
    joint_node = {**config["synthesizer"], "_target_": "fl_cmi.synthesis.synthesizers.Joint"}
    joint = build(joint_node, "synthesizer")
    found["joint"] = (invert(joint, large) - invert(joint, small)) / (many - few)
    pool, y = Pool(4096), torch.zeros(len(x), dtype=torch.int64)
    pool.add(x, y, small.label(x))
    found["pooled"] = pool.num_bytes / len(pool)
    lesson = build(config["distiller"], "distiller").begin(student)
    taught = [
        cpu_seconds(lambda e=e: lesson(e, pool, 6, (0.0, 0.1), stream(0, "lesson")), 1) / 6  # type: ignore[misc]
        for e in (small, large)
    ]
    found["distill"] = taught[0] - few * (taught[1] - taught[0]) / (many - few)
    return found


def plan(c: Coefficients, clients: int, sampled: int, actors: int, images: int = 600) -> dict[str, float]:
    """Seconds and bytes of a round of experiment=fmnist_oneshot with so many clients, of whom some are asked.

    Args:
        c: Coefficients.
        clients: N of the run.
        sampled: S of a round, and so K teachers.
        actors: A, cores at work for clients; the server has one.
        images: n of a client; 20 epochs of them, 250 batches of 10 steps, 2,500 lessons' steps, 128 images each.
    """
    local = sampled * 20 * images * c["train"] / actors
    carry = sampled * (c["carry"] + c["unpack"])
    # A batch is labelled when it enters the pool; those of the lessons are mixed, and labelled anew.
    label = (250 + 2500) * 128 * sampled * c["label"]
    return {
        "clients": max(local, carry),
        "synthesis": 250 * 10 * c["step"],
        "labels": label,
        "distillation": 2500 * c["distill"],
        "joint synthesis instead": 2500 * (c["step"] + sampled * c["joint"]),
        "start of the run": clients * c["idle"],
        "driver": clients * c["context"]
        + sampled * (c["held"] + c["teacher"] + c["generator"])
        + 24_576 * c["pooled"],
        "sent": 2 * sampled * c["update"],
    }


PLANS = ((10, 10, 8), (1_000, 100, 32), (100_000, 100, 32), (100_000, 1_000, 256), (100_000, 10_000, 1_024))
"""Clients of the run, clients of a round (and teachers), actors."""


def main() -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description="What a round costs by client and by teacher.")
    parser.add_argument("--json", type=Path, help="write the coefficients here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    LocalGrid(ClientApp(), 1)  # Flower's messages take their sender from a global that a grid sets
    config = compose_config(list(SETTINGS))
    found = memory_costs(config) | ray_costs(config) | client_side_costs(config) | server_costs(config)
    for name, unit in UNITS.items():
        value = byte_size(round(found[name])) if unit.startswith("bytes") else f"{1e3 * found[name]:.3g} ms"
        print(f"{name:10} {value:>10}  {unit.replace('s of', 'of', 1) if unit.startswith('s ') else unit}")
    print(f"\n{'':26}" + "".join(f"{f'N={n:,} K={k:,} A={a:,}':>31}" for n, k, a in PLANS))
    columns = [plan(found, *sizes) for sizes in PLANS]
    for row in columns[0]:
        sizes = row in ("driver", "sent")
        told = [byte_size(round(c[row])) if sizes else duration(round(c[row], 3)) for c in columns]
        print(f"{row:26}" + "".join(f"{text:>31}" for text in told))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
