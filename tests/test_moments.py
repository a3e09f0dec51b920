"""Moments of layer inputs: against the loops, from the client to the inversion, and what is refused."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import cut_off
from tiny import TASK, ensemble, images, network, pixels, remembering, rng
from torch import Tensor, nn

from fl_cmi.batchnorm import Seen, batch_norm_layers, observe, statistics_distance
from fl_cmi.compose import compose_config, dataset, server_side
from fl_cmi.disclosure import disclosed
from fl_cmi.ensemble import mean_logits
from fl_cmi.federated.method import Visit
from fl_cmi.federated.moments import LayerMoments
from fl_cmi.flower.failure import ClientFailure
from fl_cmi.flower.receipt import Receipt
from fl_cmi.flower.records import pack_update
from fl_cmi.models.lenet import LeNet
from fl_cmi.moments import MOMENTS, has_moments, layer_moments, moments_distance, moments_of, remember
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.sides import ServerSide
from fl_cmi.simulate import run
from fl_cmi.synthesis.terms.moments import Moments
from fl_cmi.synthesis.terms.term import look
from fl_cmi.types import ConfigError

WIDTH, HEIGHT, ACROSS = 3, 2, 3


def layer(seed: int = 0) -> nn.BatchNorm2d:
    """A double-precision layer with a made-up memory."""
    made = nn.BatchNorm2d(WIDTH).double()
    assert made.running_mean is not None and made.running_var is not None
    made.running_mean.copy_(torch.randn(WIDTH, generator=rng(seed)))
    made.running_var.copy_(torch.rand(WIDTH, generator=rng(seed + 1)) + 0.5)
    return made


def inputs(number: int = 4, seed: int = 5) -> Tensor:
    return torch.randn(number, WIDTH, HEIGHT, ACROSS, dtype=torch.float64, generator=rng(seed))


def naive(bn: nn.BatchNorm2d, f: Tensor) -> Tensor:
    """The two sums, number by number."""
    assert bn.running_mean is not None and bn.running_var is not None
    found = torch.zeros(2, *f.shape[1:], dtype=f.dtype)
    for b in range(len(f)):
        for d in range(WIDTH):
            for h in range(HEIGHT):
                for w in range(ACROSS):
                    z = (f[b, d, h, w] - bn.running_mean[d]) / (bn.running_var[d] + bn.eps).sqrt()
                    found[0, d, h, w] += z / len(f)
                    found[1, d, h, w] += z**2 / len(f)
    return found


def with_memory(bn: nn.BatchNorm2d, f: Tensor) -> nn.BatchNorm2d:
    """The layer, remembering the moments of f."""
    remember(nn.Sequential(bn), {"0": naive(bn, f)})
    return bn


def test_moments_equal_the_loops() -> None:
    bn, f = layer(), inputs()
    torch.testing.assert_close(layer_moments(bn, f), naive(bn, f), rtol=0.0, atol=1e-12)


def test_layout_in_memory_makes_no_difference() -> None:
    bn, f = layer(), inputs()
    there = layer_moments(bn, f.to(memory_format=torch.channels_last))
    torch.testing.assert_close(there, layer_moments(bn, f), rtol=0.0, atol=1e-12)


def test_distance_equals_the_loops() -> None:
    found, total = {}, 0.0
    for seed in (0, 20):
        bn, own, f = layer(seed), inputs(6, seed + 1), inputs(4, seed + 2)
        was, now = naive(bn, own).flatten().tolist(), naive(bn, f).flatten().tolist()
        total += (sum((a - b) ** 2 for a, b in zip(was, now, strict=True)) / (HEIGHT * ACROSS)) ** 0.5
        found[with_memory(bn, own)] = f
    assert moments_distance(found).item() == pytest.approx(total, abs=1e-10)


def test_distance_is_zero_for_the_same_images_in_any_order() -> None:
    f = inputs()
    found = {with_memory(layer(), f): f.flip(0)}
    assert moments_distance(found).item() < 1e-12


def test_distance_sees_what_batch_norm_does_not() -> None:
    """The same numbers of each channel at other places: batch norm's statistics agree."""
    f = inputs()
    bn = with_memory(layer(), f)
    bn.running_mean, bn.running_var = f.mean((0, 2, 3)), f.var((0, 2, 3), unbiased=False)
    with_memory(bn, f)
    turned = {bn: f.flip(3)}
    assert statistics_distance(turned).item() < 1e-6
    assert moments_distance(turned).item() > 0.1


def test_a_model_of_any_scale_has_a_finite_distance() -> None:
    """As batch norm's statistics have: one bad client must not end a run by an overflow."""
    bn, f = nn.BatchNorm2d(WIDTH), inputs().float().requires_grad_()
    remember(nn.Sequential(bn), {"0": layer_moments(bn, f).detach()})
    distance = moments_distance({bn: 1e12 * f})
    assert distance.isfinite()
    assert torch.autograd.grad(distance, [f])[0].isfinite().all()


