"""Where images come from, and who is inverted for which labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import (
    COUNTS,
    SHAPE,
    TASK,
    contrast,
    ensemble,
    generator,
    inversion,
    network,
    rng,
)

from fl_cmi.ensemble import by_class_counts
from fl_cmi.synthesis.source import GeneratorSource, TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint, PerClient
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.types import ConfigError

CPU = torch.device("cpu")


ADAM = partial(torch.optim.Adam, lr=0.01)
LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("reset", [True, False])
def test_the_generator_starts_afresh_for_each_batch_or_goes_on(reset: bool) -> None:
    source = GeneratorSource(generator, ADAM, reset)
    source.begin(TASK, LABELS, rng(1), CPU)
    assert source.generator is not None
    assert source.latents is not None
    assert source.optimizer is not None
    parameters = [p for group in source.optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(list(source.generator.parameters())) + 1
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1.0)
    weight = source.generator.project.weight
    trained, latents, optimizer = weight.detach().clone(), source.latents.detach(), source.optimizer
    source.begin(TASK, LABELS, rng(1), CPU)
    assert source.generator.training
    assert source.optimizer is not optimizer
    if reset:  # the stream starts over, and so do the weights and the latents
        torch.testing.assert_close(source.latents.detach(), latents - 1.0)
    assert torch.equal(weight, trained) is not reset
    x = source.images()
    assert x.shape == (4, *SHAPE)
    assert x.min() >= 0
    assert x.max() <= 1


def test_a_trained_generator_gets_new_latents_at_each_step_and_keeps_its_optimizer() -> None:
    source = TrainedGenerator(generator, ADAM)
    source.begin(TASK, LABELS, rng(1), CPU)
    first, second = source.images(), source.images()
    assert not torch.equal(first, second)
    assert source.generator is not None
    before = [p.detach().clone() for p in source.generator.parameters()]
    first.sum().backward()
    optimizer = source.optimizer
    source.step()
    assert any(not torch.equal(p, old) for p, old in zip(source.generator.parameters(), before, strict=True))
    assert all(p.grad is None for p in source.generator.parameters())
    source.begin(TASK, LABELS, rng(2), CPU)
    assert source.optimizer is optimizer


@pytest.mark.parametrize("train_mode", [True, False])
def test_samples_come_without_gradient_and_in_the_mode_asked_for(train_mode: bool) -> None:
    source = TrainedGenerator(generator, ADAM, sample_in_train_mode=train_mode)
    x = source.sample(TASK, 5, rng(3), CPU)
    assert x.shape == (5, *SHAPE)
    assert not x.requires_grad
    assert source.generator is not None
    assert source.generator.training is train_mode
    source.begin(TASK, LABELS, rng(1), CPU)
    assert source.generator.training


@pytest.mark.parametrize("kind", [Joint, PerClient])
def test_images_on_demand_need_a_trained_generator(kind: type[Joint] | type[PerClient]) -> None:
    with pytest.raises(ConfigError, match="source=GeneratorSource"):
        kind(inversion()).check_sample()
    team, made = ensemble(), kind(inversion(source=TrainedGenerator(generator, ADAM)), batch_size=4)
    made.check_sample()
    assert made.sample(team, TASK, 3, rng()).shape == (3, *SHAPE)
    assert made(team, network(9), TASK, rng()).x.shape == (4, *SHAPE)


def test_labels_that_nobody_owns_are_never_drawn() -> None:
    team, student = ensemble(COUNTS, by_class_counts), network(9)
    joint = Joint(inversion(steps=1), batch_size=64)
    made = joint(team, student, TASK, rng())
    assert set(made.y.tolist()) == {0, 1, 3}
    assert made.y.tolist() == sorted(made.y.tolist())
    per_client = PerClient(inversion(), batch_size=64)
    for seed in range(30):
        k, y = per_client.draw(team, 4, rng(seed))
        assert all(COUNTS[k][label] > 0 for label in y.tolist())


def test_without_counts_all_labels_are_drawn() -> None:
    team = ensemble((None, None))
    made = Joint(inversion(steps=1), batch_size=64)(team, network(9), TASK, rng())
    assert set(made.y.tolist()) == {0, 1, 2, 3}
    drawn_clients = {PerClient(inversion()).draw(team, 4, rng(seed))[0] for seed in range(20)}
    assert drawn_clients == {0, 1}
    assert set(PerClient(inversion()).draw(team, 4, rng())[1].tolist()) == {0, 1, 2, 3}


def test_per_client_draws_by_the_formula() -> None:
    """A class uniform over the owned ones, a client by its share of it, labels from its histogram."""
    team, draws, number = ensemble(COUNTS), rng(), 3000
    made = PerClient(inversion(), batch_size=4)
    clients, labels = torch.zeros(3), torch.zeros(3, 4)
    for _ in range(number):
        k, y = made.draw(team, 4, draws)
        clients[k] += 1
        labels[k] += torch.bincount(y, minlength=4)
    counts = torch.tensor(COUNTS).double()
    owned = [0, 1, 3]
    share = sum(counts[:, c] / counts[:, c].sum() for c in owned) / len(owned)
    # Five standard deviations of a binomial share.
    assert ((clients / number - share).abs() < 5 * (share * (1 - share) / number) ** 0.5).all()
    for k in range(3):
        wanted = counts[k] / counts[k].sum()
        assert ((labels[k] / labels[k].sum() - wanted).abs() < 0.04).all()


def test_joint_labels_are_uniform_over_owned_classes() -> None:
    made = Joint(inversion(steps=1, terms={"oh": OneHot()}), batch_size=3000)
    y = made(ensemble(), network(9), TASK, rng()).y
    # 1000 each, standard deviation 26.
    assert all(abs(count - 1000) < 130 for count in torch.bincount(y, minlength=4)[[0, 1, 3]].tolist())


@pytest.mark.parametrize("kind", [Joint, PerClient])
def test_a_batch_knows_its_client(kind: type[Joint] | type[PerClient]) -> None:
    team = ensemble(COUNTS, by_class_counts, first_client=5)
    made = kind(inversion(), batch_size=8)(team, network(9), TASK, rng())
    assert made.client == -1 if kind is Joint else made.client in {5, 15, 25}


def test_a_client_is_inverted_with_its_own_model_alone() -> None:
    team = ensemble()
    passes = [0, 0, 0]

    def watch(k: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            passes[k] += 1

        return count

    handles = [model.register_forward_hook(watch(k)) for k, model in enumerate(team.models)]
    made = PerClient(inversion(steps=7), batch_size=4)(team, network(9), TASK, rng())
    for handle in handles:
        handle.remove()
    assert passes == [7 if j == made.client // 10 else 0 for j in range(3)]
    assert team.passes == 7


def test_each_client_has_its_own_generator_and_bank() -> None:
    team = ensemble()
    made = PerClient(inversion(contrastive=contrast(), reset=False), batch_size=4)
    for seed in range(12):
        made(team, network(9), TASK, rng(seed))
    assert set(made.inversions) == {0, 10, 20}
    sources, contrasts = [], []
    for loop in made.inversions.values():
        assert isinstance(loop.source, GeneratorSource)
        assert loop.contrast is not None
        sources.append(loop.source.generator)
        contrasts.append(loop.contrast)
    assert len({id(source) for source in sources}) == 3
    assert sum(c.bank.written for c in contrasts) == 12 * 4
    assert all(c.bank.written > 0 for c in contrasts)
