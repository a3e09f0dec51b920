"""Rules of the ensemble that images cannot follow, and who refuses them."""

from functools import partial

import pytest
import torch
from tiny import CLASSES, ensemble, inversion, look_of, network, rows

from fl_cmi.compose import build, compose_config, config_folder
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.perturb import EnsembleSign
from fl_cmi.ensemble import majority, mean_probs
from fl_cmi.gradients import require_gradients, rule_name
from fl_cmi.synthesis.synthesizers import Joint, PerClient
from fl_cmi.synthesis.terms.activation import Activation
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.balance import ClassBalance
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.class_logit import ClassLogit
from fl_cmi.synthesis.terms.competition import Competition
from fl_cmi.synthesis.terms.delayed import Delayed
from fl_cmi.synthesis.terms.exp_increment import ExpIncrement
from fl_cmi.synthesis.terms.hard_one_hot import HardOneHot
from fl_cmi.synthesis.terms.mode_seeking import ModeSeeking
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Term
from fl_cmi.types import ConfigError

RULES = sorted(path.stem for path in (config_folder() / "combine").glob("*.yaml"))

FOLLOWING = [
    Adversarial(mask="none"),
    ClassBalance(),
    ClassLogit(),
    Competition(),
    Delayed(OneHot(), 1),
    ExpIncrement(OneHot()),
    HardOneHot(),
    ModeSeeking(),
    OneHot(),
]


@pytest.mark.parametrize("name", RULES)
def test_a_vote_alone_cannot_be_followed(name: str) -> None:
    team = ensemble(combine=build(compose_config([f"combine={name}"])["combine"], "combine"))
    if name == "majority":
        with pytest.raises(ConfigError, match=r"^combine=majority: a rule with a gradient, .* because so$"):
            require_gradients(team, "so")
    else:
        require_gradients(team, "so")


def test_rules_are_called_by_their_names() -> None:
    assert rule_name(majority) == rule_name(partial(majority)) == "majority"
    assert rule_name(Named()) == "Named"


class Named:
    """A rule with something to remember."""

    __call__ = staticmethod(mean_probs)


@pytest.mark.parametrize("term", [*FOLLOWING, Activation(), Delayed(Activation(), 1)])
def test_terms_tell_whether_they_follow_the_combined_logits(term: Term) -> None:
    teacher, features = (rows(4, seed, CLASSES).requires_grad_() for seed in (1, 2))
    loss = term(look_of(torch.tensor([0, 1, 2, 3]), teacher, rows(4, 3, CLASSES), features=[features]))
    (slope,) = torch.autograd.grad(loss, teacher, allow_unused=True)
    assert term.combined is (slope is not None)


def test_joint_inversion_refuses_a_vote_that_its_images_would_have_to_follow() -> None:
    team = ensemble(combine=partial(majority))
    for term in FOLLOWING:
        with pytest.raises(ConfigError, match=r"^combine=majority: .*terms\.own .*per_client"):
            Joint(inversion(terms={"bn": BatchNorm(), "own": term}), 6).check(team)
    Joint(inversion(terms={"bn": BatchNorm(), "own": OneHot(0.0)}), 6).check(team)
    PerClient(inversion()).check(team)


def test_moved_images_refuse_a_vote() -> None:
    distiller = Distiller(partial(torch.optim.SGD, lr=0.1), perturb=EnsembleSign())
    distiller.check(ensemble(), network(9))
    with pytest.raises(ConfigError, match=r"^combine=majority: .*distiller\.perturb"):
        distiller.check(ensemble(combine=majority), network(9))