def test_gradient_equals_finite_differences() -> None:
    bn = with_memory(layer(), inputs(6, seed=9))

    def distance(f: Tensor) -> Tensor:
        found: Seen = {bn: f}
        return moments_distance(found)

    assert torch.autograd.gradcheck(distance, [inputs().requires_grad_()])


def test_gradient_is_finite_where_moments_match() -> None:
    f = inputs().requires_grad_()
    bn = layer()
    remember(nn.Sequential(bn), {"0": layer_moments(bn, f).detach()})
    (gradient,) = torch.autograd.grad(moments_distance({bn: f}), [f])
    assert gradient.isfinite().all()


def test_batches_of_any_size_give_the_same_moments() -> None:
    model, x = network(), pixels(10)
    whole = moments_of(model, [x])
    for name, value in moments_of(model, x.split([4, 5, 1])).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)
    assert model.training  # `network` comes in training


def test_remembering_changes_neither_state_nor_answers() -> None:
    model = network().eval()
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, pixels(4)
    answers = model(x)
    remember(model, moments_of(model, [x]))
    assert has_moments(model)
    assert before.keys() == model.state_dict().keys()
    torch.testing.assert_close(model(x), answers, rtol=0.0, atol=0.0)
    assert has_moments(copy.deepcopy(model))
    assert not has_moments(network())
    assert not has_moments(LeNet(TASK.shape, TASK.num_classes, TASK.mean, TASK.std))


def visit(number: int = 9) -> Visit:
    return Visit(network().eval(), images(number), {}, {}, {}, 1, rng(), torch.device("cpu"))


def test_a_client_sends_the_moments_of_its_images() -> None:
    at = visit()
    sent = LayerMoments(batch_size=4, least=9).begin(at).finish().sent
    assert sent.keys() == {MOMENTS}
    model = at.model
    with observe(model) as seen:
        model(at.images.pixels())
    names = {module: name for name, module in model.named_modules()}
    for bn, f in seen.items():
        found = sent[MOMENTS][names[bn]]
        torch.testing.assert_close(found, layer_moments(bn, f).detach(), rtol=1e-5, atol=1e-5)
    assert len(sent[MOMENTS]) == len(batch_norm_layers(model))
    examples = LayerMoments().records(network(), TASK)[MOMENTS]
    assert {k: v.shape for k, v in examples.items()} == {k: v.shape for k, v in sent[MOMENTS].items()}


