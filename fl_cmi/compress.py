"""`python -m fl_cmi.compress`: a trained model at int8 or at fewer bits, without data.

python -m fl_cmi.compress run_dir=outputs/.../...                               # images inverted from the model
python -m fl_cmi.compress run_dir=outputs/.../... calibration=pool kd=true compression.w=4
python -m fl_cmi.compress model=resnet8 model.checkpoint=model.safetensors compression=int8
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from fl_cmi.checkpoint.begin import is_begun
from fl_cmi.checks import check_integer, check_truth, pick_device
from fl_cmi.command import carry_out, command_line
from fl_cmi.compose import Config, build, dataset, make_model, task
from fl_cmi.compression.compressor import CompressionFailure, Compressor
from fl_cmi.compression.images import Source, Synthesized
from fl_cmi.compression.stage import FineTuning, Stage, alone
from fl_cmi.compression.statistics import check_recalibration, doubt, recalibrated
from fl_cmi.data.dataset import Dataset
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.ensemble import Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.memory import keep_freed_memory
from fl_cmi.models.checkpoint import load_weights
from fl_cmi.nodes import check_nodes
from fl_cmi.report.compression import print_compression
from fl_cmi.report.folder import save_pool, saving_on_failure
from fl_cmi.report.integrity import write_integrity
from fl_cmi.report.origin import Origin
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import provenance, write_json
from fl_cmi.synthesis.noise import Noise
from fl_cmi.types import ConfigError

__all__ = ["adopted", "main", "run"]

ADOPTED = ("data", "model", "augment")
"""What a finished run decides."""

PLACE = ("root", "download")
"""But for these keys of the data."""


def run(config: Config, run_dir: Path, command: str | None = None) -> dict[str, Any]:
    """One compression, from a plain configuration to a folder of results; returns what `summary.json` holds.

    Raises:
        ConfigError: For a user's mistake, before anything is written.
        FloatingPointError: If a loss is not finite; the images are kept.
        CompressionFailure: If a library fails; the images are kept.
    """
    start = time.perf_counter()
    if is_begun(run_dir):
        raise ConfigError("hydra.run.dir", run_dir, "a folder without a run; its summary would be lost")
    check(config)
    progress = Progress()
    torch.set_num_threads(config["threads"] or os.cpu_count() or 1)
    keep_freed_memory()
    seed, device = config["seed"], pick_device(config["device"])
    with progress.phase("setup"):
        data = dataset(config)
        what = task(data)
        node = {key: value for key, value in config["model"].items() if key != "checkpoint"}
        model = make_model(node, what, seed)
        load_weights(model, *checkpoint(config))
        teacher = alone(model.eval()).to(device)
        compressor = build(config["compression"], "compression")
        source = build(config["calibration"], "calibration")
        compressor.check(model)
        source.check(teacher)
        if config["recalibrate"]:
            check_recalibration(model, source)
        distiller = distiller_of(config, compressor, teacher)
        calibrate = build(config["calibrate"], "calibrate")
    with progress.phase("images"):
        pool = source(teacher, what, data.train, seed)
        given = accuracy(predict(model, data.test, device), data.test) if config["recalibrate"] else None
        if config["recalibrate"]:
            recalibrated(teacher, pool)
    origin = source.origin
    stage = Stage(
        compressor, calibrate, what, data.test, seed, device, fine_tuning(config, distiller, origin)
    )
    lasting = config["save_pool"] or isinstance(source, Synthesized)
    failures = FloatingPointError, CompressionFailure
    keeping = saving_on_failure(pool, run_dir, origin, failures) if lasting else nullcontext()
    with progress.phase("compression"), keeping, naming(source):
        measured = stage(teacher, pool, run_dir)
    before = measured["model"]["accuracy"] if given is None else given
    warning = (
        None if config["run_dir"] is None else doubt(config["run_dir"], model, before, config["recalibrate"])
    )
    summary = {
        **measured,
        "calibration": {
            **described(config, data, origin),
            "images": len(pool),
            "data_free": origin.data_free,
        },
        "recalibrated": None if given is None else {"accuracy_before": given},
        "warnings": [] if warning is None else [warning],
        "run_dir": config["run_dir"],
        "command": command,
        "device": str(device),
        "threads": torch.get_num_threads(),
        **provenance(config),
        "seconds": {**progress.seconds, "total": time.perf_counter() - start},
    }
    if config["save_pool"]:
        save_pool(pool, run_dir, origin)
    write_json(run_dir / "summary.json", summary)
    write_integrity(run_dir)
    return summary


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Inside, what calibration says of the images is told with the key and the value that chose them."""
    try:
        yield
    except ConfigError as error:
        if error.key != "calibration":
            raise
        raise ConfigError(*source.typed, error.allowed) from error


