"""int8 that the machine computes with: PyTorch's export path (PT2E) with torchao's quantizer for x86.

torchao is imported only here, when it is asked for: `pip install 'fl_cmi[compression]'`.
"""

import copy
import importlib
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import GraphModule

from fl_cmi.compression import archive
from fl_cmi.compression.calibration import measure_ranges, no_images
from fl_cmi.compression.compressor import CompressionFailure, Written, by_library, distance_of
from fl_cmi.compression.onnx_export import save_onnx
from fl_cmi.files import whole
from fl_cmi.types import ConfigError, Shape

__all__ = ["Executable", "Int8", "load_int8"]

FAILED = "compression=int8: no int8 of this model"

LAYERS = (
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv2d.padding,
    torch.ops.aten.linear.default,
)

CLOSE = 1e-3
"""How far, as a share of the largest, logits may move where batch norm is folded."""

LARGEST_BATCH = 4096
"""Of the exported graph; larger batches are split."""


class Int8:
    """8-bit weights, symmetric per channel, and 8-bit activations, per tensor; batch norm is folded before.

    Ranges are found by torchao's observers, by its histogram for activations, and not by the mean of the samples'
    extremes. Layers without an int8 kernel stay in floating point.

    Args:
        onnx: Whether the int8 graph is written as `int8.onnx` too, and checked with onnxruntime.
    """

    executed = True
    trainable = False

    def __init__(self, onnx: bool = False) -> None:
        self.onnx = onnx

    def check(self, model: nn.Module) -> None:
        """The extra must be installed."""
        needed = ("torchao", "onnx", "onnxscript", "onnxruntime") if self.onnx else ("torchao",)
        for name in needed:
            require(name, "compression.onnx=true" if name != "torchao" else "compression=int8")

    def __call__(
        self, model: nn.Module, batches: Iterable[Float[Tensor, "_ channels height width"]]
    ) -> nn.Module:
        """Export, observe, convert.

        Raises:
            ConfigError: As `measure_ranges`: images that show nothing would leave a ruined model.
            CompressionFailure: A library fails, makes another network of it, or has no int8 kernel for any layer.
        """
        self.check(model)
        pieces = (piece for x in batches for piece in x.split(LARGEST_BATCH) if len(piece))
        first = next(pieces, None)
        if first is None:
            raise no_images()
        with torch.no_grad(), quiet():
            with by_library(FAILED):
                pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
                quantizer = x86().X86InductorQuantizer()
                quantizer.set_global(x86().get_default_x86_inductor_quantization_config())
                # A batch of 1 would be taken for a constant.
                example = first[:1].cpu().repeat(2, 1, 1, 1)
                plain = copy.deepcopy(model).cpu().eval()
                graph = exported(plain, example).module()
                observed = pt2e.prepare_pt2e(apart(graph), quantizer)

            def shown() -> Iterator[Tensor]:
                check_answers(observed(first.cpu()), plain(first.cpu()))
                yield first
                for x in pieces:
                    observed(x.cpu())
                    yield x

            measure_ranges(model, shown())
            with by_library(FAILED):
                small = pruned(pt2e.convert_pt2e(observed))
        if not Executable(small).kernels(image_shape(small)):
            raise CompressionFailure(
                f"{FAILED} (oneDNN has no int8 kernel for any of its layers on this machine)"
            )
        return small

    def predictor(self, small: nn.Module) -> "Executable":
        """The graph with oneDNN's int8 kernels."""
        return Executable(small)

    def save(self, small: nn.Module, folder: Path) -> Written:
        """`int8.pt2` and, where wanted, `int8.onnx`, with `onnx_distance` as `save_onnx` returns it."""
        path, shape = folder / "int8.pt2", image_shape(small)
        save_int8(small, shape, path)
        if not self.onnx:
            return Written([path])
        distance = save_onnx(small, shape, folder / "int8.onnx", tolerance=0.1)
        return Written([path, folder / "int8.onnx"], {"onnx_distance": distance})

    def load(self, path: Path, model: nn.Module) -> nn.Module:
        """The graph, whatever the model."""
        return load_int8(path)

    def describe(self, small: nn.Module) -> dict[str, Any]:
        """8 bits, how many layers compute with them, and of how many."""
        assert isinstance(small, GraphModule)
        number = sum(node.target in LAYERS for node in small.graph.nodes)
        kernels = Executable(small).kernels(image_shape(small))
        return {"w": 8, "a": 8, "ends": 8, "int8_kernels": kernels, "layers": number}


