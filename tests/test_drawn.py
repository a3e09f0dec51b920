"""Drawn teachers: what is right on average over all draws, what is too large, and what is refused.

The averages are over every set of teachers that can be drawn, one by one, in float64.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import torch
from test_simulate import simulate
from tiny import COUNTS, SHAPE, TASK, contrast, ensemble, inversion, network, pixels, rng
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.checks import check_drawn
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
from fl_cmi.synthesis.drawn import MEANS, draw
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.activation import Activation
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.batch_norm_kl import BatchNormKL
from fl_cmi.synthesis.terms.batch_norm_memory import BatchNormMemory
from fl_cmi.synthesis.terms.delayed import Delayed
from fl_cmi.synthesis.terms.exp_increment import ExpIncrement
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look, Term, look
from fl_cmi.types import ConfigError

FOUR = ((2, 1, 0, 3), (0, 6, 1, 2), (3, 3, 5, 0), (40, 1, 1, 1))
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def team(rule: Combine = mean_logits) -> Ensemble:
    return ensemble(FOUR, rule, lambda k: network(k).double())


def images() -> Tensor:
    return pixels(6, seed=5).double().requires_grad_()


def drawn(whole: Ensemble, number: int) -> Iterator[Ensemble]:
    """Every ensemble that can be drawn."""
    for positions in combinations(range(len(whole)), number):
        yield whole.some(positions, whole.combine)


def mean_of(quantity: Callable[[Look], Tensor], whole: Ensemble, number: int, x: Tensor) -> Tensor:
    """Of all draws."""
    found = [quantity(look(some, None, x, Y, TASK)) for some in drawn(whole, number)]
    return sum(found, torch.zeros((), dtype=x.dtype)) / len(found)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("rule", "linear"),
    [(mean_logits, lambda t: t), (prior_corrected_logits, lambda t: t), (mean_probs, torch.exp)],
)
def test_what_drawn_teachers_say_is_right_on_average(
    rule: Combine, linear: Callable[[Tensor], Tensor], number: int
) -> None:
    whole, x = team(rule), images()
    expected = linear(whole(x))
    found = mean_of(lambda seen: linear(seen.teacher), whole, number, x)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    weight = torch.randn(expected.shape, dtype=x.dtype, generator=rng())
    slopes = [torch.autograd.grad((weight * some).sum(), x)[0] for some in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("rule", [by_num_examples, by_energy, by_class_counts, majority])
def test_other_rules_are_not(rule: Combine) -> None:
    whole, x = team(rule), images()
    found = mean_of(lambda seen: seen.teacher.softmax(dim=1), whole, 2, x)
    assert (found - whole(x).softmax(dim=1)).abs().max() > 1e-5
    assert (mean_of(lambda seen: seen.teacher, whole, 2, x) - whole(x)).abs().max() > 1e-5


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("term", [BatchNorm(), BatchNormKL(), Activation()])
def test_terms_over_teachers_are_right_on_average(term: Term, number: int) -> None:
    whole, x = team(), images()
    expected, found = term(look(whole, None, x, Y, TASK)), mean_of(term, whole, number, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    slopes = [torch.autograd.grad(some, x)[0] for some in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("term", [BatchNorm(over_clients="sum"), BatchNormMemory(over_clients="sum")])
def test_sums_over_teachers_are_not(term: Term) -> None:
    whole, x = team(), images()
    found = mean_of(term, whole, 2, x)
    torch.testing.assert_close(2 * found, term(look(whole, None, x, Y, TASK)))


def test_the_spread_is_that_of_the_formula() -> None:
    whole, x = team(), images().detach()
    each = whole.logits(x)
    for number in (1, 2, 3, 4):
        means = torch.stack([some(x) for some in drawn(whole, number)])
        expected = (4 - number) / (number * 3) * each.var(dim=0, correction=0)
        torch.testing.assert_close(means.var(dim=0, correction=0), expected, rtol=1e-9, atol=1e-12)


def test_the_classification_term_is_too_large_the_less_so_the_more_are_drawn() -> None:
    for rule in MEANS:
        whole, x = team(rule), images()
        losses = [mean_of(OneHot(), whole, number, x).item() for number in (1, 2, 3, 4)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > losses[1] > losses[2] > losses[3]
        assert losses[3] == pytest.approx(F.cross_entropy(whole(x), Y).item(), rel=1e-12)


def test_every_set_is_drawn_as_often() -> None:
    whole, stream, sets, number = ensemble(FOUR), rng(), Counter[tuple[int, ...]](), 3000
    for _ in range(number):
        sets[tuple(draw(whole, 2, stream).clients)] += 1
    assert set(sets) == set(combinations((0, 10, 20, 30), 2))
    # Five standard deviations of a share of 1/6.
    assert all(abs(times - number / 6) < 5 * (number * 5 / 36) ** 0.5 for times in sets.values())


@pytest.mark.parametrize("number", [3, 8])
@pytest.mark.parametrize("rule", MEANS)
def test_all_of_them_are_all_of_them(rule: Combine, number: int) -> None:
    """Bit by bit, and the random stream is none the wiser."""
    whole, student = ensemble(((2, 1, 0, 3), (0, 6, 1, 2), (3, 3, 5, 0)), rule), network(9)
    found, expected = (
        Joint(inversion(), batch_size=6, teachers=m)(whole, student, TASK, rng(4)) for m in (number, None)
    )
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)
    assert found.losses == expected.losses


def test_a_batch_keeps_its_teachers_and_costs_what_they_cost() -> None:
    whole, steps = ensemble(FOUR), 5
    before = whole.passes
    made = Joint(inversion(steps=steps), batch_size=6, teachers=2)
    made.check(whole)
    first = made(whole, network(9), TASK, rng(4))
    assert whole.passes - before == 2 * steps
    assert torch.equal(first.x, made_again(whole, 4))
    assert not torch.equal(first.x, made_again(whole, 5))
    # All steps are those of one pair of teachers.
    y = Joint(inversion(), batch_size=6).draw(torch.arange(4), stream := rng(4))
    pair = draw(whole, 2, stream)
    assert len(pair) == 2
    assert torch.equal(inversion(steps=steps)(pair, network(9), y, TASK, stream).x, first.x)


def made_again(whole: Ensemble, seed: int) -> Tensor:
    return Joint(inversion(steps=5), batch_size=6, teachers=2)(whole, network(9), TASK, rng(seed)).x


def test_labels_are_those_of_all_clients_and_by_all() -> None:
    whole = ensemble(COUNTS)
    made = Joint(inversion(steps=1), batch_size=64, teachers=1)(whole, network(9), TASK, rng())
    assert set(made.y.tolist()) == {0, 1, 3}
    chosen = Joint(inversion(steps=1), batch_size=6, labels="ensemble", teachers=1)
    found = chosen(whole, network(9), TASK, rng())
    assert torch.equal(found.y, whole.label(found.x).argmax(dim=1))
    assert found.x.shape == (6, *SHAPE)


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "2", "all"])
def test_numbers_that_are_none(number: object) -> None:
    with pytest.raises(
        ConfigError, match=rf"^synthesizer.teachers={str(number).lower()}: an integer >= 1, or null"
    ):
        Joint(inversion(), teachers=number)  # type: ignore[arg-type]


def test_no_more_than_a_round_has() -> None:
    for number in (None, 1, 5):
        check_drawn({"synthesizer": {"teachers": number}}, 5)
    check_drawn({"synthesizer": {}}, 5)
    with pytest.raises(
        ConfigError, match=r"^synthesizer.teachers=6: an integer from 1 to 5, the number of teach"
    ):
        check_drawn({"synthesizer": {"teachers": 6}}, 5)


@pytest.mark.parametrize(
    "rule", [by_num_examples, partial(by_energy, temperature=1.0), by_class_counts, majority]
)
def test_rules_that_weigh_teachers_are_refused(rule: Combine) -> None:
    name = rule.func.__name__ if isinstance(rule, partial) else rule.__name__  # type: ignore[attr-defined]
    allowed = (
        f"null, because combine={name} is no plain mean over teachers, as mean_logits, mean_probs, prior"
    )
    with pytest.raises(ConfigError, match=rf"^synthesizer.teachers=2: {allowed}"):
        Joint(inversion(terms={"bn": BatchNorm()}), teachers=2).check(ensemble(FOUR, rule))
    Joint(inversion(terms={"bn": BatchNorm()})).check(ensemble(FOUR, rule))


@pytest.mark.parametrize(
    "term",
    [
        BatchNorm(over_clients="sum"),
        BatchNorm(missing="skip"),
        BatchNormMemory(),
        Delayed(BatchNormMemory()),
        ExpIncrement(BatchNorm(over_clients="sum")),
    ],
)
def test_terms_that_need_all_are_refused(term: Term) -> None:
    with pytest.raises(ConfigError, match=r"^synthesizer.teachers=2: null, because terms.own is no mean"):
        Joint(inversion(terms={"own": term}), teachers=2).check(ensemble(FOUR))


def test_contrast_is_refused_and_all_else_is_not() -> None:
    with pytest.raises(ConfigError, match=r"^synthesizer.teachers=2: null, because the contrast"):
        Joint(inversion(contrastive=contrast()), teachers=2).check(ensemble(FOUR))
    terms: dict[str, Term] = {"late": Delayed(Adversarial(), 3), "rise": ExpIncrement(OneHot(), 5)}
    for rule in MEANS:
        Joint(inversion(terms=terms), teachers=2).check(ensemble(FOUR, partial(rule)))


@pytest.mark.usefixtures("without_pictures")
def test_a_run(tmp_path: Path) -> None:
    few = (
        "num_clients=3",
        "local.epochs=1",
        "schedule.epochs=1",
        "synthesizer=deep_inversion",
        "synthesizer.batch_size=8",
        "synthesizer.inversion.steps=2",
        "combine=mean_logits",
    )
    found = [
        simulate(tmp_path / name, *few, f"synthesizer.teachers={m}") for name, m in (("a", 1), ("b", "null"))
    ]
    assert found[0]["teacher_passes"] < found[1]["teacher_passes"]
    assert found[0]["digest"] != found[1]["digest"]
