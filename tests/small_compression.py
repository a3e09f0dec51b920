"""Compressions of a small run, for the tests of the command and of the last step."""

from pathlib import Path
from typing import Any

import hydra

from fl_cmi.compose import config_folder, plain_config
from fl_cmi.compress import adopted, run

TINY = [
    "data=synthetic",
    "partition.alpha=1.0",
    "model.width=4",
    "local.epochs=1",
    "synthesizer.batch_size=16",
    "server_threads=1",
    "schedule={epochs:2,batches:1,steps:4,evaluate_every:1}",
    "backend=local",
]
QUICK = ["threads=1", "calibration.images=40", "calibrate.batches=2", "calibrate.batch_size=16"]
QUICK += ["synthesizer.inversion.steps=2", "synthesizer.batch_size=20"]
POOL = [override for override in QUICK if not override.startswith(("synthesizer", "calibration"))]


def config_of(*overrides: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return plain_config(adopted(hydra.compose("compress", list(overrides))))


def compress(folder: Path, *overrides: str) -> dict[str, Any]:
    return run(config_of(*overrides), folder)