def x86() -> Any:
    """The quantizer of torchao. Its import also registers the passes that put int8 kernels into a graph."""
    return importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")


def require(name: str, what: str) -> None:
    """Import a module of the extra.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        with quiet():
            importlib.import_module(name)
    except ImportError as error:
        key, _, value = what.partition("=")
        reason = (
            f"another one, or pip install 'fl_cmi[compression]' first, because {name} is missing ({error})"
        )
        raise ConfigError(key, value, reason) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torchao and the exporters warn of, and log as a warning: their own plans."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of a model, for any batch size."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))


def apart(graph: GraphModule) -> GraphModule:
    """With an alias between a convolution and its batch norm wherever others read the convolution as well.

    torchao (0.18) folds batch norm into the convolution before it, whoever else reads that: in a pre-activated network
    the shortcut around the first block, which would get what is meant for the block alone.
    """
    for norm in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        before = norm.args[0]
        if before.target in LAYERS and len(before.users) > 1:
            with graph.graph.inserting_before(norm):
                alias = graph.graph.call_function(torch.ops.aten.alias.default, (before,))
            alias.meta["val"] = before.meta["val"]
            norm.replace_input_with(before, alias)
    graph.recompile()
    return graph


def check_answers(answers: Tensor, expected: Tensor) -> None:
    """Raise CompressionFailure where a graph that only waits to be quantized answers other than its model."""
    distance = distance_of(answers, expected)
    if distance > CLOSE:
        why = f"before anything is quantized its logits are off by {distance:.1e} of the largest"
        raise CompressionFailure(f"{FAILED} ({why})")


def pruned(graph: GraphModule) -> GraphModule:
    """Without the weights in floating point that the graph no longer reads."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
    return graph


def image_shape(graph: nn.Module) -> Shape:
    """Of the images that an exported graph was made for."""
    assert isinstance(graph, GraphModule)
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    channels, height, width = placeholder.meta["val"].shape[1:]
    return int(channels), int(height), int(width)


def save_int8(graph: nn.Module, shape: Shape, path: Path) -> None:
    """Write an exported graph, deflated, without example images and machine paths; `torch.export.load` reads it."""
    with torch.no_grad(), quiet(), by_library("compression=int8: no file of this model"):
        program = exported(graph, torch.zeros(2, *shape))
        program._example_inputs = None  # they would be pickled
        raw = io.BytesIO()
        torch.export.save(program, raw)
    with whole(path) as draft, zipfile.ZipFile(raw) as stored:
        archive.pack(archive.unpack(stored), draft)


def load_int8(path: Path) -> nn.Module:
    """The graph that `Int8` wrote; `Executable` runs it. Nothing in the file is unpickled or executed.

    Raises:
        ConfigError: It is another file, a damaged one, or one that would have to be trusted.
    """
    require("torchao", "compression=int8")  # defines the operators
    try:
        with quiet(), zipfile.ZipFile(path) as stored:
            return torch.export.load(archive.checked(archive.unpack(stored))).module()
    except Exception as error:  # PyTorch has many for what does not fit together
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError("checkpoint", path, f"an int8.pt2 of compression=int8 ({said})") from error


class Executable:
    """A quantized graph with its pairs of (de)quantization and layer replaced by oneDNN's int8 kernels.

    The replacement holds for one batch size, so it is done for each when it is first met.

    Args:
        graph: Of `Int8`, or loaded.
    """

    def __init__(self, graph: nn.Module) -> None:
        self.graph = graph
        self.lowered: dict[int, Callable[[Tensor], Tensor]] = {}

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits, computed on the CPU."""
        x = x.cpu()
        if len(x) not in self.lowered:
            self.lowered[len(x)] = self.lower(x)
        return self.lowered[len(x)](x)

    def lower(self, x: Tensor) -> GraphModule:
        """The graph of one batch size."""
        with torch.no_grad(), quiet(), by_library(FAILED):
            x86()
            lowering = importlib.import_module("torchao.quantization.pt2e.lowering")
            lowered: GraphModule = lowering.lower_pt2e_quantized_to_x86(self.graph, (x,))
        # The int8 kernels give channels-last maps, which a view may not fit.
        for node in lowered.graph.nodes:
            if node.target == torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        lowered.recompile()
        return lowered

    def kernels(self, shape: Shape) -> int:
        """Layers that run in int8."""
        graph = self.lower(torch.zeros(2, *shape)).graph
        return sum("onednn" in str(node.target) for node in graph.nodes)
