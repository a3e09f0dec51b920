"""The terms of an inversion: against the loops, and what they need of the teachers."""

from typing import Any

import pytest
import reference
import torch
from tiny import SHAPE, TASK, ensemble, inversion, look_of, network, pixels, rng, rows
from torch import Tensor, nn

from fl_cmi.batchnorm import observe
from fl_cmi.models.lenet import LeNet
from fl_cmi.synthesis.synthesizers import Joint, PerClient
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look, look
from fl_cmi.types import ConfigError

Y = torch.tensor([0, 0, 1, 1, 3, 3])


def made_up(mask_case: bool = False) -> Look:
    teacher, student = rows(5, seed=1), rows(5, seed=2)
    if mask_case:
        student[0], student[3] = teacher[0] * 0.5, teacher[3] * 0.5
    return look_of(torch.tensor([0, 1, 2, 3, 0]), teacher, student)


@pytest.mark.parametrize("mask", ["agree", "disagree", "none"])
def test_adversarial_equals_the_loops(mask: Any) -> None:
    seen = made_up(mask_case=True)
    assert seen.student is not None
    agree = (seen.teacher.argmax(1) == seen.student.argmax(1)).sum()
    assert 0 < agree < 5
    expected = reference.adversarial(seen.teacher, seen.student, mask)
    torch.testing.assert_close(Adversarial(mask=mask)(seen), expected, rtol=0.0, atol=1e-6)


def test_adversarial_masks_add_up() -> None:
    seen = made_up(mask_case=True)
    parts = Adversarial(mask="agree")(seen) + Adversarial(mask="disagree")(seen)
    torch.testing.assert_close(parts, Adversarial(mask="none")(seen))
    assert parts < 0


def test_adversarial_of_an_equal_student_is_zero() -> None:
    teacher = rows(5, seed=1)
    assert Adversarial()(look_of(torch.zeros(5, dtype=torch.int64), teacher, teacher)).abs() < 1e-12


@pytest.mark.parametrize("mask", ["agree", "none"])
def test_gradient_of_adversarial_equals_finite_differences_on_both_sides(mask: Any) -> None:
    teacher = rows(3, seed=1)
    student = (teacher * 0.4 + 0.1 * rows(3, seed=5)).requires_grad_()
    y = torch.zeros(3, dtype=torch.int64)
    assert torch.autograd.gradcheck(
        lambda t, s: Adversarial(mask=mask)(look_of(y, t, s)), [teacher.requires_grad_(), student]
    )


def test_onehot_equals_the_loops() -> None:
    seen = made_up()
    torch.testing.assert_close(
        OneHot()(seen), reference.cross_entropy(seen.teacher, seen.y), rtol=0.0, atol=1e-6
    )
    teacher = seen.teacher.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: OneHot()(look_of(seen.y, t, None)), [teacher])


def test_batch_norm_term_is_the_mean_of_separate_clients() -> None:
    team, x = ensemble(), pixels(6)
    y = torch.zeros(6, dtype=torch.int64)
    together = BatchNorm()(look(team, None, x, y, TASK))
    alone = [BatchNorm()(look(team.only(k), None, x, y, TASK)) for k in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    assert len({round(v.item(), 6) for v in alone}) == 3
    layers = []
    for k, model in enumerate(team.models):
        with observe(model) as seen:
            model(x)
        layers = [(f.double(), bn.running_mean, bn.running_var) for bn, f in seen.items()]
        expected = reference.statistics_distance(layers)
        torch.testing.assert_close(alone[k].double(), expected, rtol=1e-5, atol=0.0)


def test_batch_norm_term_needs_batch_norm_in_every_teacher() -> None:
    lenet = LeNet(SHAPE, 4, (0.5,), (0.25,))
    team = ensemble(make=lambda k: lenet if k == 1 else network(k))
    for synthesizer in (Joint(inversion()), PerClient(inversion())):
        with pytest.raises(
            ConfigError,
            match=r"bn.weight=1.0.*client 10's model \(LeNet\) has no batch norm; skip such clients",
        ):
            synthesizer.check(team)
    alone = team.only(1)
    with pytest.raises(ConfigError, match="has no batch norm; remove the term"):
        Joint(inversion()).check(alone)
    no_bn = inversion(terms={"bn": BatchNorm(0.0), "oh": OneHot(1.0)})
    no_bn.check(team)
    assert no_bn(team, network(9), Y, TASK, rng()).x.shape == (6, *SHAPE)


def test_look_asks_the_student_only_where_a_term_does() -> None:
    class Trap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("no term asks for the student")

    inversion(terms={"oh": OneHot()})(ensemble(), Trap(), Y, TASK, rng())
    with pytest.raises(AssertionError, match="no term"):
        inversion(terms={"adv": Adversarial()})(ensemble(), Trap(), Y, TASK, rng())
