"""Batch norm's statistics of a model that was averaged: of several clients' ones, and perhaps of no use."""

import json
from pathlib import Path

import torch
from torch import nn

from fl_cmi.bank import Pool
from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.ensemble import Ensemble
from fl_cmi.federated.buffers import recalibrate
from fl_cmi.types import ConfigError

__all__ = ["check_recalibration", "doubt", "recalibrated"]

TRAINED = ("FedCmi", "FedDF")
"""Strategies whose global model is trained by the server after any averaging, its statistics included."""


def check_recalibration(model: nn.Module) -> None:
    """Raise ConfigError where there is nothing to estimate."""
    if not batch_norm_layers(model):
        name = type(model).__name__
        raise ConfigError("recalibrate", "true", f"false, because {name} has no batch norm")


def recalibrated(teacher: Ensemble, pool: Pool, batch_size: int = 256) -> None:
    """Estimate the statistics of the one model anew, on the images as they are, and label these by what it says then.

    Args:
        teacher: Is changed.
        pool: At least two images; their labels are replaced.
        batch_size: Images whose own statistics are averaged.
    """
    every = torch.arange(len(pool))
    batches = [slots for slots in every.split(batch_size) if len(slots) > 1]
    recalibrate(teacher.models[0], [pool.get(slots).x for slots in batches])
    for slots in every.split(batch_size):
        pool.relabel(slots, teacher.label(pool.get(slots).x.to(teacher.num_examples_K.device)))


def doubt(run_dir: str, model: nn.Module) -> str | None:
    """Why the statistics of a finished run's global model may be wrong, if they may: for a warning."""
    summary = json.loads((Path(run_dir).expanduser() / "summary.json").read_text(encoding="utf-8"))
    config = summary.get("config", {})
    buffers = str((config.get("buffers") or {}).get("_target_", "")).rsplit(".", 1)[-1]
    alone = (config.get("clients_per_round") or config.get("num_clients")) == 1
    strategy = summary.get("strategy", TRAINED[0])
    if strategy in TRAINED or buffers == "Recalibrate" or alone or not batch_norm_layers(model):
        return None
    return (
        f"{strategy} averages: batch norm's statistics of this model are those of no training; what is inverted from"
        " them may suffer, and so may what is calibrated (recalibrate=true, with calibration=pool or real, helps)"
    )
