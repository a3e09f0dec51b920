"""How long runs may take, from what their configurations say and a second of training on this machine."""

import functools
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from fl_cmi.checks import pick_device
from fl_cmi.compose import build, dataset, make_model, task
from fl_cmi.report.units import duration
from simulations.sweep import Cell

__all__ = ["estimate"]

OVERHEAD = 30.0
"""Seconds of a run beside training, synthesis and distillation: starting, measuring, drawing."""

TEACHERS = ("data", "partition", "num_clients", "held_out", "seed", "teachers", "local", "share_label_counts")


def estimate(cells: Sequence[Cell], jobs: int) -> str:
    """A line: the number of runs, and hours if all of them have to be run; teachers that are shared count once."""
    seconds, unknown, trained = 0.0, 0, set[str]()
    for cell in cells:
        try:
            config = cell.config()
            local, server = local_seconds(config), server_seconds(config)
        except Exception:  # whatever is wrong with it, the run itself will tell
            unknown += 1
            continue
        teachers = json.dumps([config[key] for key in TEACHERS])
        first_known = teachers in trained and config["strategy"].get("client") is None
        trained.add(teachers)
        seconds += OVERHEAD + server + local * (config["rounds"] - first_known)
    unsure = f", {unknown} of which nothing is known" if unknown else ""
    return f"{len(cells)} runs{unsure}: about {duration(seconds / jobs)} with {jobs} side by side"


def server_seconds(config: dict[str, Any]) -> float:
    """Of all rounds, where there is a budget; a sixth of the time a thread waits, for others or for the machine."""
    budget = config["strategy"].get("budget_s") or 0.0
    threads = config["server_threads"] or 1 if config["budget_clock"] == "cpu" else 1
    return 1.2 * config["rounds"] * budget / threads


def local_seconds(config: dict[str, Any]) -> float:
    """Of the clients' training in a round, one after the other or on all threads of a run by Ray."""
    local, number = config["local"], len(dataset(config).train) - config["held_out"]
    share = (config["clients_per_round"] or config["num_clients"]) / config["num_clients"]
    images = (
        number * local["epochs"]
        if local["epochs"]
        else local["steps"] * local["batch_size"] * config["num_clients"]
    )
    node = config["teachers"]["architectures"][0]
    each = seconds_an_image(json.dumps([node, config["data"], local["optimizer"], local["batch_size"]]))
    side_by_side = 1 if "local" in config["backend"]["_target_"] else config["server_threads"] or 1
    return share * images * each / side_by_side


@functools.cache
def seconds_an_image(what: str) -> float:
    """Of training on one thread, measured in a few steps."""
    node, data, optimizer, batch_size = json.loads(what)
    images = dataset({"data": data})
    device, before = pick_device("auto"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = make_model(node, task(images), 0).to(device).train()
        steps = build(optimizer, "local.optimizer")(model.parameters())
        x = images.train.pixels(slice(0, batch_size)).to(device)
        y = images.train.y[:batch_size].to(device)
        for number in range(4):
            if number == 1:  # the first one also warms up
                start = time.perf_counter()
            steps.zero_grad()
            F.cross_entropy(model(x), y).backward()
            steps.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / 3 / len(x)
    finally:
        torch.set_num_threads(before)
