"""Generators beyond CMI's, and what the sources do with them."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny import SHAPE, TASK, ensemble, generator, inversion, network, rng
from torch import Tensor, nn

from fl_cmi.models.dcgan import DcganGenerator
from fl_cmi.models.generator import Generator, ImageGenerator
from fl_cmi.models.tanh_generator import TanhGenerator
from fl_cmi.models.upsampled_conv import UpsampledConv
from fl_cmi.synthesis.source import GeneratorSource, TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.types import ConfigError, Shape, Task

FAMILIES: dict[str, Any] = {
    "large": partial(Generator, stem=4),
    "tanh": TanhGenerator,
    "rdskd": partial(TanhGenerator, eps=0.8),
    "clipped": partial(TanhGenerator, clip=True),
    "dcgan": DcganGenerator,
}

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 30, 29), (3, 9, 12)]

CPU = torch.device("cpu")
LABELS = torch.zeros(6, dtype=torch.int64)


def made(family: str, shape: Shape = SHAPE) -> ImageGenerator:
    net = FAMILIES[family](shape, num_latents=7, width=4)
    assert isinstance(net, ImageGenerator)
    net.reset(rng())
    return net


def task(shape: Shape) -> Task:
    return Task(shape, 4, (0.3,) * shape[0], (0.2,) * shape[0])


def num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_have_the_shape_and_gradients_reach_every_weight(family: str, shape: Shape) -> None:
    net = made(family, shape)
    assert net.num_latents == 7
    x = net.images(torch.randn(5, 7, generator=rng()), task(shape))
    assert x.shape == (5, *shape)
    if family not in ("tanh", "rdskd"):
        assert x.min() >= 0
        assert x.max() <= 1
    assert (x - x.mean(dim=0)).abs().max() > 1e-3, "latents make no difference"
    x.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_reset_depends_on_its_generator_alone(family: str) -> None:
    one, other = made(family), made(family)
    other(torch.randn(4, 7, generator=rng()))
    before = torch.get_rng_state()
    one.reset(rng(1))
    other.reset(rng(1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    other.reset(rng(2))
    assert any(not torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_the_same_in_channels_last(family: str) -> None:
    net, z = made(family, (3, 16, 16)), torch.randn(4, 7, generator=rng())
    x = net.images(z, task((3, 16, 16)))
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net.images(z, task((3, 16, 16))), x, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "number"),
    [
        # linear (256 + 1) 256*8*8, BN 512, conv 9*256*128, BN 256, conv 9*128*64, BN 128, conv 9*64*3 + 3
        (partial(Generator, stem=4), 257 * 256 * 64 + 512 + 294_912 + 256 + 73_728 + 128 + 1_731),
        # linear (256 + 1) 128*8*8, BN 256, conv 9*128*128, BN 256, conv 9*128*64, BN 128, conv 9*64*3 + 3; BN without
        (TanhGenerator, 257 * 128 * 64 + 256 + 147_456 + 256 + 73_728 + 128 + 1_731),
        # linear (256 + 1) 256*4*4, BN 512, convs 16*256*128, BN 256, 16*128*64, BN 128, 16*64*3 + 3
        (DcganGenerator, 257 * 256 * 16 + 512 + 524_288 + 256 + 131_072 + 128 + 3_075),
    ],
    ids=["large", "tanh", "dcgan"],
)
def test_layers_are_those_of_the_papers(net: Any, number: int) -> None:
    with torch.device("meta"):
        assert num_parameters(net((3, 32, 32))) == number


def test_standardized_images_reach_the_first_convolution_as_the_papers_have_them() -> None:
    """`(x - mean) / std` is u: in train mode of mean 0 and variance 1 per channel, whatever the data set."""
    shape = (2, 9, 12)
    what = Task(shape, 4, (0.1, 0.5), (0.3, 0.2))
    net = made("tanh", shape)
    z = torch.randn(64, 7, generator=rng())
    x = net.images(z, what)
    u = (x - torch.tensor(what.mean)[:, None, None]) / torch.tensor(what.std)[:, None, None]
    torch.testing.assert_close(u, net(z), rtol=0.0, atol=1e-5)
    assert isinstance(net, TanhGenerator)
    canvas = net.body.canvas(z).tanh()
    mean, var = (
        canvas.mean(dim=(0, 2, 3), keepdim=True),
        canvas.var(dim=(0, 2, 3), keepdim=True, correction=0),
    )
    torch.testing.assert_close(u, (canvas - mean) / (var + 1e-5).sqrt(), rtol=0.0, atol=1e-4)
    assert u.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(u.var(dim=(0, 2, 3)), torch.ones(2), rtol=0.02, atol=0.0)
    assert x.min() < 0, "the paper's images leave the range of pixels"
    clipped = made("clipped", shape)
    torch.testing.assert_close(clipped.images(z, what), x.clamp(0, 1))


def test_the_slip_of_rdskd_is_in_the_two_hidden_batch_norms() -> None:
    for family, eps in (("tanh", 1e-5), ("rdskd", 0.8)):
        norms = [m for m in made(family).modules() if isinstance(m, nn.BatchNorm2d)]
        assert [norm.eps for norm in norms] == [1e-5, eps, eps, 1e-5]
        assert [norm.affine for norm in norms] == [True, True, True, False]


def test_tanh_weights_start_from_the_distributions_of_pytorch() -> None:
    net = TanhGenerator((3, 32, 32))
    net.reset(rng())
    bound = 256**-0.5
    assert net.body.project.weight.abs().max() <= bound
    assert net.body.project.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert torch.equal(net.body.grow[0].weight, torch.ones(128))


@pytest.mark.parametrize(
    ("side", "start", "steps"), [(8, 4, 1), (28, 4, 3), (32, 4, 3), (64, 4, 4), (128, 4, 5)]
)
def test_dcgan_doubles_up_to_the_side(side: int, start: int, steps: int) -> None:
    with torch.device("meta"):
        net = DcganGenerator((3, side, side), width=8)
        assert net(torch.empty(2, 256)).shape == (2, 3, side, side)
    assert net.start == (8 * 2 ** (steps - 1), start, start)
    convolutions = [m for m in net.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [c.in_channels for c in convolutions] == [8 * 2**i for i in reversed(range(steps))]


def test_dcgan_starts_as_its_paper_says() -> None:
    net = DcganGenerator((3, 32, 32))
    net.reset(rng())
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
    assert net.grow[0].weight.mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_generator_of_any_kind_makes_samples_and_batches(family: str) -> None:
    make = partial(FAMILIES[family], num_latents=7, width=2)
    source = TrainedGenerator(make, partial(torch.optim.Adam, lr=0.01))
    joint = Joint(inversion(steps=2, terms={"oh": OneHot(label="argmax")}, source=source), batch_size=6)
    assert joint(ensemble(), network(9), TASK, rng()).x.shape == (6, *SHAPE)
    x = joint.sample(ensemble(), TASK, 3, rng())
    assert x.shape == (3, *SHAPE)
    assert not x.requires_grad


def test_the_rate_of_a_trained_generator_counts_batches() -> None:
    decay = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 3], gamma=0.1)
    source = TrainedGenerator(generator, partial(torch.optim.Adam, lr=1.0), scheduler=decay)
    loop, rates = inversion(steps=3, terms={"oh": OneHot()}, source=source), []
    for batch in range(4):
        loop(ensemble(), network(9), LABELS, TASK, rng(batch))
        assert source.optimizer is not None
        rates.append(source.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 0.1, 0.01, 0.01])


def moves(clip: float | None) -> tuple[float, Tensor]:
    """How far one step of plain gradient descent moves the weights, by the 2-norm, and the latents."""
    source = GeneratorSource(generator, partial(torch.optim.SGD, lr=1.0), clip=clip)
    source.begin(TASK, LABELS, rng(), CPU)
    assert source.generator is not None
    assert source.latents is not None
    weights = [p.detach().clone() for p in source.generator.parameters()]
    latents = source.latents.detach().clone()
    (1e4 * source.images().square().sum()).backward()
    source.step()
    squares = sum(
        (p - old).double().square().sum().item()
        for p, old in zip(source.generator.parameters(), weights, strict=True)
    )
    return squares**0.5, source.latents.detach() - latents


def test_the_gradient_of_the_weights_is_clipped_and_that_of_the_latents_is_not() -> None:
    (free, latents), (short, same) = moves(None), moves(10.0)
    assert free > 100
    assert short == pytest.approx(10.0, rel=1e-3)
    torch.testing.assert_close(same, latents)
    far, _ = moves(1e9)
    assert far == pytest.approx(free)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Generator(SHAPE, stem=0), "generator.stem=0"),
        (lambda: TanhGenerator(SHAPE, eps=0.0), "generator.eps=0.0"),
        (lambda: TanhGenerator(SHAPE, width=0), "generator.width=0"),
        (lambda: DcganGenerator(SHAPE, num_latents=0), "generator.num_latents=0"),
        (lambda: GeneratorSource(generator, torch.optim.Adam, clip=0.0), "source.clip=0.0"),
    ],
)
def test_values_out_of_range_are_named(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


@pytest.mark.parametrize(("before", "after", "sides"), [(1, 1, (1, 1)), (3, 2, (4, 5)), (2, 5, (7, 7))])
def test_the_upsampled_convolution_is_upsampling_and_convolution(
    before: int, after: int, sides: tuple[int, int]
) -> None:
    layer = UpsampledConv(before, after).double()
    x = torch.randn(2, before, *sides, generator=rng(1), dtype=torch.float64, requires_grad=True)
    doubled = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    naive = nn.functional.conv2d(doubled, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), naive, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(layer, {"weight": w}, x), (x, layer.weight)
    )
