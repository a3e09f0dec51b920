"""Compress one model: images, calibration, fine-tuning, and what came of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.compression.calibration import Calibration
from fl_cmi.compression.compressor import Compressor
from fl_cmi.compression.finetune import fine_tune
from fl_cmi.compression.latency import latency_ms
from fl_cmi.compression.onnx_export import answers
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.ensemble import Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.files import settle
from fl_cmi.rng import stream
from fl_cmi.types import Images, Task, Teacher

__all__ = ["FineTuning", "Stage", "alone"]


def alone(model: nn.Module) -> Ensemble:
    """A model as its own teacher: an ensemble of one, of whose training images nothing is known."""
    return Ensemble([Teacher(0, 1, None, model)])


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder to write into: at the end its files are in `folder`; if anything fails, none is."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".compressed", dir=folder) as name:
        yield Path(name)
        for draft in sorted(Path(name).iterdir()):
            settle(draft, folder / draft.name)


@dataclass(frozen=True)
class FineTuning:
    """Self-distillation after calibration.

    Args:
        distiller: Loss, optimizer, rates, mixup.
        steps: Steps.
        freeze_batch_norm: Whether batch norm keeps its running statistics.
    """

    distiller: Distiller
    steps: int
    freeze_batch_norm: bool


@dataclass(frozen=True)
class Stage:
    """The last stage of a run: from a trained model to a small one, with images of any origin.

    Args:
        compressor: Makes the small model.
        calibration: Shows it images.
        task: What the model fits.
        test: Test images, for reporting only.
        seed: Of the run.
        device: Where to compute; latency is that of the CPU.
        tuning: Or None for calibration alone.
        measure_latency: Whether calls are timed.
    """

    compressor: Compressor
    calibration: Calibration
    task: Task
    test: Images
    seed: int
    device: torch.device
    tuning: FineTuning | None = None
    measure_latency: bool = True

    def __call__(self, teacher: Ensemble, pool: Pool, folder: Path) -> dict[str, Any]:
        """Compress the one model of `teacher`, write it into `folder`, and measure what was written, read back.

        Returns:
            `model`, `student`, `compression`, `drop` (accuracy lost) and `ratio` (of file sizes), for the summary.

        Raises:
            ConfigError: Of compressor, calibration and file; like any other exception, it leaves no file behind.
            CompressionFailure: Of the compressor.
            FloatingPointError: If the loss of fine-tuning is not finite.
        """
        model = teacher.models[0].eval()
        images = self.calibration.images(pool, self.stream("calibration"), self.device)
        small = self.compressor(model, images)
        calibrated, loss = None, None
        if self.tuning is not None:
            how, calibrated = self.tuning, self.accuracy(self.compressor.predictor(small))
            rng = self.stream("fine-tuning")
            loss = fine_tune(small, teacher, pool, how.distiller, how.steps, how.freeze_batch_norm, rng)
        with written(folder) as draft:
            saved = self.compressor.save(small, draft)
            first = saved.files[0]
            predict = self.compressor.predictor(self.compressor.load(first, model))
            taken, after = first.stat().st_size, self.accuracy(predict)
            onnx = [path for path in saved.files if path.suffix == ".onnx"]
            executed = {"onnx_accuracy": self.accuracy(partial(answers, onnx[0]))} if onnx else {}
        before = self.accuracy(model)
        full = len(to_bytes({name: value.cpu().contiguous() for name, value in model.state_dict().items()}))
        return {
            "model": {
                "architecture": type(model).__name__,
                "parameters": sum(value.numel() for value in model.parameters()),
                "accuracy": before,
                "bytes": full,
                "latency_ms": self.latency(model.cpu()),
            },
            "student": {
                "accuracy_calibrated": after if calibrated is None else calibrated,
                "accuracy_last": after,
                "files": [path.name for path in saved.files],
                "bytes": taken,
                "latency_ms": self.latency(predict.cpu() if isinstance(predict, nn.Module) else predict),
            },
            "compression": {
                **self.compressor.describe(small),
                **saved.measured,
                **executed,
                "executed": self.compressor.executed,
                "kd": None if self.tuning is None else {"steps": self.tuning.steps, "loss": loss},
            },
            "drop": before - after,
            "ratio": full / taken,
        }

    def stream(self, what: str) -> torch.Generator:
        """A random stream of this stage."""
        return stream(self.seed, "compression", what)

    def accuracy(self, model: Callable[[Tensor], Tensor]) -> float:
        """On the test images."""
        return accuracy(predict(model, self.test, self.device), self.test)

    def latency(self, model: Callable[[Tensor], Tensor]) -> dict[str, float] | None:
        """Milliseconds by batch size."""
        return latency_ms(model, self.task.shape) if self.measure_latency else None
