"""A model as an ONNX file, checked with onnxruntime; both are imported only when asked for."""

import importlib
import warnings
from pathlib import Path

import torch
from torch import nn

from fl_cmi.types import Shape

__all__ = ["save_onnx"]

AGREEMENT = 1e-3
"""Largest distance of logits from PyTorch's, as a share of the largest of them."""


def save_onnx(model: nn.Module, shape: Shape, path: Path) -> float:
    """Write `model` in eval mode, for any batch size, and compare onnxruntime's logits with PyTorch's on noise.

    An exported int8 graph keeps its quantization (QDQ), and onnxruntime runs it in int8.

    Returns:
        The largest distance of logits, as a share of the largest of them.

    Raises:
        RuntimeError: If that is more than 1e-3; in int8 an input at half a level may fall either way, so there it is
            only returned.
    """
    runtime = importlib.import_module("onnxruntime")
    batch = torch.export.Dim("batch", min=1, max=4096)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (x,),
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
        expected = model(x)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x.numpy()})
    distance = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
    quantized = any(
        "dequantize" in str(node.target) for node in getattr(model, "graph", torch.fx.Graph()).nodes
    )
    if distance > AGREEMENT and not quantized:
        raise RuntimeError(f"onnxruntime's logits are {distance:.1e} away from PyTorch's")
    return distance
