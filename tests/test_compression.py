"""From a trained model to one of few bits: ranges, layers, files, images and fine-tuning."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import reference_compression as reference
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import CLASSES, SHAPE, TASK, images, inversion, network, pixels, rng
from torch import Tensor, nn

from fl_cmi.augment import Chain, CropFlip, Cutout
from fl_cmi.bank import Pool
from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.compression.calibration import Calibration, layers, measure_ranges
from fl_cmi.compression.finetune import fine_tune
from fl_cmi.compression.images import Real, Saved, Source, Synthesized
from fl_cmi.compression.latency import latency_ms
from fl_cmi.compression.low_bit import LowBit
from fl_cmi.compression.packing import FORMAT, load, num_bytes, pack, save, unpack
from fl_cmi.compression.quantizer import fake_quantize
from fl_cmi.compression.simulated import fixed_statistics, quantized_layers
from fl_cmi.compression.stage import alone
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.layers import LayerMatch
from fl_cmi.distillation.loss import Answers
from fl_cmi.distillation.sum import Sum
from fl_cmi.models.lenet import LeNet
from fl_cmi.models.resnet import ResNet
from fl_cmi.models.wide_resnet import WideResNet
from fl_cmi.synthesis.noise import Noise
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.batch_norm_kl import BatchNormKL
from fl_cmi.types import ConfigError

BATCHES = [pixels(6, seed=1), pixels(4, seed=2)]


def wide(seed: int = 0) -> nn.Module:
    return network(seed, width=4).eval()


def pool_of(x: Tensor) -> Pool:
    pool = Pool()
    pool.add(x, torch.arange(len(x)) % CLASSES, torch.zeros(len(x), CLASSES))
    return pool


def test_a_range_is_the_mean_of_the_samples_extremes() -> None:
    model = wide()
    ranges = measure_ranges(model, BATCHES)
    assert list(ranges) == ["convs.0", "convs.1", "convs.2", "classifier"]
    normalized = [(x - 0.5) / 0.25 for x in BATCHES]
    low, high = reference.mean_range(normalized)
    assert (ranges["convs.0"].low, ranges["convs.0"].high) == pytest.approx((low, high), abs=1e-5)
    assert high < max(x.max().item() for x in normalized) - 1e-3, "not the extremes of all"
    features = [model.features(x) for x in BATCHES]
    found = ranges["classifier"]
    assert (found.low, found.high) == pytest.approx(reference.mean_range(features), abs=1e-5)


def test_measuring_leaves_the_model_alone() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_ranges(model.train(), BATCHES)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_images_that_do_not_differ_leave_no_range() -> None:
    with pytest.raises(ConfigError, match=r"input of convs\.0 is 2 everywhere"):
        measure_ranges(wide(), [torch.ones(4, *SHAPE)])
    with pytest.raises(ConfigError, match="at least one image"):
        measure_ranges(wide(), [])
    dead = wide()
    nn.init.constant_(dead.norms[1].weight, 0.0)
    nn.init.constant_(dead.norms[1].bias, -1.0)
    with pytest.raises(ConfigError, match=r"all layers see something; .* input of convs\.2 is 0 everywhere"):
        measure_ranges(dead, BATCHES)


def test_no_images_at_all_leave_no_range() -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        next(iter(Calibration(1, 4).images(Pool(), rng(), torch.device("cpu"))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_no_numbers_is_not_the_images_fault(value: float) -> None:
    broken = wide()
    nn.init.constant_(broken.norms[0].bias, value)
    with pytest.raises(
        ConfigError, match=r"model=\w+: a model whose layers see finite numbers; .* convs\.1 is not"
    ):
        measure_ranges(broken, BATCHES)


@pytest.mark.parametrize("shade", [0.0, 0.4, 1.0])
def test_images_of_one_colour_each_are_refused(shade: float) -> None:
    """Cutout and shifts would blacken parts of them, and leave a range."""
    pool = pool_of(torch.full((4, *SHAPE), shade) - torch.arange(4).view(4, 1, 1, 1) / 100)
    calibration = Calibration(1, 4, Chain([CropFlip(2), Cutout(9, 0.25)]))
    with pytest.raises(ConfigError, match="these 4 are of one colour each"):
        next(iter(calibration.images(pool, rng(), torch.device("cpu"))))
    pool.add(pixels(1), torch.zeros(1).long(), torch.zeros(1, CLASSES))
    next(iter(calibration.images(pool, rng(), torch.device("cpu"))))


def test_bits_and_the_exceptions_at_both_ends() -> None:
    bits = LowBit(2, 4, ends=8).bits(wide())
    assert bits == {"convs.0": (8, 8), "convs.1": (2, 4), "convs.2": (2, 4), "classifier": (8, 8)}
    assert set(LowBit(2, 4, ends=None).bits(wide()).values()) == {(2, 4)}
    for key, value in {"w": 1, "a": 9, "ends": 0}.items():
        with pytest.raises(ConfigError, match=rf"compression\.{key}={value}: an integer in 2\.\.8"):
            LowBit(**{key: value})
    with pytest.raises(ConfigError, match="convolutions"):
        LowBit().bits(nn.Identity())


def test_a_layer_computes_with_quantized_input_and_weights() -> None:
    model, x = wide(), pixels(5, seed=7)
    ranges = measure_ranges(model, BATCHES)
    small = LowBit(2, 3, ends=None, exact_zero=False)(model, BATCHES)
    conv = layers(model)["convs.0"]
    found = ranges["convs.0"]
    seen = fake_quantize((x - 0.5) / 0.25, torch.tensor(found.low), torch.tensor(found.high), 3)
    expected = nn.functional.conv2d(seen, reference.per_channel(conv.weight.detach(), 2), padding=1)
    got = quantized_layers(small)["convs.0"]((x - 0.5) / 0.25)
    assert torch.allclose(got, expected, atol=1e-5)
    assert len(quantized_layers(small)["convs.1"].weight()[0].unique()) <= 4


@pytest.mark.parametrize("exact_zero", [True, False])
def test_more_bits_are_closer_to_the_model(exact_zero: bool) -> None:
    model, x = wide(), pixels(64, seed=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        distance = [
            (LowBit(b, b, None, exact_zero)(model, BATCHES)(x) - model(x)).abs().mean().item()
            for b in (2, 4, 8)
        ]
    assert distance[0] > distance[1] > distance[2] > 0
    assert distance[2] < 0.05 * model(x).std().item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [LeNet, partial(ResNet, depth=8), partial(WideResNet, depth=10)])
def test_all_architectures_can_be_quantized_saved_and_loaded(make: type[nn.Module], tmp_path: Path) -> None:
    model = make(SHAPE, CLASSES, TASK.mean, TASK.std).eval()
    small = LowBit(3, 5)(model, BATCHES)
    assert len(quantized_layers(small)) == len(layers(model))
    save(small, tmp_path / "small.safetensors")
    x = pixels(9)
    with torch.no_grad():
        again = load(tmp_path / "small.safetensors", model.train())
        assert not again.training
        model.eval()
        assert torch.equal(again(x), small(x)), "to the last bit"
        assert not torch.equal(again(x), model(x))


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_reversible(bits: int) -> None:
    k = torch.randint(2**bits, (3, 5, 7), generator=rng(bits)).to(torch.uint8)
    packed = pack(k, bits)
    assert len(packed) == -(-3 * 5 * 7 * bits // 8)
    assert torch.equal(unpack(packed, bits, (3, 5, 7)), k)


def test_size_is_bits_times_parameters(tmp_path: Path) -> None:
    model = network(width=8).eval()
    weights = [layer.weight.numel() for layer in layers(model).values()]
    small = LowBit(4, 8)(model, BATCHES)
    saved_bits = 24 * (weights[0] + weights[-1]) + 28 * sum(weights[1:-1])
    ranges = 2 * 32 * sum(len(layer.weight) for layer in layers(model).values())
    inputs = 2 * 32 * len(weights)
    full = 8 * sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert num_bytes(small) == (full - saved_bits + ranges + inputs) / 8
    save(small, tmp_path / "small.safetensors")
    header = 8 + int.from_bytes((tmp_path / "small.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "small.safetensors").stat().st_size - header == num_bytes(small)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    save(LowBit()(wide(), BATCHES), tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match="LeNet"):
        load(tmp_path / "small.safetensors", LeNet(SHAPE, CLASSES, TASK.mean, TASK.std))
    save_file(network().state_dict(), tmp_path / "float.safetensors")
    with pytest.raises(ConfigError, match="low-bit"):
        load(tmp_path / "float.safetensors", network())
    (tmp_path / "text").write_text("text")
    with pytest.raises(ConfigError, match="readable"):
        load(tmp_path / "text", network())


DAMAGES: dict[str, Callable[[dict[str, Tensor], dict[str, str]], None]] = {
    "missing": lambda state, header: [state.pop("convs.1.codes")].clear(),
    "more": lambda state, header: state.update(more=torch.zeros(1)),
    "short": lambda state, header: state.update({"convs.1.codes": state["convs.1.codes"][:-1]}),
    "type": lambda state, header: state.update({"convs.1.codes": state["convs.1.codes"].float()}),
    "range": lambda state, header: state.update({"convs.1.weight_low": torch.zeros(1)}),
    "nan": lambda state, header: [state["convs.1.weight_low"].fill_(torch.nan)].clear(),
    "bits": lambda state, header: header.update({FORMAT: header[FORMAT].replace("[8, 8]", "[80, 8]", 1)}),
    "no bits": lambda state, header: header.update({FORMAT: header[FORMAT].replace("[8, 8]", "null", 1)}),
    "cut": lambda state, header: header.update({FORMAT: header[FORMAT][:-5]}),
    "list": lambda state, header: header.update({FORMAT: '["convs.0", "convs.1", "convs.2", "classifier"]'}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save(LowBit()(wide(), BATCHES), path)
    with safe_open(path, "pt") as file:
        state, header = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    DAMAGES[damage](state, header)
    save_file(state, path, header)
    with pytest.raises(
        ConfigError, match=r"^checkpoint=.*: low-bit weights of a ConvNet of this size, but ."
    ):
        load(path, wide())


def test_files_of_another_width_are_refused(tmp_path: Path) -> None:
    save(LowBit()(network(width=8).eval(), BATCHES), tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match="of this size, but ") as told:
        load(tmp_path / "small.safetensors", wide())
    assert "\n" not in str(told.value)
    cut = (tmp_path / "small.safetensors").read_bytes()[:-9]
    (tmp_path / "small.safetensors").write_bytes(cut)
    with pytest.raises(ConfigError, match="readable"):
        load(tmp_path / "small.safetensors", wide())


def test_calibration_draws_and_augments() -> None:
    pool = pool_of(pixels(3))
    plain = list(Calibration(2, 5).images(pool, rng(), torch.device("cpu")))
    assert [x.shape for x in plain] == [(5, *SHAPE)] * 2
    stored = {tuple(row.tolist()) for row in pool.pixels.flatten(1)}
    assert {tuple((255 * x).round().int().flatten().tolist()) for batch in plain for x in batch} <= stored
    moved = next(iter(Calibration(1, 5, CropFlip(2)).images(pool, rng(), torch.device("cpu"))))
    assert not {tuple((255 * x).round().int().flatten().tolist()) for x in moved} <= stored
    for key in ("batches", "batch_size"):
        with pytest.raises(ConfigError, match=rf"calibrate\.{key}=0"):
            Calibration(**{key: 0})


def saved(folder: Path, x: Tensor | None = None) -> Path:
    pool = pool_of(pixels(7) if x is None else x)
    save_file(pool.tensors(), folder / "pool.safetensors")
    return folder / "pool.safetensors"


def test_images_of_every_origin_come_labelled_by_the_model(tmp_path: Path) -> None:
    teacher, real = alone(wide()), images(40)
    sources: list[Source] = [
        Synthesized(Joint(inversion(steps=2, terms={"bn": BatchNormKL()}), 4), 6),
        Synthesized(Noise(4), 6),
        Saved(str(saved(tmp_path)), 6),
        Real(6),
    ]
    for source in sources:
        source.check(teacher)
        pool = source(teacher, TASK, real, 0)
        assert len(pool) == 6
        drawn = pool.get(torch.arange(6))
        assert drawn.labels is not None
        assert torch.allclose(drawn.labels.exp().sum(1), torch.ones(6), atol=1e-5)
        assert torch.equal(source(teacher, TASK, real, 0).pixels, pool.pixels), "repeatable"
    assert [source.origin.data_free for source in sources] == [True, True, True, False]


def test_the_real_control_is_balanced() -> None:
    real = images(80)
    pool = Real(2 * CLASSES)(alone(wide()), TASK, real, 3)
    assert torch.bincount(pool.targets, minlength=CLASSES).tolist() == [2] * CLASSES
    stored = {tuple(row.tolist()) for row in real.x.flatten(1)}
    assert {tuple(row.tolist()) for row in pool.pixels.flatten(1)} <= stored
    assert len(Real(1000)(alone(wide()), TASK, real, 3)) == 80


def test_a_saved_pool_is_checked(tmp_path: Path) -> None:
    teacher, real = alone(wide()), images(8)
    with pytest.raises(ConfigError, match=r"calibration\.path=.*save_pool"):
        Saved(str(tmp_path / "nowhere")).check(teacher)
    for few in (torch.zeros(0, *SHAPE), torch.zeros(1, *SHAPE), torch.zeros(())):
        save_file(
            {"pixels": few.byte(), "targets": torch.zeros(len(few) if few.ndim else 0).long()}, tmp_path / "e"
        )
        with pytest.raises(ConfigError, match="at least two images"):
            Saved(str(tmp_path / "e"))(teacher, TASK, real, 0)
    with pytest.raises(ConfigError, match=r"uint8 images of \(1, 8, 8\)"):
        Saved(str(saved(tmp_path, pixels(3, shape=(1, 9, 9)))))(teacher, TASK, real, 0)
    save_file({"other": torch.zeros(1)}, tmp_path / "o")
    with pytest.raises(ConfigError, match="pixels and targets"):
        Saved(str(tmp_path / "o"))(teacher, TASK, real, 0)
    for wrong in (torch.tensor([0, CLASSES]), torch.tensor([-1, 0]), torch.tensor([0]), torch.zeros(2)):
        save_file({"pixels": torch.zeros(2, *SHAPE, dtype=torch.uint8), "targets": wrong}, tmp_path / "t")
        with pytest.raises(ConfigError, match="int64 targets"):
            Saved(str(tmp_path / "t"))(teacher, TASK, real, 0)
    header = b'{"pixels":{"dtype":"U8","shape":[1000000000000],"data_offsets":[0,1000000000000]}}'
    (tmp_path / "h").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ConfigError, match="larger than the file"):
        Saved(str(tmp_path / "h"))(teacher, TASK, real, 0)


ODD = [
    "5",
    "{",
    '{"data_free": "yes"}',
    '{"data_free": true, "synthesizer": 3}',
    '{"data_free": true, "terms": 3}',
]


@pytest.mark.parametrize("said", ODD)
def test_a_pool_of_odd_origin_is_refused(said: str, tmp_path: Path) -> None:
    state = {
        "pixels": torch.zeros(2, *SHAPE, dtype=torch.uint8),
        "targets": torch.zeros(2, dtype=torch.int64),
    }
    save_file(state, tmp_path / "p", {"fl_cmi pool 1": said})
    with pytest.raises(ConfigError, match=r"calibration\.path=.*pixels and targets"):
        Saved(str(tmp_path / "p"))(alone(wide()), TASK, images(8), 0)


def test_the_model_is_no_student_that_errs() -> None:
    teacher = alone(wide())
    only = Synthesized(Joint(inversion(terms={"adv": Adversarial(1.0)}), 4))
    with pytest.raises(ConfigError, match=r"terms=adv: at least one that does not ask for a student"):
        only.check(teacher)


def test_a_method_that_shows_images_to_its_student_leaves_the_model_alone() -> None:
    teacher = alone(wide())
    before = {name: value.clone() for name, value in teacher.models[0].state_dict().items()}
    made = inversion(steps=2, terms={"adv": Adversarial(1.0), "bn": BatchNormKL()})
    made.student_mode = "train"
    source = Synthesized(Joint(made, 4), 4)
    source.check(teacher)
    source(teacher, TASK, images(8), 0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.models[0].state_dict().items())
    assert not teacher.models[0].training


def test_statistics_need_batch_norm() -> None:
    lenet = alone(LeNet(SHAPE, CLASSES, TASK.mean, TASK.std))
    with pytest.raises(ConfigError, match="batch"):
        Synthesized(Joint(inversion(terms={"bn_kl": BatchNormKL()}), 4)).check(lenet)
    with pytest.raises(ConfigError, match=r"calibration\.images=0"):
        Synthesized(Noise(4), 0)


def tuned(steps: int, freeze: bool, recalibrate: int = 0) -> tuple[nn.Module, nn.Module, float, float]:
    """The low-bit model before and after fine-tuning, and its distance from the teacher before and after."""
    teacher, x = alone(wide(3)), pixels(64, seed=5)
    pool = pool_of(x)
    raw = LowBit(2, 4, ends=4)(teacher.models[0], [x])
    small = LowBit(2, 4, ends=4)(teacher.models[0], [x])
    loss = Sum({"kl": KL(1.0, "mean"), "layers": LayerMatch()}, {"layers": 0.01})
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    distiller = Distiller(sgd, loss=loss, batch_size=32, recalibrate=recalibrate)
    fine_tune(small, teacher, pool, distiller, steps, freeze, rng())
    with torch.no_grad():
        far = [KL(1.0)(_answers(teacher(x), model(x)), rng()).item() for model in (raw, small)]
    return raw, small, far[0], far[1]


def _answers(target: Tensor, student: Tensor) -> Answers:
    return Answers(target, student)


def test_fine_tuning_brings_the_model_closer_and_keeps_its_ranges() -> None:
    raw, small, before, after = tuned(150, freeze=False)
    assert after < 0.7 * before
    for name, layer in quantized_layers(small).items():
        other = quantized_layers(raw)[name]
        assert torch.equal(layer.low, other.low)
        assert torch.equal(layer.high, other.high)
        assert not torch.equal(layer.layer.weight, other.layer.weight)
    assert not small.training


def test_fine_tuned_batch_norm_can_be_measured_anew_unless_it_is_kept() -> None:
    for freeze, wanted in ((False, 2), (True, None)):
        raw, small, _, _ = tuned(3, freeze, recalibrate=64)
        kept, found = (
            [int(layer.num_batches_tracked) for layer in batch_norm_layers(model)] for model in (raw, small)
        )
        assert found == ([wanted] * len(kept) if wanted else kept)
        assert not small.training


def test_batch_norm_can_be_kept() -> None:
    for freeze in (True, False):
        raw, small, _, _ = tuned(3, freeze)
        same = [
            torch.equal(a.running_mean, b.running_mean) for a, b in zip(raw.norms, small.norms, strict=True)
        ]
        assert all(same) is freeze
        assert not any(torch.equal(a.weight, b.weight) for a, b in zip(raw.norms, small.norms, strict=True))
        assert raw.state_dict().keys() == small.state_dict().keys()


def test_fixed_statistics_are_used_in_train_mode() -> None:
    model, x = network().eval(), pixels(8)
    expected = model(x)
    with fixed_statistics(model):
        assert torch.equal(model.train()(x), expected)
    assert not torch.equal(model.train()(x), expected)


def test_latency_is_in_milliseconds() -> None:
    seen = []

    def predict(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    found = latency_ms(predict, SHAPE, (1, 3), repeats=2, warmup=1)
    assert seen == [1, 1, 1, 3, 3, 3]
    assert set(found) == {"1", "3"}
    assert all(0 < value < 1000 for value in found.values())
