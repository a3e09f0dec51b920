"""Local training: its loss step by step, and which images it sees how often."""

from functools import partial
from typing import Any

import pytest
import reference
import torch
from tiny import images, network, rng
from torch import Tensor, nn

from fl_cmi.augment import CropFlip
from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.training import LocalTraining, constant, cosine, optimizing, step_decay
from fl_cmi.types import ConfigError, Images

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.5)


class Linear(nn.Module):
    """`W x + b` on flattened pixels; remembers the images and the modes it was called with."""

    def __init__(self, pixels: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng(9)))
        self.batches: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.detach().clone())
        self.modes.append(self.training)
        return self.layer(x.flatten(1))


def numbered(number: int) -> Images:
    """2x2 images whose pixels say which image it is."""
    x = torch.arange(number, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return Images(x, torch.arange(number) % 3, 3)


def seen(model: Linear) -> list[list[int]]:
    """The numbers of the images of each batch."""
    return [(batch[:, 0, 0, 0] * 255).round().int().tolist() for batch in model.batches]


@pytest.mark.parametrize("mu", [0.0, 0.8])
@pytest.mark.parametrize("prior_correction", [False, True])
def test_weights_equal_the_loops(mu: float, prior_correction: bool) -> None:
    """Full batches, so that the order does not matter; three steps, so that the proximal term counts."""
    train = Images(
        torch.rand(7, 1, 2, 2, generator=rng(1)), torch.tensor([0, 0, 0, 1, 0, 0, 1]), num_classes=3
    )
    model = Linear()
    weight, bias = model.layer.weight.detach().double(), model.layer.bias.detach().double()
    prior = reference.label_log_prior([5, 2, 0], 1.0) if prior_correction else [0.0] * 3
    expected = reference.linear_training(
        weight, bias, train.x.flatten(1).double(), train.y.tolist(), prior, rate=0.5, steps=3, mu=mu
    )
    local = LocalTraining(SGD, epochs=3, batch_size=16, prior_correction=prior_correction)
    local(model, train, rng(), CPU, proximal_mu=mu)
    # Single precision against double.
    torch.testing.assert_close(model.layer.weight.detach().double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.layer.bias.detach().double(), expected[1], rtol=1e-5, atol=1e-6)


def test_prior_correction_changes_the_loss_and_not_what_the_model_returns() -> None:
    train, model = numbered(6), Linear()
    before = model.layer(train.pixels().flatten(1))
    local = LocalTraining(partial(torch.optim.SGD, lr=0.0), epochs=1, batch_size=6, prior_correction=True)
    found = local(model, train, rng(), CPU)
    prior = torch.tensor(reference.label_log_prior([2, 2, 2], 1.0))
    expected = reference.cross_entropy((before + prior).double(), train.y)
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(model.layer(train.pixels().flatten(1)), before)


def test_prior_correction_takes_the_label_mix_out() -> None:
    """Images that say nothing: a plain model learns the label mix, a corrected one stays level."""
    train = Images(torch.zeros(40, 1, 2, 2), (torch.arange(40) >= 36).long(), 2)
    bias = {}
    for corrected in (False, True):
        model = Linear(classes=2)
        LocalTraining(SGD, steps=300, batch_size=40, prior_correction=corrected)(model, train, rng(), CPU)
        bias[corrected] = (model.layer.bias[0] - model.layer.bias[1]).item()
    assert bias[False] == pytest.approx(torch.tensor(36 / 4).log().item(), abs=0.02)
    # What is left is the smoothing: log(36/4) - log(37/5).
    assert bias[True] == pytest.approx(torch.tensor((36 / 4) / (37 / 5)).log().item(), abs=0.02)


def test_an_epoch_sees_every_image_once() -> None:
    model = Linear()
    found = LocalTraining(SGD, epochs=2, batch_size=4)(model, numbered(10), rng(), CPU)
    batches = seen(model)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    assert found["steps"] == 6
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


@pytest.mark.parametrize(("steps", "sizes"), [(1, [4]), (4, [4, 4, 2, 4]), (7, [4, 4, 2, 4, 4, 2, 4])])
def test_steps_do_not_depend_on_the_number_of_images(steps: int, sizes: list[int]) -> None:
    model = Linear()
    found = LocalTraining(SGD, steps=steps, batch_size=4)(model, numbered(10), rng(), CPU)
    assert [len(batch) for batch in seen(model)] == sizes
    assert found["steps"] == steps


def test_a_remainder_of_one_image_is_left_out_and_another_one_each_epoch() -> None:
    model = Linear()
    LocalTraining(SGD, epochs=6, batch_size=4)(model, numbered(9), rng(), CPU)
    batches = seen(model)
    assert [len(batch) for batch in batches] == [4] * 12
    missing = {(set(range(9)) - set(batches[i]) - set(batches[i + 1])).pop() for i in range(0, 12, 2)}
    assert len(missing) > 1


def test_a_single_image_trains_without_batch_statistics() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = LocalTraining(partial(torch.optim.SGD, lr=0.1), epochs=2, batch_size=8)(
        model, images(1), rng(), CPU
    )
    assert found["steps"] == 2
    assert model.training
    for bn in batch_norm_layers(model):
        assert bn.running_mean is not None
    after = model.state_dict()
    assert torch.equal(after["norms.0.running_mean"], before["norms.0.running_mean"])
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_put_back(mode: bool) -> None:
    model = Linear().train(mode)
    LocalTraining(SGD, epochs=1)(model, numbered(4), rng(), CPU)
    assert model.modes == [True]
    assert model.training is mode


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="without images"):
        LocalTraining(SGD, epochs=1)(Linear(), numbered(0), rng(), CPU)


