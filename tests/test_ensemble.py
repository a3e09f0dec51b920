"""The ensemble: frozen whatever happens around it, and combined as the formulas say."""

import math

import pytest
import reference
import torch
from tiny import COUNTS, ensemble, network, pixels, rng
from torch import Tensor, nn

from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.ensemble import (
    Combine,
    Ensemble,
    by_class_counts,
    by_energy,
    by_num_examples,
    majority,
    mean_logits,
    mean_probs,
    prior_corrected_logits,
)
from fl_cmi.models.lenet import LeNet
from fl_cmi.types import ConfigError, Teacher

RULES = [
    mean_logits,
    mean_probs,
    by_energy,
    by_num_examples,
    by_class_counts,
    prior_corrected_logits,
    majority,
]
PROBABILITIES = [mean_probs, by_energy, by_class_counts, majority]
OWNED = ((9, 1, 0, 3), (0, 6, 1, 2), (3, 3, 0, 0))
"""Like COUNTS, but every class has an owner."""


def teacher_logits(seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(3, 6, 4, dtype=torch.float64, generator=rng(seed))


@pytest.mark.parametrize("rule", RULES)
def test_rule_equals_the_loops(rule: Combine) -> None:
    team, logits = ensemble(OWNED), teacher_logits()
    expected = reference.combined(rule.__name__, logits, OWNED, [sum(row) for row in OWNED])  # type: ignore[attr-defined]
    # Weights and log priors are kept in single precision.
    torch.testing.assert_close(
        rule(logits, team), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rule", PROBABILITIES)
def test_softmax_gives_the_averaged_probabilities_back(rule: Combine) -> None:
    found = rule(teacher_logits(), ensemble(OWNED)).exp().sum(dim=1)
    torch.testing.assert_close(found, torch.ones(6, dtype=torch.float64), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_one_teacher_alone_is_itself(rule: Combine) -> None:
    """Up to a shift; but the majority of one is only his vote, and corrected logits lose his prior."""
    team, logits = ensemble(((5, 5, 5, 5),)), teacher_logits()[:1]
    found, own = rule(logits, team), logits[0]
    assert torch.equal(found.argmax(dim=1), own.argmax(dim=1))
    if rule is not majority:
        torch.testing.assert_close(found.softmax(dim=1), own.softmax(dim=1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_value_and_gradient_stay_finite_for_teachers_who_are_sure(rule: Combine, scale: float) -> None:
    logits = teacher_logits(scale=scale).float().requires_grad_()
    found = rule(logits, ensemble(COUNTS))
    assert found.log_softmax(dim=1).max(dim=1).values.isfinite().all()
    loss = torch.nn.functional.cross_entropy(found, torch.tensor([0, 1, 3, 0, 1, 3]))
    assert loss.isfinite()
    if loss.requires_grad:
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_by_class_counts_lets_the_owner_judge() -> None:
    """Class 3 belongs to the second client alone: the other two are sure of it, and that does not count."""
    logits = torch.zeros(3, 1, 4)
    logits[0, 0, 3] = logits[2, 0, 3] = 10.0
    logits[1, 0, 1] = 10.0
    team = ensemble(COUNTS)
    assert mean_probs(logits, team).argmax() == 3
    assert by_class_counts(logits, team).argmax() == 1


@pytest.mark.parametrize("rule", [mean_probs, by_class_counts])
def test_the_gradient_lives_where_the_owners_are_sure_of_another_class(rule: Combine) -> None:
    """In single precision 1 - p is 0 here; the way to a class must not be cut off by a floor."""
    logits = torch.zeros(3, 1, 4)
    logits[:, :, 0] = 60.0
    logits.requires_grad_()
    loss = torch.nn.functional.cross_entropy(rule(logits, ensemble(COUNTS)), torch.tensor([3]))
    assert loss.item() == pytest.approx(60.0, abs=0.5)
    # CE = t_0 - t_3 of whoever counts, so the gradient has length one on either class.
    gradient = torch.autograd.grad(loss, logits)[0].sum(dim=(0, 1))
    torch.testing.assert_close(gradient[[0, 3]], torch.tensor([1.0, -1.0]), rtol=0.0, atol=1e-4)


def test_by_class_counts_gives_a_class_without_owner_nothing() -> None:
    p = by_class_counts(teacher_logits(), ensemble(COUNTS)).exp()
    assert p[:, 2].max() < 1e-9
    torch.testing.assert_close(p.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_equal_counts_make_by_class_counts_the_mean() -> None:
    team, logits = ensemble(((2, 2, 2, 2),) * 3), teacher_logits()
    torch.testing.assert_close(by_class_counts(logits, team), mean_probs(logits, team), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("saturation", [math.inf, 20.0, 0.5])
def test_saturated_counts_equal_the_loops(saturation: float) -> None:
    """`n / (1 + n / s)` in place of n; with infinite s, the counts themselves."""
    weights = [[n / (1 + n / saturation) for n in row] for row in OWNED]
    logits = teacher_logits()
    expected = torch.tensor(reference.combined("by_class_counts", logits, weights, [1, 1, 1]))
    found = by_class_counts(logits, ensemble(OWNED), saturation)
    torch.testing.assert_close(found, expected.double(), rtol=0.0, atol=1e-6)
    plain = by_class_counts(logits, ensemble(OWNED))
    assert torch.equal(found, plain) is (saturation == math.inf)


def test_little_saturation_makes_all_owners_equal() -> None:
    logits = teacher_logits()
    equal = [[int(n > 0) for n in row] for row in COUNTS]
    found = by_class_counts(logits, ensemble(COUNTS), 1e-6)
    torch.testing.assert_close(found, by_class_counts(logits, ensemble(equal)), rtol=0.0, atol=1e-5)


def test_by_energy_at_a_high_temperature_is_the_mean_and_at_a_low_one_the_most_familiar_teacher() -> None:
    logits, team = teacher_logits(), ensemble(COUNTS)
    torch.testing.assert_close(by_energy(logits, team, 1e9), mean_probs(logits, team), rtol=0.0, atol=1e-6)
    chosen = logits.logsumexp(dim=2).argmax(dim=0)
    expected = logits.log_softmax(dim=2)[chosen, torch.arange(logits.shape[1])]
    torch.testing.assert_close(by_energy(logits, team, 1e-3), expected, rtol=0.0, atol=1e-5)
    with pytest.raises(ConfigError, match="combine.temperature=0"):
        by_energy(logits, team, 0)


def test_without_counts_another_rule_may_stand_in() -> None:
    logits, team = teacher_logits(), ensemble((None, None, None))
    found = by_class_counts(logits, team, without_counts=by_energy)
    assert torch.equal(found, by_energy(logits, team))
    shared = ensemble(COUNTS)
    assert torch.equal(
        by_class_counts(logits, shared, without_counts=by_energy), by_class_counts(logits, shared)
    )


@pytest.mark.parametrize("saturation", [0, -1.0, math.nan])
def test_saturation_out_of_range_is_named(saturation: float) -> None:
    with pytest.raises(ConfigError, match="combine.saturation"):
        by_class_counts(teacher_logits(), ensemble(), saturation)


@pytest.mark.parametrize("rule", [by_class_counts, prior_corrected_logits])
def test_counts_that_clients_keep_are_asked_for_by_name(rule: Combine) -> None:
    team = ensemble((None, (1, 1, 1, 1)), rule)
    assert team.owned_classes is None
    with pytest.raises(ConfigError, match=f"share_label_counts=false.*{rule.__name__}"):  # type: ignore[attr-defined]
        team(pixels(2))


def test_forward_is_the_rule_over_the_teachers() -> None:
    team, x = ensemble(combine=mean_probs), pixels(5)
    each = team.logits(x)
    for k, teacher in enumerate(team.teachers):
        assert torch.equal(each[k], teacher.model(x))
    assert torch.equal(team(x), mean_probs(each, team))
    torch.testing.assert_close(team.label(x).exp().sum(dim=1), torch.ones(5))
    assert not team.label(x.requires_grad_()).requires_grad


def test_it_stays_in_eval_mode() -> None:
    team = ensemble()
    before = {name: value.clone() for name, value in team.state_dict().items()}
    nn.Sequential(team).train()
    team.train()
    assert not any(module.training for module in team.modules())
    team(pixels(8))
    for name, value in team.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_plain_list_would_hide_the_teachers() -> None:
    """DENSE's released code: no batch-norm layer is found, none put in eval mode, and nothing complains."""

    class PlainList(nn.Module):
        def __init__(self, models: list[nn.Module]) -> None:
            super().__init__()
            self.models = models

    plain = PlainList([network(0).train(), network(1).train()]).eval()
    assert batch_norm_layers(plain) == []
    assert all(model.training for model in plain.models)
    ours = ensemble(COUNTS[:2])
    assert ours.batch_norm_counts == [3, 3]
    assert len(batch_norm_layers(ours)) == 6
    assert not any(teacher.model.training for teacher in ours.teachers)


def test_teachers_get_no_gradient() -> None:
    team = ensemble()
    x = pixels(4).requires_grad_()
    team(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in team.parameters())


def test_a_teacher_listed_twice_is_noticed() -> None:
    model = network()
    with pytest.raises(AssertionError, match="shared"):
        Ensemble([Teacher(0, 1, None, model), Teacher(1, 1, None, model)])


def test_no_teachers_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


def test_one_client_alone_shares_its_weights_and_keeps_its_id() -> None:
    team = ensemble(first_client=5)
    alone = team.only(1)
    assert alone.teachers[0].client == 15
    assert alone.models[0] is team.models[1]
    x = pixels(3)
    torch.testing.assert_close(alone(x), team.logits(x)[1])
    assert alone.owned_classes is not None
    assert alone.owned_classes.tolist() == [1, 3]


def test_one_client_alone_stays_on_the_device() -> None:
    """The inversion runs where `num_examples_K` is."""
    alone = ensemble().to("meta").only(0)
    assert alone.num_examples_K.device.type == "meta"
    assert alone.class_counts_KC is not None
    assert alone.class_counts_KC.device.type == "meta"


def test_owned_classes_and_hooks_by_teacher() -> None:
    lenet = LeNet((1, 8, 8), 4, (0.5,), (0.25,))
    team = ensemble(make=lambda k: lenet if k == 1 else network(k))
    assert team.batch_norm_counts == [3, 0, 3]
    assert team.owned_classes is not None
    assert team.owned_classes.tolist() == [0, 1, 3]


def test_majority_is_finite_without_votes() -> None:
    logits = torch.zeros(2, 1, 3)
    logits[:, :, 1] = 1.0
    found = majority(logits, ensemble(((1, 1, 1, 1),) * 2))
    # Two teachers, three classes: (2 + .5) / 3.5 for the winner and .5 / 3.5 for the others.
    torch.testing.assert_close(found, torch.tensor([[0.5 / 3.5, 2.5 / 3.5, 0.5 / 3.5]]).log())
    assert math.isfinite(found.min())