@pytest.mark.parametrize("key", ["batch_size", "least"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_a_setting_that_cannot_be_is_a_users_mistake(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"strategy\.client\.{key}"):
        LayerMoments(**{key: value})


def test_a_client_with_few_images_refuses() -> None:
    with pytest.raises(ValueError, match=r"it has 9 images, fewer than strategy\.client\.least=10"):
        LayerMoments(least=10).begin(visit())


@pytest.mark.usefixtures("without_pictures")
def test_a_small_client_is_told_before_any_trains(tmp_path: Path) -> None:
    options = [*TINY, "method=fed_cmi_moments", "strategy.client.least=500"]
    with pytest.raises(
        ConfigError, match=r"strategy\.client\.least=500: at most \d+, because client \d has so few"
    ):
        run(compose_config(options), tmp_path / "fail")
    assert not (tmp_path / "fail").exists()
    with pytest.raises(ClientFailure):  # one after the other is dropped, and none is left
        run(compose_config([*options, "on_client_failure=drop"]), tmp_path / "drop")


def test_the_term_is_the_mean_over_teachers() -> None:
    team, x = ensemble(make=remembering), pixels(6)
    y = torch.zeros(6, dtype=torch.int64)
    seen = look(team, None, x, y, TASK)
    own = [moments_distance(found) for found in seen.seen]
    torch.testing.assert_close(Moments()(seen), torch.stack(own).mean())
    Moments().check(team)


def test_teachers_without_moments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"client 0 sends no moments.*strategy=fed_cmi_moments"):
        Moments().check(ensemble())
    with pytest.raises(ConfigError, match=r"sends no moments"):
        Moments(missing="skip").check(ensemble())
    with pytest.raises(ConfigError, match=r"missing=some: refuse or skip"):
        Moments(missing="some")  # type: ignore[arg-type]


def test_teachers_without_batch_norm_are_refused_or_left_out() -> None:
    def make(k: int) -> nn.Module:
        if k == 1:
            return LeNet(TASK.shape, TASK.num_classes, TASK.mean, TASK.std)
        return remembering(k)

    team, y = ensemble(make=make), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(
        ConfigError, match=r"client 10's model \(LeNet\) has no batch norm; skip such clients"
    ):
        Moments().check(team)
    term = Moments(missing="skip")
    term.check(team)
    seen = look(team, None, pixels(6), y, TASK)
    own = [moments_distance(found) for found in seen.seen if found]
    assert len(own) == 2
    torch.testing.assert_close(term(seen), torch.stack(own).mean())
    alone = look(team.only(1), None, pixels(6), y, TASK)
    assert term(alone).item() == 0.0


TINY = (
    "partition=iid",
    "data=synthetic",
    "num_clients=3",
    "backend=local",
    "local.epochs=1",
    "model.width=4",
    "server_threads=1",
    "schedule.batches=3",
    "schedule.steps=3",
    "distiller.recalibrate=64",
    "synthesizer.inversion.steps=2",
    "synthesizer.inversion.source.generator.width=2",
)


@pytest.mark.usefixtures("without_pictures")
def test_a_run_counts_and_declares_them(tmp_path: Path) -> None:
    told = {
        name: run(compose_config([*TINY, f"method={method}"]), tmp_path / name)
        for name, method in (("with", "fed_cmi_moments"), ("without", "fed_cmi_settled"))
    }
    phrases = [phrase for phrase in told["with"]["disclosed"] if "mean image" in phrase]
    assert len(phrases) == 1
    assert not any("mean maps" in phrase for phrase in told["without"]["disclosed"])
    numbers = 2 * (4 * 8 * 8 + 8 * 4 * 4 + 16 * 4 * 4)  # two maps a channel; images of 8 x 8, halved once
    assert f"{numbers:,} numbers" in phrases[0]
    more = told["with"]["bytes"]["up"] - told["without"]["bytes"]["up"]
    assert 3 * 4 * numbers < more < 1.5 * 3 * 4 * numbers
    first = [client["accuracy"] for client in told["with"]["clients"]]
    assert first == [client["accuracy"] for client in told["without"]["clients"]]  # plain training


@pytest.mark.usefixtures("without_pictures")
def test_clients_that_send_them_are_remembered_with_them(tmp_path: Path) -> None:
    options = [*TINY, "method=fed_cmi_moments", f"teacher_cache={tmp_path / 'cache'}"]
    first, again = (run(compose_config(options), tmp_path / name) for name in "ab")
    assert (first["teacher_cache"], again["teacher_cache"]) == ("stored", "hit")
    for key in ("digest", "bytes", "clients"):
        assert first[key] == again[key]


def side_of(*options: str) -> ServerSide:
    """What the server of a run with these options knows."""
    config = compose_config([*TINY, *options])
    return server_side(config, dataset(config), Progress(quiet=True), MetricsLog(Path(os.devnull)))


def received(change: Callable[[dict[str, Tensor]], object] | None) -> str | None:
    """What a server finds wrong with a client whose moments are changed so, or left out."""
    side = side_of("method=fed_cmi_moments")
    update = side.untrained(1, torch.ones(side.task.num_classes, dtype=torch.int64))
    extra = {MOMENTS: dict(update.extra[MOMENTS])}
    if change is None:
        extra = {}
    else:
        change(extra[MOMENTS])
    sent = replace(update, num_examples=side.task.num_classes, extra=extra)
    return Receipt(side)(1, pack_update(sent, {}))


def test_moments_that_do_not_fit_are_refused() -> None:
    assert received(lambda moments: None) is None
    assert received(None) == "its record moments is missing"
    name = "norms.0"
    assert "norms.0 has the shape" in str(received(lambda m: m.update({name: m[name][:, :1]})))
    assert "norms.0 is missing" in str(received(lambda m: m.pop(name)))
    assert "norms.0 is not finite" in str(received(lambda m: m.update({name: m[name] / 0})))


def test_what_a_method_does_not_ask_for_is_left_alone() -> None:
    """Any client may call a record by this name; it must not reach the teachers."""
    side = side_of("method=fed_cmi_settled")
    update = replace(side.untrained(0, None), extra={MOMENTS: {"nonsense": torch.zeros(1)}})
    assert not has_moments(side.teacher(update).model)


def test_each_architecture_tells_its_own_number_of_maps() -> None:
    nodes = [f"{{_target_:fl_cmi.models.convnet.ConvNet,_partial_:true,width:{width}}}" for width in (2, 4)]
    architectures = f"teachers.architectures=[{','.join(nodes)}]"
    side = side_of("method=fed_cmi_moments", "local.start=scratch", architectures)
    phrases = disclosed([], side.untrained_ensemble(mean_logits), side)
    told = [phrase.split("(")[1] for phrase in phrases if "mean image" in phrase]
    assert told == ["640 numbers)", "1,280 numbers)"]


@pytest.mark.usefixtures("without_pictures")
def test_layers_in_bfloat16_are_compared_in_float32(tmp_path: Path) -> None:
    told = run(compose_config([*TINY, "method=fed_cmi_moments", "precision=fast"]), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["moments"] for row in rows if row["event"] == "synthesis"]
    assert losses and all(0 < loss < 1e3 for loss in losses)
    assert told["student"]["accuracy_last"] > 0


@pytest.mark.usefixtures("without_pictures")
def test_a_run_that_was_cut_goes_on_with_them(tmp_path: Path) -> None:
    config = compose_config([*TINY, "method=fed_cmi_moments", "checkpoint.every=1"])
    whole = run(config, tmp_path / "whole")
    assert cut_off(config, tmp_path / "cut", 4)  # the beginning, the clients, two batches
    again = run({**config, "resume": str(tmp_path / "cut")}, tmp_path / "cut")
    assert (again["digest"], again["bytes"]) == (whole["digest"], whole["bytes"])
