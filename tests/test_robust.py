"""Robust rules: as the loops say, harmless without bad teachers, and not to be moved far by one."""

from functools import partial

import pytest
import reference_robust as reference
import torch
from tiny import CLASSES, SHAPE, ensemble, inversion, network, pixels, rng
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.distillation.agreement_weighted import AgreementWeighted
from fl_cmi.ensemble import Combine, Ensemble, Learns, by_class_counts, mean_probs
from fl_cmi.robust import class_weights, median_probs, trimmed_probs
from fl_cmi.synthesis.synthesizers import PerClient
from fl_cmi.trust import agreement, trust_scores, trust_weights
from fl_cmi.types import ConfigError

OWNED = ((9, 1, 2, 3), (1, 6, 1, 2), (3, 3, 0, 0), (0, 2, 2, 1), (40, 1, 1, 1))
EQUAL = ((3, 3, 3, 3),) * 5
RULES: dict[str, Combine] = {
    "median": median_probs,
    "median, owners": partial(median_probs, saturation=20.0),
    "trimmed": trimmed_probs,
    "trimmed, owners": partial(trimmed_probs, saturation=20.0),
    "agreement": AgreementWeighted(),
}


def teacher_logits(teachers: int = 5, seed: int = 0, scale: float = 2.0, batch: int = 6) -> Tensor:
    return scale * torch.randn(teachers, batch, 4, dtype=torch.float64, generator=rng(seed))


@pytest.mark.parametrize("saturation", [None, 20.0])
@pytest.mark.parametrize("trim", [0.0, 0.15, 0.2, 0.4])
def test_trimmed_equals_the_loops(trim: float, saturation: float | None) -> None:
    logits = teacher_logits()
    expected = torch.tensor(reference.combined(logits, OWNED, trim, saturation), dtype=torch.float64)
    found = trimmed_probs(logits, ensemble(OWNED), trim, saturation).exp()
    # The loops cut the weight into 10,000 slices.
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-4)


@pytest.mark.parametrize("teachers", [1, 2, 3, 4, 5])
def test_the_median_is_the_median(teachers: int) -> None:
    logits = teacher_logits(teachers)
    found = median_probs(logits, ensemble(OWNED[:teachers])).exp()
    expected = logits.softmax(dim=2).quantile(0.5, dim=0)
    torch.testing.assert_close(found, expected / expected.sum(dim=1, keepdim=True), rtol=0.0, atol=1e-6)


def test_one_of_five_trimmed_is_the_mean_of_the_middle_three() -> None:
    logits = teacher_logits()
    middle = logits.softmax(dim=2).sort(dim=0).values[1:4].mean(dim=0)
    found = trimmed_probs(logits, ensemble(OWNED), 0.2).exp()
    torch.testing.assert_close(found, middle / middle.sum(dim=1, keepdim=True), rtol=0.0, atol=1e-6)


