"""FastDFKD's meta-learnt generator against a loop written by hand, and when its first layers start anew."""

from collections.abc import Iterator
from typing import Any

import pytest
import reference_generator as by_loops
import torch
from tiny import SHAPE, TASK, contrast, ensemble, generator, inversion, network, rng
from torch import Tensor, nn

from fl_cmi.models.generator import ImageGenerator
from fl_cmi.synthesis.meta import Fomaml, MetaGenerator, Reptile, renew_first_layers
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.types import ConfigError, Shape, Task

CPU = torch.device("cpu")
LABELS = torch.zeros(3, dtype=torch.int64)

UPDATES = {"fomaml": Fomaml, "reptile": Reptile, "fast": lambda: None}


@pytest.fixture
def double() -> Iterator[None]:
    """Everything that is made in the test is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Affine(ImageGenerator):
    """`x = W z + b`, seen as images of 1x2x2."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_latents = 2
        self.layer = nn.Linear(2, 4)

    def reset(self, rng: torch.Generator) -> None:
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=rng))

    def images(self, z: Tensor, task: Task) -> Tensor:
        x: Tensor = self.layer(z).view(-1, 1, 2, 2)
        return x


def loss_of(x: Tensor) -> Tensor:
    """Something curved, with its optimum elsewhere for each pixel."""
    return ((x - torch.arange(4.0).view(1, 2, 2)) ** 4).mean()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("how", UPDATES)
def test_the_outer_generator_follows_the_loop_written_by_hand(how: str) -> None:
    steps, rate, latent_rate = 3, 0.02, 0.3
    source = MetaGenerator(Affine, UPDATES[how](), rate, latent_rate, steps, renew_at=None)
    start: list[Tensor] = []
    latents, found = [], []
    for batch in range(3):
        source.begin(Task((1, 2, 2), 4, (0.5,), (0.5,)), LABELS, rng(batch), CPU)
        assert source.outer is not None
        if not start:
            start = [p.detach().clone() for p in source.outer.parameters()]
        latents.append(source.latents.detach().clone())
        for _ in range(steps):
            loss_of(source.images()).backward()
            source.step()
        source.finish()
        found.append([p.detach().clone() for p in source.outer.parameters()])
        assert all(p.grad is None for p in source.outer.parameters())

    def loss(parameters: list[Tensor], z: Tensor) -> Tensor:
        weight, bias = parameters
        return loss_of((z @ weight.T + bias).view(-1, 1, 2, 2))

    expected = by_loops.meta_learning(start, latents, loss, how, steps, rate, latent_rate)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-9)
    assert not torch.allclose(found[0][0], start[0])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("update", [Fomaml(), Reptile()])
def test_during_a_batch_only_the_copy_moves(update: Any) -> None:
    source = MetaGenerator(Affine, update, renew_at=None)
    source.begin(Task((1, 2, 2), 4, (0.5,), (0.5,)), LABELS, rng(), CPU)
    assert source.outer is not None
    assert source.inner is not None
    before = [p.detach().clone() for p in source.outer.parameters()]
    for _ in range(2):
        loss_of(source.images()).backward()
        source.step()
    for p, q, old in zip(source.outer.parameters(), source.inner.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert not torch.equal(q, old)
    source.finish()
    assert not any(torch.equal(p, old) for p, old in zip(source.outer.parameters(), before, strict=True))


@pytest.mark.usefixtures("double")
def test_reptile_pulls_towards_the_copy_and_fast_is_the_copy() -> None:
    what = Task((1, 2, 2), 4, (0.5,), (0.5,))
    outer, inner = Affine((1, 2, 2)), Affine((1, 2, 2))
    Reptile(67.0).after_batch(outer, inner)
    for p, q in zip(outer.parameters(), inner.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, 67 * (p - q).detach())
    source = MetaGenerator(Affine, None, renew_at=None)
    source.begin(what, LABELS, rng(), CPU)
    assert source.inner is source.outer
    assert source.meta_rate == pytest.approx(0.02)


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("how", UPDATES)
def test_first_layers_start_anew_before_the_stated_batch_only(how: str) -> None:
    source = MetaGenerator(generator, UPDATES[how](), renew_at=3)
    changed = []
    for batch in range(5):
        before = {} if source.outer is None else state_of(source.outer)
        source.begin(TASK, LABELS, rng(batch), CPU)
        assert source.outer is not None
        after = state_of(source.outer)
        if before:
            changed.append({name for name in before if not torch.equal(before[name], after[name])})
        for _ in range(2):
            source.images().square().mean().backward()
            source.step()
        source.finish()
        assert not torch.equal(state_of(source.outer)["project.weight"], after["project.weight"])
    first = {"project.weight", "project.bias", "grow.0.weight", "grow.0.bias"}
    assert changed == [set(), first, set(), set()]


def test_first_layers_start_around_zero() -> None:
    net = generator((1, 28, 28))
    net.reset(rng())
    assert net.grow[0].weight.mean() > 0.9
    with torch.no_grad():
        net.project.bias.fill_(1.0)
    before = torch.get_rng_state()
    renew_first_layers(net, rng(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert net.project.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert net.grow[0].weight.abs().max() < 0.1
    assert not net.project.bias.any()
    assert not net.grow[0].bias.any()


@pytest.mark.parametrize("how", UPDATES)
@pytest.mark.parametrize("contrastive", [False, True])
def test_batches_are_made_and_differ(how: str, contrastive: bool) -> None:
    source = MetaGenerator(generator, UPDATES[how](), steps=2)
    made = Joint(inversion(steps=2, contrastive=contrast() if contrastive else None, source=source), 6)
    team, student = ensemble(), network(9)
    one, other = (made(team, student, TASK, rng(seed)) for seed in range(2))
    assert one.x.shape == (6, *SHAPE)
    assert not torch.equal(one.x, other.x)
    assert set(one.losses) == {"bn", "oh", "adv", "total"} | ({"contrast"} if contrastive else set())


def test_its_images_exist_only_once_they_are_optimized() -> None:
    with pytest.raises(ConfigError, match="source=MetaGenerator"):
        Joint(inversion(source=MetaGenerator(generator, Fomaml()))).check_sample()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: MetaGenerator(generator, None, learning_rate=0.0), "source.learning_rate=0.0"),
        (lambda: MetaGenerator(generator, None, latent_rate=-1.0), "source.latent_rate=-1.0"),
        (lambda: MetaGenerator(generator, None, steps=0), "source.steps=0"),
        (lambda: MetaGenerator(generator, None, renew_at=0), "source.renew_at=0"),
        (lambda: Reptile(factor=0.0), "update.factor=0.0"),
    ],
)
def test_values_out_of_range_are_named(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()