def test_metrics_are_those_of_the_last_epoch() -> None:
    train, model = numbered(10), Linear()
    found = LocalTraining(partial(torch.optim.SGD, lr=0.0), epochs=3, batch_size=4)(model, train, rng(), CPU)
    logits = model.layer(train.pixels().flatten(1)).double()
    assert found["loss"] == pytest.approx(reference.cross_entropy(logits, train.y).item(), abs=1e-6)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == train.y).double().mean().item())


def test_training_learns() -> None:
    model, train = network(), images(64)
    local = LocalTraining(partial(torch.optim.Adam, lr=0.02), epochs=15, batch_size=16, augment=CropFlip(1))
    assert local(model, train, rng(), CPU)["accuracy"] > 0.9


def test_the_same_stream_trains_the_same_model() -> None:
    local = LocalTraining(SGD, epochs=2, batch_size=8, augment=CropFlip(1))

    def trained(seed: int) -> Tensor:
        model = network()
        local(model, images(20), rng(seed), CPU)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.rand(5)  # the global generator plays no part
    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_frozen_parameters_stay() -> None:
    model = Linear()
    model.layer.bias.requires_grad_(False)
    before = model.layer.bias.clone()
    LocalTraining(SGD, epochs=1)(model, numbered(6), rng(), CPU, proximal_mu=1.0)
    assert torch.equal(model.layer.bias, before)


def test_the_rate_follows_the_schedule() -> None:
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    LocalTraining(partial(Spy, lr=0.4), schedule=cosine, steps=4, batch_size=4)(
        Linear(), numbered(8), rng(), CPU
    )
    half = 0.5**0.5
    assert rates == pytest.approx([0.4, 0.4 * (1 + half) / 2, 0.2, 0.4 * (1 - half) / 2])


@pytest.mark.parametrize(("momentum", "rounds"), [(0.0, 0), (0.9, 3)])
def test_the_rate_falls_from_round_to_round(momentum: float, rounds: int) -> None:
    def trained(rate: float, rounds: int = 0, **more: Any) -> Tensor:
        model, optimizer = Linear(), partial(torch.optim.SGD, lr=rate, momentum=momentum)
        LocalTraining(optimizer, schedule=cosine, steps=4, batch_size=4, **more)(
            model, numbered(8), rng(), CPU, rounds=rounds
        )
        return model.layer.weight.detach()

    torch.testing.assert_close(trained(0.4, rounds, round_decay=0.5), trained(0.4 * 0.5**rounds))
    assert torch.equal(trained(0.4, rounds), trained(0.4))


def test_a_step_is_clipped_to_its_norm() -> None:
    def step(clip: float | None) -> Tensor:
        model = Linear()
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        LocalTraining(SGD, steps=1, batch_size=8, clip=clip)(model, numbered(8), rng(), CPU)
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        return (before - after) / 0.5

    free = step(None)
    assert free.norm() > 0.1
    torch.testing.assert_close(step(0.1), free * 0.1 / free.norm(), rtol=1e-4, atol=1e-6)
    assert torch.equal(step(100.0), free)


def test_schedules_and_parameter_groups() -> None:
    assert [constant(p) for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert [cosine(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [cosine(p, floor=0.1) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.55, 0.1])
    decayed = [step_decay(p, [0.2, 0.4]) for p in (0.0, 0.19, 0.2, 0.39, 0.4, 0.99)]
    assert decayed == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    layer = Linear().layer
    optimizer = torch.optim.SGD(
        [{"params": [layer.weight], "lr": 1.0}, {"params": [layer.bias], "lr": 0.1}], lr=1.0
    )
    set_rate = optimizing(optimizer, cosine)
    set_rate(0.9)
    set_rate(0.5)  # from the initial rates, not from the last ones
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({}, "local.epochs=null"),
        ({"epochs": 1, "steps": 1}, "local.epochs=1"),
        ({"epochs": 0}, "local.epochs=0"),
        ({"steps": -1}, "local.steps=-1"),
        ({"epochs": 1.5}, "local.epochs=1.5"),
        ({"epochs": 1, "batch_size": 0}, "local.batch_size=0"),
        ({"epochs": 1, "start": "here"}, "local.start=here"),
        ({"epochs": 1, "round_decay": 0.0}, "local.round_decay=0.0"),
        ({"epochs": 1, "decay_by": "epoch"}, "local.decay_by=epoch"),
        ({"epochs": 1, "clip": 0}, "local.clip=0"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        LocalTraining(SGD, **arguments)
