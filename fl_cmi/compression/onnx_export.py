"""A model as an ONNX file, checked with onnxruntime; both are imported only when asked for."""

import importlib
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_cmi.compression.compressor import CompressionFailure, by_library, distance_of
from fl_cmi.files import whole
from fl_cmi.types import Shape

__all__ = ["answers", "save_onnx"]


def save_onnx(model: nn.Module, shape: Shape, path: Path, tolerance: float = 1e-3) -> float:
    """Write `model`, for any batch size, and compare onnxruntime's logits with PyTorch's on noise.

    An exported int8 graph keeps its quantization (QDQ), and onnxruntime runs it in int8. There an input at half a level
    may fall either way, so it needs a larger tolerance.

    Args:
        model: In eval mode, on the CPU.
        shape: Of an image.
        path: The file.
        tolerance: Largest distance allowed.

    Returns:
        The largest distance of logits, as a share of the largest of them.

    Raises:
        CompressionFailure: If that is more than `tolerance`, or the file cannot be made or run.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    with whole(path) as draft:
        told = by_library("compression.onnx: no ONNX file of this model")
        with torch.no_grad(), warnings.catch_warnings(), told:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (x,),
                draft,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
            distance = distance_of(answers(draft, x), model(x))
        if not distance <= tolerance:
            raise CompressionFailure(
                f"compression.onnx: onnxruntime's logits are {distance:.1e} of the largest away from PyTorch's,"
                f" more than {tolerance:g}"
            )
    return distance


def answers(path: Path, x: Tensor) -> Tensor:
    """Logits by onnxruntime."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x.cpu().numpy()})
    return torch.from_numpy(found)
