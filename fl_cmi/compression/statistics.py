"""Batch norm's statistics of a model that was averaged: of several clients' ones, and perhaps of no use."""

import json
from pathlib import Path

import torch
from torch import nn

from fl_cmi.bank import Pool
from fl_cmi.batchnorm import batch_norm_layers, recalibrate
from fl_cmi.compression.images import Source, Synthesized
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import ConfigError

__all__ = ["check_recalibration", "doubt", "recalibrated"]

TRAINED = ("FedCmi", "FedDF")
"""Strategies whose global model is trained by the server after any averaging, its statistics included."""


SAME = 0.005
"""Difference of test accuracies that another processor may make."""


def check_recalibration(model: nn.Module, source: Source) -> None:
    """Raise ConfigError where there is nothing to estimate, or only from images made after what is to be replaced."""
    if isinstance(source, Synthesized):
        why = "false, or calibration=pool or real: images inverted from the model follow the statistics that it has"
        raise ConfigError("recalibrate", "true", why)
    if not batch_norm_layers(model):
        name = type(model).__name__
        raise ConfigError("recalibrate", "true", f"false, because {name} has no batch norm")


def recalibrated(teacher: Ensemble, pool: Pool, batch_size: int = 256) -> None:
    """Estimate the statistics of the one model anew, on the images as they are, and label these by what it says then.

    Args:
        teacher: Is changed.
        pool: At least two images; their labels are replaced.
        batch_size: Images whose own statistics are averaged, about: batches are equal, because each counts as much.
    """
    batches = torch.arange(len(pool)).tensor_split(max(1, round(len(pool) / batch_size)))
    recalibrate(teacher.models[0], [pool.get(slots).x for slots in batches])
    pool.relabel_all(teacher.label, teacher.num_examples_K.device)


def doubt(run_dir: str, model: nn.Module, found: float, anew: bool) -> str | None:
    """Why a finished run's global model may not be worth compressing as it is, if so: for a warning.

    Args:
        run_dir: The run's folder.
        model: Its `student.safetensors`.
        found: The test accuracy of that, in [0, 1].
        anew: Whether statistics of batch norm are estimated anew.
    """
    summary = json.loads((Path(run_dir).expanduser() / "summary.json").read_text(encoding="utf-8"))
    config = summary.get("config", {})
    buffers = str((config.get("buffers") or {}).get("_target_", "")).rsplit(".", 1)[-1]
    alone = (config.get("clients_per_round") or config.get("num_clients")) == 1
    strategy = summary.get("strategy", TRAINED[0])
    told = summary.get("student", {}).get("accuracy_last")
    if told is not None and abs(found - told) > SAME:
        also = f" with buffers={buffers}" if buffers else ""
        return (
            f"this model alone has {100 * found:.2f} %, its run {100 * told:.2f} %: there, by {strategy}{also}, others"
            " predict (clients with what they keep, or a vote), and their accuracy is not compressed here"
        )
    if anew or strategy in TRAINED or buffers == "Recalibrate" or alone or not batch_norm_layers(model):
        return None
    return (
        f"{strategy} averages: batch norm's statistics of this model are those of no training; what is inverted from"
        " them may suffer, and so may what is calibrated (recalibrate=true, with calibration=pool or real, helps)"
    )