def test_without_trimming_it_is_the_mean_or_by_class_counts() -> None:
    logits, team = teacher_logits(), ensemble(OWNED)
    torch.testing.assert_close(
        trimmed_probs(logits, team, 0.0), mean_probs(logits, team), rtol=0.0, atol=1e-6
    )
    owners = by_class_counts(logits, team, 20.0)
    torch.testing.assert_close(trimmed_probs(logits, team, 0.0, 20.0), owners, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(AgreementWeighted()(logits, team), owners, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_equal_teachers_are_their_mean(rule: Combine) -> None:
    logits, team = teacher_logits(1).expand(5, -1, -1), ensemble(OWNED)
    torch.testing.assert_close(rule(logits, team), mean_probs(logits, team), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", ["median", "trimmed"])
@pytest.mark.parametrize("seed", range(5))
def test_one_bad_teacher_cannot_leave_the_range_of_the_others(name: str, seed: int) -> None:
    """Before they are made to add up to 1, results lie between the others' least and largest probabilities."""
    honest = teacher_logits(4, seed)
    bad = 200 * torch.randn(1, 6, 4, dtype=torch.float64, generator=rng(50 + seed))
    found = RULES[name](torch.cat([honest, bad]), ensemble(EQUAL)).exp()
    p = honest.softmax(dim=2)
    low, high = p.amin(dim=0), p.amax(dim=0)
    assert (found <= high / low.sum(dim=1, keepdim=True) + 1e-9).all()
    assert (found >= low / high.sum(dim=1, keepdim=True) - 1e-9).all()
    # Where the others are of one mind, he does not move it at all.
    agreed = torch.cat([honest[:1].expand(4, -1, -1), bad])
    torch.testing.assert_close(
        RULES[name](agreed, ensemble(EQUAL)), honest[0].log_softmax(dim=1), rtol=0.0, atol=1e-6
    )
    assert not torch.allclose(mean_probs(agreed, ensemble(EQUAL)), honest[0].log_softmax(dim=1), atol=0.1)


def test_trust_limits_what_a_teacher_says() -> None:
    """With weight w against K - 1 others of one mind, he gets the share w / (K - 1 + w) at most."""
    honest, rule, team = teacher_logits(1).expand(4, -1, -1), AgreementWeighted(None), ensemble(EQUAL)
    rule.load_state_dict({"by_client": {40: 0.2}})
    bad = torch.zeros(1, 6, 4, dtype=torch.float64)
    bad[:, :, 0] = 100.0
    moved = rule(torch.cat([honest, bad]), team).exp() - honest[0].softmax(dim=1)
    assert moved.abs().max() <= 0.2 / 4.2 + 1e-9


def test_trusted_counts_equal_the_loops() -> None:
    logits, rule, trust = teacher_logits(), AgreementWeighted(), [1.0, 0.2, 0.7, 1.0, 0.3]
    rule.load_state_dict({"by_client": {10 * k: w for k, w in enumerate(trust)}})
    assert rule.state_dict()["by_client"] == {10 * k: w for k, w in enumerate(trust)}
    expected = torch.tensor(reference.weighted(logits, OWNED, trust, 20.0), dtype=torch.float64)
    torch.testing.assert_close(rule(logits, ensemble(OWNED)).exp(), expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_gradient_is_right_and_finite(rule: Combine) -> None:
    logits = teacher_logits(batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: rule(z, ensemble(OWNED)), logits)
    nobodys = ((9, 1, 0, 3), (0, 6, 0, 2), (3, 3, 0, 0), (1, 1, 0, 1), (2, 0, 0, 9))
    sure = (200 * teacher_logits()).float().requires_grad_()
    found = rule(sure, ensemble(nobodys))
    loss = torch.nn.functional.cross_entropy(found, torch.tensor([0, 1, 3, 0, 1, 3]))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, sure)[0].isfinite().all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_do_without_counts(rule: Combine) -> None:
    logits = teacher_logits(3)
    found = rule(logits, ensemble((None, None, None)))
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("saturation", [None, 5.0])
def test_class_weights_equal_the_loops(saturation: float | None) -> None:
    expected = torch.tensor(reference.shares(OWNED, saturation), dtype=torch.float64)
    torch.testing.assert_close(class_weights(ensemble(OWNED), 4, saturation), expected)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: trimmed_probs(teacher_logits(), ensemble(OWNED), 0.5), r"combine\.trim=0\.5"),
        (lambda: median_probs(teacher_logits(), ensemble(OWNED), 0.0), r"combine\.saturation=0"),
        (lambda: AgreementWeighted(-1.0), r"combine\.saturation=-1"),
        (lambda: AgreementWeighted(least=1.0), r"combine\.least=1"),
        (lambda: AgreementWeighted(rest=-0.1), r"combine\.rest=-0\.1"),
        (lambda: AgreementWeighted(images=0), r"combine\.images=0"),
    ],
)
def test_what_is_out_of_range_is_named(make: type, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()


def test_agreement_equals_the_loops() -> None:
    said = torch.randint(4, (5, 30), generator=rng(1))
    know = torch.rand(5, 30, dtype=torch.float64, generator=rng(2)) * torch.tensor([1, 1, 0, 1, 1])[:, None]
    expected = torch.tensor(reference.agreement(said.tolist(), know.tolist()), dtype=torch.float64)
    torch.testing.assert_close(agreement(said, know), expected, equal_nan=True)


class Tells(nn.Module):
    """The class by the brightness of the first pixel, moved by `shift`."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.classifier = nn.Linear(1, CLASSES)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        c = ((x[:, 0, 0, 0] * CLASSES).long() + self.shift) % CLASSES
        return 10.0 * torch.nn.functional.one_hot(c, CLASSES).float()


def team_of(*shifts: int, combine: Combine = mean_probs) -> Ensemble:
    return ensemble([(20,) * CLASSES] * len(shifts), combine, lambda k: Tells(shifts[k]))


def pool_of(team: Ensemble, number: int = 64) -> Pool:
    pool, x, y = Pool(), pixels(number, shape=SHAPE), torch.arange(number) % CLASSES
    x[:, 0, 0, 0] = (y + 0.5) / CLASSES
    pool.add(x, y, team.label(x))
    return pool


def test_trust_is_what_most_of_the_others_say() -> None:
    team = team_of(0, 0, 0, 1, 1)
    scores = trust_scores(team, pool_of(team), rng())
    # Two who collude agree with each other, and are still two.
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert trust_scores(team_of(0, 0, 0, 0, 1, 1), pool_of(team), rng()) == [1.0] * 4 + [0.0] * 2
    assert trust_scores(team_of(0), pool_of(team), rng()) == [None]


def test_trust_becomes_weights() -> None:
    assert trust_weights([0.85, 0.85, 0.25, 0.1, None, 0.95], 4) == pytest.approx([1, 1, 0.2, 0.2, 1, 1])
    # Half of the median beyond chance: (.5 - .3) / .7 of the way from .2 to 1.
    assert trust_weights([0.85, 0.85, 0.55], 4)[2] == pytest.approx(0.2 + 0.8 * 0.2 / 0.7)
    assert trust_weights([0.85, 0.85, 0.55], 4, least=0.5, rest=0.0)[2] == pytest.approx(0.0)
    assert trust_weights([0.1, 0.2], 4) == [1.0, 1.0]
    assert trust_weights([None], 4) == [1.0]


def test_the_rule_learns_whom_to_trust() -> None:
    rule = AgreementWeighted()
    assert isinstance(rule, Learns)
    team = team_of(0, 0, 0, 0, 1, combine=rule)
    pool = pool_of(team)
    before = pool.tensors()["labels"].clone()
    rule.learn(team, pool, 8, 0, rng())
    torch.testing.assert_close(rule.weights(team.clients), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2]))
    assert rule.weights([1, 2, 3]).tolist() == [1.0] * 3
    after = team.label(pool.get(torch.arange(64)).x)
    aimed = pool.targets[:, None]
    assert (after.gather(1, aimed) > before.gather(1, aimed)).all()
    # Another round with other clients: what is known of those who come back stays.
    other = ensemble([(20,) * CLASSES] * 3, rule, lambda k: Tells(), first_client=100)
    rule.learn(other, pool_of(other), 8, 0, rng())
    assert rule.by_client == {0: 1.0, 10: 1.0, 20: 1.0, 30: 1.0, 40: 0.2, 100: 1.0, 110: 1.0, 120: 1.0}


def test_networks_are_scored_too() -> None:
    team = ensemble(make=lambda k: network(0 if k < 2 else 7))
    pool = Pool()
    x = pixels(8)
    pool.add(x, torch.tensor([0, 1] * 4), team.label(x))
    scores = trust_scores(team, pool, rng())
    assert all(score is not None and 0 <= score <= 1 for score in scores)
    assert scores == trust_scores(team, pool, rng())


@pytest.mark.parametrize("shared", [True, False])
def test_a_distrusted_client_is_seldom_inverted(shared: bool) -> None:
    rule = AgreementWeighted()
    team = team_of(0, 0, 0, 0, 1, combine=rule)
    if not shared:
        team.class_counts_KC = None

    def share_of_the_last() -> float:
        synthesizer = PerClient(inversion(), batch_size=4)
        return sum(synthesizer.draw(team, CLASSES, rng(seed))[0] == 4 for seed in range(2000)) / 2000

    assert share_of_the_last() == pytest.approx(1 / 5, abs=0.04)
    rule.learn(team, pool_of(team), 8, 0, rng())
    assert share_of_the_last() == pytest.approx(0.2 / 4.2, abs=0.02)


def test_a_class_is_lost_with_its_only_owner() -> None:
    """Neither the class nor its owner is drawn; where nobody has a say, everybody has."""
    rule = AgreementWeighted()
    team = ensemble([(5, 5, 0, 0), (0, 5, 5, 0), (0, 0, 0, 5)], rule)
    synthesizer = PerClient(inversion(), batch_size=4)

    def drawn() -> tuple[set[int], set[int]]:
        draws = [synthesizer.draw(team, CLASSES, rng(seed)) for seed in range(50)]
        return {k for k, _ in draws}, {int(c) for _, y in draws for c in y}

    rule.by_client = {team.clients[2]: 0.0}
    assert drawn() == ({0, 1}, {0, 1, 2})
    rule.by_client = dict.fromkeys(team.clients, 0.0)
    assert drawn() == ({0, 1, 2}, {0, 1, 2, 3})
    again = AgreementWeighted()
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again.weights(team.clients), rule.weights(team.clients))


def test_trust_follows_the_client_to_another_place() -> None:
    rule = AgreementWeighted()
    team = team_of(0, 0, 0, 0, 1, combine=rule)
    rule.learn(team, pool_of(team), 8, 0, rng())
    # The next round has as many clients, and only the last of these was there before.
    other = ensemble([(20,) * CLASSES] * 5, rule, lambda k: Tells(), first_client=40)
    assert other.say.tolist() == pytest.approx([0.2, 1.0, 1.0, 1.0, 1.0])