def check(config: Config) -> None:
    """Raise ConfigError for a value out of range."""
    check_integer(config, "seed", None)
    check_integer(config, "steps", 0)
    check_integer(config, "threads", 1, optional=True)
    check_truth(config, "kd", "recalibrate", "save_pool")
    if config["freeze_batch_norm"] not in (None, True, False):
        raise ConfigError("freeze_batch_norm", config["freeze_batch_norm"], "true, false or null")
    if not config["compression"]:
        raise ConfigError("compression", "none", "low_bit, w4a8 or int8")
    checkpoint(config)
    check_nodes(config)


def checkpoint(config: Config) -> tuple[str, str]:
    """The file of the trained weights, and the key that named it."""
    run_dir, own = config["run_dir"], config["model"].get("checkpoint")
    if (run_dir is None) == (own is None):
        why = "the folder of a finished simulation, or else model.checkpoint=...: exactly one of the two"
        raise ConfigError("run_dir", run_dir, why)
    if own is not None:
        return str(own), "model.checkpoint"
    return str(Path(str(run_dir)).expanduser() / "student.safetensors"), "run_dir"


def distiller_of(config: Config, compressor: Compressor, teacher: Ensemble) -> Distiller | None:
    """Of self-distillation, if it is wanted.

    Raises:
        ConfigError: The small model cannot be trained, or the distiller needs more than a model tells.
    """
    if not config["kd"]:
        return None
    if not compressor.trainable:
        name = type(compressor).__name__
        raise ConfigError("kd", "true", f"false, because compression={name} cannot be trained; low_bit can")
    distiller: Distiller = build(config["distiller"], "distiller")
    try:
        distiller.check(teacher, teacher.models[0])
    except ConfigError as error:
        why = f"one for a model of whose training nothing is known ({error})"
        raise ConfigError("distiller", "...", why) from error
    return distiller


def fine_tuning(config: Config, distiller: Distiller | None, origin: Origin) -> FineTuning | None:
    """Self-distillation on images of this origin; noise would spoil batch norm's statistics."""
    if distiller is None:
        return None
    freeze = config["freeze_batch_norm"]
    if freeze is None:
        freeze = origin.synthesizer == Noise.__name__
    return FineTuning(distiller, config["steps"], freeze)


def described(config: Config, data: Dataset, origin: Origin) -> dict[str, Any]:
    """Where the images come from, in a few words."""
    return {
        "source": str(config["calibration"]["_target_"]).rsplit(".", 1)[-1],
        "synthesizer": origin.synthesizer,
        "terms": list(origin.terms),
        "data": data.name,
    }


def adopted(config: DictConfig) -> DictConfig:
    """The configuration with data, model and augmentation of the finished run at `run_dir`.

    Where the data lie may be another place than for the run: `data.root` and `data.download`, if given, stay.

    Raises:
        ConfigError: There is no finished run.
    """
    if config.run_dir is None:
        return config
    path = Path(str(config.run_dir)).expanduser() / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config"]
        chosen = {key: found[key] for key in ADOPTED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "run_dir", config.run_dir, f"the folder of a finished simulation ({error})"
        ) from error
    own, place = config.model.checkpoint, {key: config.data[key] for key in PLACE if config.data[key]}
    with open_dict(config):
        for key, value in chosen.items():
            config[key] = OmegaConf.create(value)
        config.model.checkpoint = own
        config.data.update(place)
    return config


def prepared(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration completed by the finished run.

    Raises:
        ConfigError: For data or a model beside `run_dir`, which decides both, for the pool of a run without `run_dir`,
            or as `adopted`.
    """
    # The pool's path is made of run_dir, unless it is given.
    without = config.run_dir is None and config.model.checkpoint is not None and "path" in config.calibration
    if without and OmegaConf.is_interpolation(config.calibration, "path"):
        allowed = "a pool.safetensors, because without run_dir there is no run that brings one"
        raise ConfigError("calibration.path", "null", allowed)
    for override in overrides if config.run_dir is not None else ():
        key, _, value = override.lstrip("+~").partition("=")
        free = ("model.checkpoint", *(f"data.{name}" for name in PLACE))
        if key.split(".")[0] in ADOPTED and key not in free:
            raise ConfigError(key, value, "nothing, because run_dir brings data and model")
    return adopted(config)


def job(config: DictConfig) -> float:
    """Hydra's task function."""
    return carry_out(config, "compress", run, print_compression, CompressionFailure, prepare=prepared)


def main() -> None:
    """The command line; exit codes as in `fl_cmi.command.carry_out`."""
    command_line("compress", job)


if __name__ == "__main__":
    main()
