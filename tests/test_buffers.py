"""What becomes of batch norm's statistics, under Flower's strategies and ours."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy
from small_federation import SIZES, Classifier, Federation, Played, flat, full_batches
from tiny import network, pixels
from torch import Tensor

from fl_cmi.batchnorm import batch_norm_layers, recalibrate
from fl_cmi.disclosure import disclosed
from fl_cmi.ensemble import Ensemble, mean_logits
from fl_cmi.federated.buffers import (
    Average,
    BufferPolicy,
    Drop,
    KeepLocal,
    Recalibrate,
    buffer_names,
    weighted_mean,
)
from fl_cmi.federated.feddistill import LabelLogits
from fl_cmi.federated.fedgen import LatentRegularized
from fl_cmi.federated.fedgen_server import GeneratorTraining
from fl_cmi.federated.scaffold import ControlVariates
from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.buffers import SeparateBuffers
from fl_cmi.flower.corrected import Scaffold
from fl_cmi.flower.feddistill import FedDistill
from fl_cmi.flower.fedgen import FedGen
from fl_cmi.flower.scores import Scores
from fl_cmi.models.latent import LatentGenerator
from fl_cmi.synthesis.noise import Noise
from fl_cmi.types import ConfigError, Update

BUFFERS = ("norm.num_batches_tracked", "norm.running_mean", "norm.running_var")
ALL = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}


def federation(policy: BufferPolicy, **more: Any) -> Federation:
    return Federation(Sharing(buffers=policy), full_batches(), partial(Classifier, norm=True), **more)


def play(policy: BufferPolicy, make: Callable[..., Strategy], rounds: int = 2, **more: Any) -> Played:
    made = federation(policy, **more)
    return made.play(SeparateBuffers(make(**ALL), made.server), rounds)


def buffers_of(state: dict[str, Tensor]) -> Tensor:
    return flat({name: state[name] for name in BUFFERS})


def parameters_of(state: dict[str, Tensor]) -> Tensor:
    return flat({name: value for name, value in state.items() if name not in BUFFERS})


def test_buffers_are_what_is_no_parameter() -> None:
    assert buffer_names(Classifier(norm=True)) == frozenset(BUFFERS)
    assert buffer_names(Classifier()) == frozenset()


def test_the_mean_is_by_weight_and_rounds_integers() -> None:
    states = [{"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(k)} for k in (3, 8)]
    states[1]["w"] = torch.tensor([5.0, -2.0])
    mean = weighted_mean(states, [3, 1])
    assert mean["w"].tolist() == [2.0, 1.0]
    assert mean["n"] == 4  # (9 + 8) / 4 = 4.25
    assert mean["n"].dtype == torch.int64


@pytest.mark.parametrize("make", [FedAvg, partial(FedAvgM, server_momentum=0.9), partial(FedAdam, eta=0.1)])
def test_average_is_by_examples_whatever_the_strategy(make: Callable[..., Strategy]) -> None:
    played = play(Average(), make)
    for state, updates in zip(played.states[1:], played.updates, strict=True):
        wanted = weighted_mean([{n: u.state[n] for n in BUFFERS} for u in updates], SIZES)
        torch.testing.assert_close(buffers_of(state), buffers_of(wanted))


def test_flowers_adam_would_step_them_otherwise() -> None:
    """What the option is for: as parameters, the counters and statistics take Adam's normalized step."""
    made = Federation(Sharing(), full_batches(), partial(Classifier, norm=True))
    bare = made.play(FedAdam(eta=0.1, **ALL), 1)
    split = play(Average(), partial(FedAdam, eta=0.1), 1)
    torch.testing.assert_close(parameters_of(bare.states[1]), parameters_of(split.states[1]))
    assert not torch.allclose(buffers_of(bare.states[1]), buffers_of(split.states[1]), atol=1e-2)


def test_under_fedavg_parameters_are_as_without_a_policy() -> None:
    bare = Federation(Sharing(), full_batches(), partial(Classifier, norm=True)).play(FedAvg(**ALL), 3)
    split = play(Average(), FedAvg, 3)
    torch.testing.assert_close(parameters_of(bare.states[3]), parameters_of(split.states[3]))
    assert bare.grid is not None
    assert split.grid is not None
    assert bare.grid.bytes_up == split.grid.bytes_up


