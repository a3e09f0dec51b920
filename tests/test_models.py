"""Models: sized by the data, of the published size, and the same in every process for the same seed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from fl_cmi.models.convnet import ConvNet
from fl_cmi.models.generator import Generator
from fl_cmi.models.initialize import initialize
from fl_cmi.models.lenet import LeNet
from fl_cmi.models.normalize import Normalize
from fl_cmi.models.resnet import ResNet
from fl_cmi.models.wide_resnet import WideResNet
from fl_cmi.types import ConfigError, Shape

Make = Callable[..., nn.Module]

CONFIGS = sorted((Path(__file__).parents[1] / "conf" / "model").glob("*.yaml"))

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]

FAMILIES = {
    "convnet": partial(ConvNet, width=4),
    "lenet": LeNet,
    "resnet8": partial(ResNet, depth=8),
    "resnet18": partial(ResNet, depth=18),
    "wrn_10_2": partial(WideResNet, depth=10, width=2),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(make: Make, shape: Shape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    return initialize(make(shape, num_classes, [0.4] * shape[0], [0.3] * shape[0]), rng())


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_classifier_on_the_features(family: str, shape: Shape) -> None:
    model = build(FAMILIES[family], shape, num_classes=7).eval()
    x = torch.rand(2, *shape, generator=rng())
    features = model.features(x)
    assert features.shape == (2, model.num_features)
    assert isinstance(model.classifier, nn.Linear)
    logits = model(x)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, model.classifier(features))
    assert not torch.equal(logits[0], logits[1])
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_a_model(path: Path) -> None:
    make = instantiate(OmegaConf.load(path))
    with torch.device("meta"):
        model = make((1, 8, 8), 10, (0.5,), (0.5,))
        assert model(torch.empty(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("make", "shape", "num_parameters"),
    [
        # convolutions 9 (16 + 16*32 + 32*64), BN 2 (16 + 32 + 64), linear 64*10 + 10
        (partial(ConvNet, width=16), (1, 28, 28), 24_058),
        # LeCun's layers with full connections: 156 + 2,416 + 48,120 + 10,164 + 850
        (LeNet, (1, 28, 28), 61_706),
        # stem 432, stages 4,608 + 13,824 + 55,296, BN 2 * (16 + 2*16 + 2*32 + 2*64), linear 650
        (partial(ResNet, depth=8), (3, 32, 32), 75_290),
        # He et al. 2016, table 6: .27 M; the exact number is that of common reimplementations with option A
        (partial(ResNet, depth=20), (3, 32, 32), 269_722),
        # common reimplementations for CIFAR-10
        (partial(ResNet, depth=18), (3, 32, 32), 11_173_962),
        (partial(ResNet, depth=34), (3, 32, 32), 21_282_122),
        # stem 432, groups 9,344 + 32,992 + 131,520, BN 128, linear 650
        (partial(WideResNet, depth=16, width=1), (3, 32, 32), 175_066),
        # Zagoruyko and Komodakis 2016: 2.2 M
        (partial(WideResNet, depth=40, width=2), (3, 32, 32), 2_243_546),
    ],
)
def test_parameter_counts_are_the_published_ones(make: Make, shape: Shape, num_parameters: int) -> None:
    with torch.device("meta"):
        model = make(shape, 10, [0.5] * shape[0], [0.5] * shape[0])
    assert sum(p.numel() for p in model.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("make", "num_layers", "width"),
    [
        (LeNet, 0, 0),
        (partial(ConvNet, width=16), 3, 16 + 32 + 64),
        (partial(ResNet, depth=8), 1 + 3 * 2, 16 + 2 * (16 + 32 + 64)),
        # stem, two per block, one per projecting shortcut; widths as in specs: what CMI calls D
        (partial(ResNet, depth=18), 1 + 2 * 8 + 3, 4_800),
        (partial(ResNet, depth=34), 1 + 2 * 16 + 3, 8_512),
        # two per block and the last; D again
        (partial(WideResNet, depth=16, width=1), 2 * 6 + 1, 16 + 3 * 16 + 16 + 3 * 32 + 32 + 3 * 64 + 64),
        (partial(WideResNet, depth=40, width=2), 2 * 18 + 1, 2_704),
    ],
)
def test_batch_norm_layers_are_as_many_and_as_wide(make: Make, num_layers: int, width: int) -> None:
    with torch.device("meta"):
        layers = batch_norms(make((3, 32, 32), 10, [0.5] * 3, [0.5] * 3))
    assert len(layers) == num_layers
    assert sum(layer.num_features for layer in layers) == width


@pytest.mark.parametrize("family", ["convnet", "resnet8", "resnet18", "wrn_10_2"])
def test_nothing_overwrites_what_a_batch_norm_layer_saw(family: str) -> None:
    model = build(FAMILIES[family], (1, 8, 8)).eval()
    seen, copies = [], []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        copies.append(inputs[0].clone())

    for layer in batch_norms(model):
        layer.register_forward_pre_hook(keep)
    model(torch.rand(3, 1, 8, 8, generator=rng()))
    assert len(seen) == len(batch_norms(model))
    for now, then in zip(seen, copies, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(("side", "last_map"), [(4, 4), (8, 4), (28, 7), (32, 8), (64, 16)])
def test_convnet_pools_only_maps_of_eight_and_more(side: int, last_map: int) -> None:
    model = build(FAMILIES["convnet"], (1, side, side))
    sizes = []
    model.norms[2].register_forward_pre_hook(lambda layer, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    model(torch.rand(2, 1, side, side, generator=rng()))
    assert sizes == [(last_map, last_map)]


def test_lenet_on_32x32_and_28x28_is_the_classic() -> None:
    for shape in ((1, 32, 32), (1, 28, 28)):
        assert build(LeNet, shape).linear1.in_features == 16 * 5 * 5
    assert build(LeNet, (1, 8, 8)).linear1.in_features == 16 * 2 * 2


def test_resnet_shortcut_without_parameters_skips_and_pads() -> None:
    block = build(partial(ResNet, depth=8), (1, 9, 9)).blocks[1]
    x = torch.rand(2, 16, 9, 9, generator=rng())
    y = block.shortcut(x)
    assert y.shape == (2, 32, 5, 5)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()
    assert block.eval()(x).shape == y.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_normalization_is_inside_and_no_part_of_the_state(family: str) -> None:
    make = FAMILIES[family]
    model = make((1, 8, 8), 3, (0.3,), (0.2,)).eval()
    plain = make((1, 8, 8), 3, (0.0,), (1.0,)).eval()
    assert not [name for name in model.state_dict() if "mean" in name and "running" not in name]
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 8, 8, generator=rng())
    assert torch.allclose(model(x), plain((x - 0.3) / 0.2), atol=1e-5)


def test_normalize_gives_zero_mean_and_unit_variance_per_channel() -> None:
    x = torch.rand(50, 2, 4, 4, generator=rng()) * torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    layer = Normalize(x.mean(dim=(0, 2, 3)).tolist(), x.std(dim=(0, 2, 3), correction=0).tolist())
    y = layer(x)
    assert torch.allclose(y.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(y.std(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "side"),
    [(ConvNet, 3), (LeNet, 7), (ResNet, 7), (partial(ResNet, depth=8), 4), (WideResNet, 7)],
)
def test_images_too_small_are_refused(make: Make, side: int) -> None:
    with pytest.raises(ConfigError, match=f"^model=.*not {side}x28") as caught:
        make((1, side, 28), 10, (0.5,), (0.5,))
    assert caught.value.key == "model"


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (partial(ResNet, depth=10), "model.depth"),
        (partial(ResNet, depth=2), "model.depth"),
        (partial(WideResNet, depth=18), "model.depth"),
        (partial(WideResNet, depth=4), "model.depth"),
        (partial(WideResNet, width=0), "model.width"),
        (partial(ConvNet, width=0), "model.width"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(make: Make, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make((1, 8, 8), 10, (0.5,), (0.5,))
    assert caught.value.key == key


@pytest.mark.parametrize("family", FAMILIES)
def test_initialize_depends_on_its_generator_alone(family: str) -> None:
    first = FAMILIES[family]((1, 8, 8), 10, (0.5,), (0.5,))
    torch.manual_seed(123)
    second = FAMILIES[family]((1, 8, 8), 10, (0.5,), (0.5,))
    second.train()(torch.rand(4, 1, 8, 8, generator=rng()))
    before = torch.get_rng_state()
    initialize(first, rng(5))
    assert initialize(second, rng(5)) is second
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    initialize(second, rng(6))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_initialize_draws_from_the_default_distributions() -> None:
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Linear(400, 100))
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    model[1].running_var.fill_(7.0)
    initialize(model, rng())
    for layer, fan_in in ((model[0], 8 * 3 * 3), (model[2], 400)):
        bound = fan_in**-0.5
        for parameter in (layer.weight, layer.bias):
            assert 0.9 * bound < parameter.abs().max() <= bound
        # the standard deviation of U(-b, b) is b / sqrt(3)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert torch.equal(model[1].weight, torch.ones(64))
    assert torch.equal(model[1].running_var, torch.ones(64))


def test_initialize_refuses_a_layer_it_has_no_rule_for() -> None:
    with pytest.raises(TypeError, match="PReLU"):
        initialize(nn.Sequential(nn.Linear(2, 2), nn.PReLU()), rng())


@pytest.mark.parametrize("shape", [*SHAPES, (1, 30, 29)], ids=str)
def test_generator_makes_images_of_the_shape(shape: Shape) -> None:
    generator = Generator(shape, num_latents=16, width=8)
    generator.reset(rng())
    x = generator(torch.randn(4, 16, generator=rng()))
    assert x.shape == (4, *shape)
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.std() > 0.01


def test_generator_has_the_layers_of_cmi() -> None:
    # linear (256 + 1) 128*8*8, BN 256, conv 9*128*128, BN 256, conv 9*128*64, BN 128, conv 9*64*3 + 3
    with torch.device("meta"):
        generator = Generator((3, 32, 32))
    assert generator.num_latents == 256
    total = 257 * 128 * 64 + 256 + 147_456 + 256 + 73_728 + 128 + 1_731
    assert sum(p.numel() for p in generator.parameters()) == total


def test_generator_equals_its_formula() -> None:
    generator = Generator((1, 9, 12), num_latents=5, width=3).double()
    generator.reset(rng())
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=rng(p.numel()), dtype=p.dtype))
    z = torch.randn(6, 5, generator=rng(), dtype=torch.float64)
    linear, conv3 = generator.project, generator.paint
    bn1, conv1, bn2, conv2, bn3 = (layer for layer in generator.grow if list(layer.parameters()))

    def standardize(h: Tensor, layer: nn.Module) -> Tensor:
        mean, var = h.mean(dim=(0, 2, 3), keepdim=True), h.var(dim=(0, 2, 3), keepdim=True, correction=0)
        return (h - mean) / (var + 1e-5).sqrt() * layer.weight.view(1, -1, 1, 1) + layer.bias.view(
            1, -1, 1, 1
        )

    def double(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    h = standardize((z @ linear.weight.T + linear.bias).reshape(6, 6, 3, 3), bn1)
    for conv, bn in ((conv1, bn2), (conv2, bn3)):
        h = standardize(F.conv2d(double(h), conv.weight, padding=1), bn)
        h = torch.where(h > 0, h, 0.2 * h)
    expected = torch.sigmoid(F.conv2d(h, conv3.weight, conv3.bias, padding=1))[:, :, :9, :12]
    assert torch.allclose(generator(z), expected, atol=1e-10)


def test_generator_reset_draws_as_specified_and_from_its_generator_alone() -> None:
    generator, other = Generator((1, 28, 28)), Generator((1, 28, 28))
    other(torch.randn(4, 256, generator=rng()))
    before = torch.get_rng_state()
    generator.reset(rng(1))
    other.reset(rng(1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d | nn.Linear):
            center = 1 if isinstance(module, nn.BatchNorm2d) else 0
            error = 6 * 0.02 / module.weight.numel() ** 0.5
            assert module.weight.mean().item() == pytest.approx(center, abs=error)
            assert module.weight.std().item() == pytest.approx(0.02, abs=error)
            assert module.bias is None or not module.bias.any()
    generator.reset(rng(2))
    assert not torch.equal(generator.project.weight, other.project.weight)


def test_generator_gives_the_same_images_in_channels_last() -> None:
    generator = Generator((3, 32, 32), num_latents=16, width=8)
    generator.reset(rng())
    z = torch.randn(4, 16, generator=rng())
    x = generator(z)
    generator.to(memory_format=torch.channels_last)
    y = generator(z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x, y, atol=1e-5)
    generator.reset(rng())
    assert torch.allclose(x, generator(z), atol=1e-5)


@pytest.mark.parametrize("size", [{"num_latents": 0}, {"width": 0}])
def test_generator_sizes_are_positive(size: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="an integer >= 1"):
        Generator((1, 8, 8), **size)
