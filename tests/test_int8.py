"""int8 that is executed; needs the extra `compression`, which says so where it is missing."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import CLASSES, SHAPE, TASK, network, pixels, rng
from torch import nn

from fl_cmi.compression import int8
from fl_cmi.compression.compressor import CompressionFailure
from fl_cmi.compression.int8 import Executable, Int8, load_int8, require
from fl_cmi.compression.onnx_export import save_onnx
from fl_cmi.models.convnet import ConvNet
from fl_cmi.models.lenet import LeNet
from fl_cmi.models.resnet import ResNet
from fl_cmi.models.wide_resnet import WideResNet
from fl_cmi.types import ConfigError

BATCHES = [pixels(8, seed=1), pixels(8, seed=2)]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"compression=int8: .*fl_cmi\[compression\].*torchao"):
        Int8().check(network())


def test_a_missing_onnx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"compression\.onnx=true: .*fl_cmi\[compression\].*onnxruntime"):
        require("onnxruntime", "compression.onnx=true")


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao")


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        partial(ConvNet, width=8),
        pytest.param(partial(ResNet, depth=8), marks=pytest.mark.slow),
        pytest.param(LeNet, marks=pytest.mark.slow),
    ],
)
def test_int8_is_executed_saved_and_reloaded(make: type[nn.Module], tmp_path: Path) -> None:
    model = make(SHAPE, CLASSES, TASK.mean, TASK.std).eval()
    compressor, x = Int8(), pixels(16, seed=7)
    small = compressor(model, BATCHES)
    predict = compressor.predictor(small)
    with torch.no_grad():
        logits, expected = predict(x), model(x)
    assert 0 < (logits - expected).abs().max() < 0.1 * expected.abs().max()
    number = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    told = compressor.describe(small)
    assert (told["int8_kernels"], told["layers"]) == (number, number)
    (path,) = compressor.save(small, tmp_path).files
    again = Executable(load_int8(path))
    assert torch.equal(again(x), logits)
    assert again(x[:3]).shape == (3, CLASSES), "any batch size"


def pre_activated() -> nn.Module:
    """Whose first batch norm follows a convolution that the shortcut reads too."""
    model, draws = WideResNet(SHAPE, CLASSES, TASK.mean, TASK.std, depth=10), rng(1)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            for value in (norm.weight, norm.running_var):
                value.uniform_(0.5, 2, generator=draws)
            for value in (norm.bias, norm.running_mean):
                value.uniform_(-1, 1, generator=draws)
    return model.eval()


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_batch_norm_is_not_folded_into_what_others_read(tmp_path: Path) -> None:
    model, compressor, x = pre_activated(), Int8(), pixels(16, seed=7)
    small = compressor(model, BATCHES)
    with torch.no_grad():
        logits, expected = compressor.predictor(small)(x), model(x)
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
    (path,) = compressor.save(small, tmp_path).files
    assert torch.equal(Executable(load_int8(path))(x), logits)


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_answers_otherwise_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "apart", lambda graph: graph)  # as torchao would have it
    with pytest.raises(CompressionFailure, match="before anything is quantized its logits are off by"):
        Int8()(pre_activated(), BATCHES)


FRESH = """
import sys, pathlib, torch
from fl_cmi.compression.int8 import Executable, load_int8
predict = Executable(load_int8(pathlib.Path(sys.argv[1])))
print(predict.kernels((1, 8, 8)))
"""


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_a_program_that_only_loads_has_the_kernels(tmp_path: Path) -> None:
    """Kernels are put in by passes that an import registers, and compressing has imported much."""
    compressor = Int8()
    (path,) = compressor.save(compressor(network().eval(), BATCHES), tmp_path).files
    said = subprocess.run(
        [sys.executable, "-c", FRESH, str(path)], check=True, capture_output=True, text=True
    )
    assert said.stdout.split() == ["4"]
    assert "register_constant" not in said.stderr


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_a_machine_without_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executable, "kernels", lambda self, shape: 0)
    with pytest.raises(CompressionFailure, match="no int8 of this model .*no int8 kernel for any"):
        Int8()(network().eval(), BATCHES)


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["torch.export.export", "torch.export.save"])
def test_what_a_library_raises_is_a_failure(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("odd\ndetails")

    compressor = Int8()
    if where == "torch.export.save":
        small = compressor(network().eval(), BATCHES)
        monkeypatch.setattr(where, fails)
        with pytest.raises(CompressionFailure, match=r"compression=int8: no file of this model \(odd\)$"):
            compressor.save(small, tmp_path)
        assert list(tmp_path.iterdir()) == []
    else:
        monkeypatch.setattr(where, fails)
        with pytest.raises(CompressionFailure, match=r"compression=int8: no int8 of this model \(odd\)$"):
            compressor(network().eval(), BATCHES)


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_the_file_is_smaller(tmp_path: Path) -> None:
    model = ConvNet(SHAPE, CLASSES, TASK.mean, TASK.std, width=48).eval()
    save_file(model.state_dict(), tmp_path / "float.safetensors")
    compressor = Int8()
    (path,) = compressor.save(compressor(model, BATCHES), tmp_path).files
    assert (tmp_path / "float.safetensors").stat().st_size / path.stat().st_size > 3.5


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_int8_needs_images() -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        Int8()(network().eval(), [])


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_int8_needs_images_that_differ() -> None:
    with pytest.raises(ConfigError, match=r"input of convs\.0 is 2 everywhere"):
        Int8()(network().eval(), [torch.ones(4, *SHAPE)])


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_large_batches_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_cmi.compression.int8.LARGEST_BATCH", 5)
    model, whole, x = network().eval(), torch.cat(BATCHES), pixels(5, seed=7)
    small = Int8()(model, [whole])
    assert torch.equal(small(x), Int8()(model, whole.split(5))(x))


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ConfigError, match=r"int8\.pt2"):
        load_int8(tmp_path / "text.pt2")


@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_same_logits(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model = network(width=8).eval()
    assert save_onnx(model, SHAPE, tmp_path / "float.onnx") < 1e-4
    assert (tmp_path / "float.onnx").stat().st_size > 1000


@pytest.mark.usefixtures("torchao")
@pytest.mark.filterwarnings("ignore")
def test_int8_as_onnx_keeps_its_integers(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model = ConvNet(SHAPE, CLASSES, TASK.mean, TASK.std, width=32).eval()
    small = Int8(onnx=True)(model, BATCHES)
    assert save_onnx(small, SHAPE, tmp_path / "int8.onnx", tolerance=0.1) < 0.1
    with pytest.raises(CompressionFailure, match="away from PyTorch's, more than -1"):
        save_onnx(small, SHAPE, tmp_path / "strict.onnx", tolerance=-1.0)
    assert save_onnx(model, SHAPE, tmp_path / "float.onnx") < 1e-4
    assert (tmp_path / "float.onnx").stat().st_size > 2.5 * (tmp_path / "int8.onnx").stat().st_size


class Spy:
    """Tells when it is unpickled."""

    def __init__(self, told: Path) -> None:
        self.told = told

    def __reduce__(self) -> tuple[Any, ...]:
        return self.told.touch, ()


def graph_with(old: str, new: str) -> Callable[[dict[str, bytes], bytes], None]:
    def change(files: dict[str, bytes], spy: bytes) -> None:
        graph = files["archive/models/model.json"]
        assert old.encode() in graph
        files["archive/models/model.json"] = graph.replace(old.encode(), new.encode(), 1)

    return change


def pickled_inputs(files: dict[str, bytes], spy: bytes) -> None:
    files["archive/data/sample_inputs/model.pt"] = spy


def legacy_weights(files: dict[str, bytes], spy: bytes) -> None:
    files["archive/data/weights/model.pt"] = spy


def pickled_tensor(kind: str) -> Callable[[dict[str, bytes], bytes], None]:
    def change(files: dict[str, bytes], spy: bytes) -> None:
        name = f"archive/data/{kind}/model_{kind}_config.json"
        config = json.loads(files[name])
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        files[name] = json.dumps(config).encode()
        files[f"archive/data/{kind}/{first['path_name']}"] = spy

    return change


def opaque(files: dict[str, bytes], spy: bytes) -> None:
    name = "archive/data/constants/model_constants_config.json"
    config = json.loads(files[name])
    config["config"]["spy"] = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    files[name] = json.dumps(config).encode()
    files["archive/data/constants/opaque_obj_0"] = spy


SPOILED: dict[str, tuple[Callable[[dict[str, bytes], bytes], None], str]] = {
    "inputs": (pickled_inputs, "pickled example inputs"),
    "weights": (pickled_tensor("weights"), "a pickle, 'weight_0'"),
    "constants": (pickled_tensor("constants"), "a pickle, 'tensor_0'"),
    "legacy": (legacy_weights, "model.pt"),
    "opaque": (opaque, "opaque_obj_0"),
    "size": (graph_with("Symbol(", "__import__('os').getcwd("), "as expr_str"),
    "operator": (graph_with("torch.ops.aten.relu_.default", "torch.serialization.os.getcwd"), "as target"),
    "guard": (graph_with('"guards_code": []', '"guards_code": ["print(1)"]'), "guards_code"),
    "name": (graph_with("p_classifier_bias", "p\\nprint(1)"), "print"),
    "cut": (lambda files, spy: files.pop("archive/models/model.json") and None, "no graph"),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The entries of a file as it is written."""
    pytest.importorskip("torchao")
    compressor = Int8()
    (path,) = compressor.save(compressor(network().eval(), BATCHES), tmp_path_factory.mktemp("honest")).files
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoiled", SPOILED)
def test_files_that_would_execute_something_are_refused(
    spoiled: str, honest: dict[str, bytes], tmp_path: Path
) -> None:
    path, told, spy = tmp_path / "int8.pt2", tmp_path / "told", io.BytesIO()
    torch.save((Spy(told),), spy)
    files = dict(honest)
    SPOILED[spoiled][0](files, spy.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(ConfigError, match=SPOILED[spoiled][1]):
        load_int8(path)
    assert not told.exists()


def test_a_file_tells_nothing_of_the_machine(honest: dict[str, bytes]) -> None:
    assert b"/" not in honest["archive/models/model.json"]
    assert honest["archive/data/sample_inputs/model.pt"] == b""