def test_kept_ones_go_on_with_their_client_and_are_not_sent() -> None:
    played = play(KeepLocal(), FedAvg, rounds=4, clients_per_round=2)
    bare = Federation(Sharing(), full_batches(), partial(Classifier, norm=True), clients_per_round=2).play(
        FedAvg(**ALL), 4
    )
    visits: dict[int, list[int]] = {}
    for update in (update for round_ in played.updates for update in round_):
        assert not set(BUFFERS) & update.shared.keys()
        visits.setdefault(update.client, []).append(int(update.state["norm.num_batches_tracked"]))
    assert any(len(counts) > 1 for counts in visits.values())
    assert all(counts == [2 * (k + 1) for k in range(len(counts))] for counts in visits.values())
    assert all(torch.equal(buffers_of(s), buffers_of(played.states[0])) for s in played.states)
    assert played.grid is not None
    assert bare.grid is not None
    payload = sum(len(n) + 128 for n in BUFFERS) + 2 * 3 * 4 + 8
    assert bare.grid.bytes_up - played.grid.bytes_up == 8 * payload
    assert bare.grid.bytes_down - played.grid.bytes_down == 8 * payload


def test_dropped_ones_start_anew_in_every_round() -> None:
    played = play(Drop(), FedAvg, rounds=3)
    for update in (update for round_ in played.updates for update in round_):
        assert not set(BUFFERS) & update.shared.keys()
        assert update.state["norm.num_batches_tracked"] == 2
    assert torch.equal(buffers_of(played.states[3]), buffers_of(played.states[0]))


def test_recalibration_is_the_plain_mean_of_batch_statistics() -> None:
    model = network()
    seen: list[Tensor] = []
    layer = batch_norm_layers(model)[0]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.eval()
    batches = [pixels(6, seed) for seed in (1, 2, 3)]
    recalibrate(model, batches)
    handle.remove()
    wanted = torch.stack([f.mean(dim=(0, 2, 3)) for f in seen]).mean(dim=0)
    torch.testing.assert_close(layer.running_mean, wanted)
    wanted = torch.stack([f.transpose(0, 1).flatten(1).var(dim=1) for f in seen]).mean(dim=0)
    torch.testing.assert_close(layer.running_var, wanted)
    assert layer.num_batches_tracked == 3
    assert layer.momentum == 0.1
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_server_recalibrates_on_what_it_makes() -> None:
    made = Federation(Sharing(buffers=Recalibrate(Noise(8), batches=2)), full_batches(), lambda: SmallConv())
    played = made.play(SeparateBuffers(FedAvg(**ALL), made.server), 2)
    again = made.play(SeparateBuffers(FedAvg(**ALL), made.server), 2)
    assert torch.equal(flat(played.states[2]), flat(again.states[2]))
    assert played.states[2]["norm.num_batches_tracked"] == 2, "batches of noise, not of clients"
    assert played.updates[1][0].shared.keys() == played.states[0].keys()
    with pytest.raises(ConfigError, match=r"^buffers\.batches=0"):
        Recalibrate(Noise(8), batches=0)


class SmallConv(torch.nn.Module):
    """One convolution with batch norm, for layers that are found by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.classifier = torch.nn.Linear(3, 3)
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters()):
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k))
                parameter.copy_(drawn)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.norm(self.conv(x)).mean(dim=(2, 3)))
        return found


def test_our_strategies_take_the_policies_too() -> None:
    method = ControlVariates()
    made = Federation(Sharing(method, KeepLocal()), full_batches(), partial(Classifier, norm=True))
    played = made.play(SeparateBuffers(Scaffold(method, made.server, 4), made.server), 3)
    assert torch.equal(buffers_of(played.states[3]), buffers_of(played.states[0]))
    assert not torch.equal(parameters_of(played.states[3]), parameters_of(played.states[0]))


def test_strategies_without_an_average_refuse() -> None:
    method = LabelLogits()
    made = Federation(Sharing(method, Average()), full_batches(start="own"))
    with pytest.raises(ConfigError, match=r"^buffers=Average: null, because FedDistill does not average"):
        SeparateBuffers(FedDistill(method, made.server), made.server)


@pytest.mark.parametrize("policy", [Average(), Recalibrate(Noise(8)), Drop()])
def test_what_never_leaves_the_clients_cannot_be_merged(policy: BufferPolicy) -> None:
    """FedGen's shared head: the server must not touch what only the report has; `keep_local` says the same."""
    method = LatentRegularized(partial(LatentGenerator, width=4, num_noise=2), share="head")

    def wrapped(policy: BufferPolicy) -> SeparateBuffers:
        made = Federation(Sharing(method, policy), full_batches(), partial(Classifier, norm=True))
        training = GeneratorTraining(partial(torch.optim.Adam, lr=0.01), steps=2, batch_size=4)
        return SeparateBuffers(FedGen(method, training, made.server), made.server)

    with pytest.raises(
        ConfigError, match=r"^buffers=\w+: null or keep_local, because clients of this FedGen"
    ):
        wrapped(policy)
    wrapped(KeepLocal())


