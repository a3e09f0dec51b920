"""DeepInversion and The Knowledge Within as configurations: their terms, their settings and their labels."""

from functools import partial

import pytest
import torch
from tiny import CLASSES, SHAPE, TASK, ensemble, inversion, network, rng
from torch import Tensor

from fl_cmi.compose import build, compose_config
from fl_cmi.synthesis.pixels import PixelSource
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

SGD = partial(torch.optim.SGD, lr=0.5)


class NoLabels(Term):
    """A term that remembers the labels it was given."""

    def __call__(self, seen: Look) -> Tensor:
        self.y = seen.y
        return seen.x.mean()


@pytest.mark.parametrize(("batch_size", "counts"), [(64, [22, 21, 0, 21]), (65, [22, 22, 0, 21]), (63, None)])
def test_cyclic_labels_count_through_the_owned_classes(batch_size: int, counts: list[int] | None) -> None:
    loop = inversion(steps=1, terms={"oh": OneHot()}, source=PixelSource(SGD))
    y = Joint(loop, batch_size, labels="cyclic")(ensemble(), network(9), TASK, rng()).y
    uniform = Joint(loop, batch_size)(ensemble(), network(9), TASK, rng()).y
    found = torch.bincount(y, minlength=4).tolist()
    assert found[2] == 0
    if counts is None:  # a small batch draws
        assert torch.equal(y, uniform)
    else:
        assert found == counts
        assert y[:4].tolist() == [0, 1, 3, 0]
        assert not torch.equal(y, uniform)


def test_cyclic_labels_draw_where_there_are_more_classes_than_images() -> None:
    joint = Joint(inversion(), 80, labels="cyclic")
    assert joint.draw(torch.arange(80), rng()).tolist() == list(range(80))
    drawn = joint.draw(torch.arange(81), rng())
    assert drawn.tolist() != list(range(80))
    assert len(drawn) == 80


def test_labels_of_images_made_for_none_are_the_ensemble_s_choice() -> None:
    team, term = ensemble(), NoLabels()
    loop = inversion(steps=2, terms={"none": term}, source=PixelSource(SGD))
    found = Joint(loop, 16, labels="ensemble")(team, network(9), TASK, rng())
    assert team.passes == 3 * (2 + 1)
    assert torch.equal(found.y, team(found.x).argmax(dim=1))
    assert found.labels is not None
    assert torch.equal(found.labels, team.label(found.x))
    assert not torch.equal(found.y, term.y)


def composed(name: str, *more: str) -> Joint:
    config = compose_config(["data=synthetic", f"synthesizer={name}", *more])
    found = build(config["synthesizer"], "synthesizer")
    assert isinstance(found, Joint)
    return found


def shortened(name: str, *more: str) -> Joint:
    """The configuration as it is, but for two steps of eight images."""
    return composed(name, "synthesizer.batch_size=8", "synthesizer.inversion.steps=2", *more)


@pytest.mark.parametrize(
    ("name", "terms", "copies"),
    [
        ("deep_inversion", {"bn", "oh", "tv"}, 1),
        ("adaptive_deep_inversion", {"bn", "oh", "tv", "competition"}, 1),
        ("kw_bns", {"bn_kl"}, 4),
        ("kw_bns_adam", {"bn_kl"}, 4),
        ("kw_bns_inception", {"bn_kl", "inception", "smooth"}, 4),
        ("kw_inception", {"inception", "smooth"}, 4),
    ],
)
def test_the_configurations_invert(name: str, terms: set[str], copies: int) -> None:
    team, made = ensemble(), shortened(name)
    made.check(team)
    seen: list[int] = []
    handle = team.models[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = made(team, network(9), TASK, rng())
    handle.remove()
    assert set(found.losses) == {*terms, "total"}
    assert seen[:2] == [8 * copies] * 2
    assert found.x.shape == (8, *SHAPE)
    assert torch.equal(found.x, (found.x * 255).round() / 255) is (made.inversion.source.grid_every == 1)


def test_the_configurations_are_those_of_the_papers() -> None:
    deep, kw = composed("deep_inversion"), composed("kw_bns")
    assert (deep.batch_size, deep.inversion.steps, deep.inversion.keep) == (256, 1000, "last")
    assert (kw.batch_size, kw.inversion.steps, kw.inversion.keep) == (128, 1000, "last")
    assert {name: term.weight for name, term in deep.inversion.terms.items()} == {
        "bn": 10.0,
        "oh": 1.0,
        "tv": 1e-3,
    }
    assert composed("adaptive_deep_inversion").inversion.terms["competition"].weight == 1.0
    assert composed("kw_bns_inception").labels == composed("kw_inception").labels == "cyclic"
    for made, kind in ((deep, torch.optim.Adam), (kw, torch.optim.SGD)):
        source = made.inversion.source
        assert isinstance(source, PixelSource)
        source.begin(TASK, torch.zeros(4, dtype=torch.int64), rng(), torch.device("cpu"))
        assert isinstance(source.optimizer, kind)
        assert source.optimizer.param_groups[0]["lr"] == 0.1
        assert (source.schedule is not None) is (made is kw)
    assert deep.inversion.source.optimizer.param_groups[0]["betas"] == (0.5, 0.99)  # type: ignore[attr-defined]


def test_the_later_version_of_the_knowledge_within_differs_in_its_optimizer() -> None:
    made = shortened("kw_bns_adam")
    made(ensemble(), network(9), TASK, rng())
    assert isinstance(made.inversion.source, PixelSource)
    assert isinstance(made.inversion.source.optimizer, torch.optim.Adam)


def test_batch_norm_terms_refuse_before_anything_runs() -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = torch.nn.Linear(1, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("refused too late")

    team = ensemble(make=lambda k: Bare())
    for name in ("deep_inversion", "kw_bns", "kw_bns_inception"):
        with pytest.raises(ConfigError, match="no batch norm"):
            shortened(name).check(team)
    shortened("kw_inception").check(team)


def test_an_unknown_way_to_draw_labels_is_named() -> None:
    with pytest.raises(ConfigError, match="synthesizer.labels=random"):
        Joint(inversion(), labels="random")  # type: ignore[arg-type]