def test_buffers_stay_where_training_begins_with_the_servers_model() -> None:
    own, normed = full_batches(start="own"), Classifier(norm=True)
    for policy in (KeepLocal(), Drop()):
        with pytest.raises(ConfigError, match=r"^local\.start=own: broadcast, because buffers="):
            Sharing(buffers=policy).check(own, normed)
        Sharing(buffers=policy).check(full_batches(), normed)
        Sharing(buffers=policy).check(own, Classifier())
    Sharing(buffers=Average()).check(own, normed)


def test_scores_are_taken_where_the_model_is() -> None:
    """With private buffers a client is scored with its own ones; one that never came has the initial ones."""
    made = federation(KeepLocal(), clients_per_round=2)
    side = made.server
    played = made.play(SeparateBuffers(FedAvg(**ALL), side), 1)
    slices = [side.test.subset(torch.arange(5 * k, 5 * k + 5)) for k in range(4)]
    scores = Scores(side, own_tests=slices)
    scores.remember(played.updates[0])
    assert len(scores.models(played.states[1], played.updates[0])) == 2
    found = scores(played.states[1], played.updates[0])
    right: list[Tensor] = []
    for client in range(4):
        own = {u.client: u.state for u in played.updates[0]}.get(client, played.states[0])
        model = Classifier(norm=True)
        model.load_state_dict({**played.states[1], **{name: own[name] for name in BUFFERS}})
        images = side.test
        hits = (model.eval()(images.pixels()).argmax(dim=1) == images.y).double()
        right.append(hits)
    taking = [update.client for update in played.updates[0]]
    assert found["accuracy"] == pytest.approx(float(sum(right[k].mean() for k in taking) / 2))
    pooled = sum(right[k][5 * k : 5 * k + 5].sum() for k in range(4)) / 20
    assert found["own_tests"] == pytest.approx(float(pooled))


def test_statistics_are_told_of_where_only_some_clients_have_them() -> None:
    def mixed(client: int) -> torch.nn.Module:
        convolution = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
        return convolution if client else Classifier()

    side = federation(BufferPolicy(), mixed=mixed).server
    updates = [Update(k, 5, None, side.build(k).state_dict()) for k in range(3)]
    told = disclosed(updates, Ensemble([side.teacher(update) for update in updates], mean_logits), side)
    assert "batch-norm statistics of its images (0 to 1 layers, among the buffers)" in told


def test_where_nothing_is_private_own_slices_are_scored_as_the_test_set_is() -> None:
    """By the strategy's predictor where it has one, and by the global model whatever network a client trains."""
    mixed = federation(BufferPolicy(), mixed=lambda k: Classifier(width=3 + k % 2))
    constant = torch.nn.Linear(4, 3)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    side, state = mixed.server, Classifier(norm=True, seed=4).state_dict()
    slices = [side.test.subset(torch.arange(5 * k, 5 * k + 5)) for k in range(4)]
    for predictor in (None, lambda: torch.nn.Sequential(torch.nn.Flatten(), constant)):
        found = Scores(side, predictor, own_tests=slices)(state, [])
        assert found["own_tests"] == pytest.approx(found["accuracy"]), "the slices make up the test set"
    assert found["accuracy"] == pytest.approx(float((side.test.y == 1).double().mean()))
