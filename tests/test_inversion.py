"""The inversion loop: what it computes, what it keeps and how many steps it takes."""

from typing import Any

import pytest
import reference
import torch
from tiny import TASK, contrast, ensemble, generator, head_of, inversion, network, pixels, rng, rows
from torch import Tensor, nn

from fl_cmi.augment import CropFlip, Identity
from fl_cmi.batchnorm import observe
from fl_cmi.synthesis.contrast import Contrast
from fl_cmi.synthesis.features import BatchNormInputs
from fl_cmi.synthesis.inversion import Inversion
from fl_cmi.synthesis.source import GeneratorSource
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError, Task

Y = torch.tensor([0, 0, 1, 1, 3, 3])


class Pixels:
    """A source whose images are its parameters; counts the batches that it began."""

    def __init__(self, start: Tensor) -> None:
        self.start = start
        self.shown: list[Tensor] = []

    def begin(self, task: Task, y: Tensor, rng: torch.Generator, device: torch.device) -> None:
        assert self.start.shape == (len(y), *task.shape)
        self.x = nn.Parameter(self.start.clone())
        self.optimizer = torch.optim.Adam([self.x], 0.05)
        self.finished = False

    def images(self) -> Tensor:
        self.shown.append(self.x.detach().clone())
        return self.x * 1.0

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finish(self) -> None:
        self.finished = True


class Scripted(Term):
    """A term with a given value at each step, whatever it sees, and a constant gradient."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values, self.step, self.finished = values, 0, 0

    def __call__(self, seen: Look) -> Tensor:
        value = self.values[self.step]
        self.step += 1
        pull = seen.teacher.sum()
        return pull - pull.detach() + value

    def finish(self) -> None:
        self.finished += 1


class Recorder:
    """A view that is the identity and keeps what it returned, with its gradient."""

    def __init__(self) -> None:
        self.out: Tensor | None = None

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        self.out = x * 1.0
        self.out.retain_grad()
        return self.out


def test_recorded_losses_equal_the_equations() -> None:
    """One step of all terms in double precision, with a filled bank; only the networks are the package's."""
    team, student = ensemble(), network(9).eval().double()
    team.double()
    x = pixels(4).double()
    y = torch.tensor([0, 1, 3, 0])
    cr = Contrast(
        weight=0.8, temperature=0.3, bank_size=9, num_negatives=9, head_width=3, local_view=CropFlip(0, 1.0)
    )
    cr.begin(team, 3 * 14, rng(8))
    assert cr.head is not None
    cr.head.double()
    cr.remember(rows(5, seed=1, width=42), rows(5, seed=2, width=42))
    head = tuple(p.detach().clone() for p in head_of(cr))
    terms = {"bn": BatchNorm(2.0), "oh": OneHot(0.5), "adv": Adversarial(0.3, "none")}
    loop = Inversion(Pixels(x), terms, cr, steps=1, global_view=CropFlip(0, 1.0))

    # The views draw from the stream before the bank does.
    stream = rng(0)
    CropFlip(0, 1.0)(x, stream)
    CropFlip(0, 1.0)(x, stream)
    old_local, old_global = cr.bank.draw(9, stream).chunk(2, dim=1)
    found = loop(team, student, y, TASK, rng(0))

    mirrored = x.flip(3)
    logits, distances, pooled = [], [], []
    for model in team.models:
        with observe(model) as seen:
            logits.append(model(mirrored))
        layers = [(f, bn.running_mean, bn.running_var) for bn, f in seen.items()]
        distances.append(reference.statistics_distance(layers))
        pooled.append(torch.tensor(reference.pooled(list(seen.values())), dtype=torch.float64))
    teacher = torch.tensor(
        reference.combined("mean_logits", torch.stack(logits), [], []), dtype=torch.float64
    )
    view = torch.cat(pooled, dim=1)
    expected = {
        "bn": sum(distances) / 3,
        "oh": reference.cross_entropy(teacher, y),
        "adv": reference.adversarial(teacher, student(mirrored), "none"),
        "contrast": reference.contrast(view, view, head, 0.3, old_local, old_global),  # type: ignore[arg-type]
    }
    for name, value in expected.items():
        assert found.losses[name] == pytest.approx(value.item(), abs=1e-6), name
    weights = {"bn": 2.0, "oh": 0.5, "adv": 0.3, "contrast": 0.8}
    total = sum(weights[name] * value.item() for name, value in expected.items())
    assert found.losses["total"] == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(
    "values", [[3.0, 1.0, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [2.0, 1, 1, 5]]
)
def test_the_kept_iterate_is_the_first_with_the_lowest_total(values: list[float]) -> None:
    source = Pixels(pixels(6))
    made = Inversion(source, {"scripted": Scripted(values)}, steps=4)
    found = made(ensemble(), network(9), Y, TASK, rng())
    best = values.index(min(values))
    assert len(source.shown) == 4
    assert len({x.sum().item() for x in source.shown}) == 4, "the images do not move"
    assert torch.equal(found.x, source.shown[best])
    assert found.losses["total"] == pytest.approx(min(values))
    assert found.losses["scripted"] == pytest.approx(min(values))


def test_the_bank_gets_the_features_of_the_kept_iterate() -> None:
    team, source, made = ensemble(), Pixels(pixels(6)), contrast(weight=1e-9)
    made.local_view = Identity()
    loop = Inversion(source, {"s": Scripted([2.0, 1.0, 3.0])}, made, steps=3)
    found = loop(team, network(9), Y, TASK, rng())
    assert torch.equal(found.x, source.shown[1])
    stored = made.bank.draw(6, rng())
    expected = BatchNormInputs()(team.observe(found.x)).repeat(1, 2)
    torch.testing.assert_close(stored.sort(dim=0).values, expected.sort(dim=0).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_term_that_is_not_finite_is_named_with_its_step(bad: float) -> None:
    terms = {"good": Scripted([1.0] * 4), "broken": Scripted([1.0, 1.0, bad, 1.0])}
    student = network(9).train()
    loop = Inversion(Pixels(pixels(6)), terms, steps=4)
    with pytest.raises(FloatingPointError, match="step 2: broken is not finite") as error:
        loop(ensemble(), student, Y, TASK, rng())
    assert "good" not in str(error.value)
    assert student.training


@pytest.mark.parametrize("with_contrast", [False, True])
def test_number_of_optimizer_steps_and_teacher_passes(
    with_contrast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[torch.optim.Optimizer] = []
    step = torch.optim.Adam.step

    def counted(self: torch.optim.Adam, *args: Any) -> Any:
        stepped.append(self)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    made = contrast() if with_contrast else None
    loop, team = inversion(steps=5, contrastive=made), ensemble()
    passes = 0

    def forward(*_: Any) -> None:
        nonlocal passes
        passes += 1

    handles = [model.register_forward_hook(forward) for model in team.models]
    loop(team, network(9), Y, TASK, rng())
    for handle in handles:
        handle.remove()
    assert team.passes == passes == 5 * 3 * (2 if with_contrast else 1)
    heads = [optimizer for optimizer in stepped if made is not None and optimizer is made.optimizer]
    assert len(heads) == (5 if with_contrast else 0)
    assert len(stepped) - len(heads) == 5
    loop(team, network(9), Y, TASK, rng(1))
    # The head's optimizer stays, that of the images is a new one for each batch.
    assert len({id(optimizer) for optimizer in stepped}) == (3 if with_contrast else 2)


def test_the_stored_image_is_not_augmented() -> None:
    source = Pixels(pixels(6))
    found = Inversion(source, {"oh": OneHot()}, steps=1, global_view=CropFlip(4))(
        ensemble(), network(9), Y, TASK, rng()
    )
    assert torch.equal(found.x, source.shown[0])


@pytest.mark.parametrize("old", [0, 5])
def test_the_contrast_drives_images_by_the_local_view_only(old: int) -> None:
    local, global_, made = Recorder(), Recorder(), contrast()
    made.local_view = local
    if old:
        made.remember(torch.randn(old, 42, generator=rng(1)), torch.randn(old, 42, generator=rng(2)))
    Inversion(Pixels(pixels(6)), {}, made, steps=1, global_view=global_)(
        ensemble(), network(9), Y, TASK, rng()
    )
    assert local.out is not None
    assert global_.out is not None
    assert local.out.grad is not None
    assert local.out.grad.abs().sum() > 0
    assert global_.out.grad is None or not global_.out.grad.any()


@pytest.mark.parametrize("name", ["bn", "oh", "adv"])
def test_the_other_terms_see_the_global_view_only(name: str) -> None:
    local, global_, made = Recorder(), Recorder(), contrast(weight=1e-9)
    made.local_view = local
    terms = {"bn": BatchNorm(), "oh": OneHot(), "adv": Adversarial(mask="none")}
    Inversion(Pixels(pixels(6)), {name: terms[name]}, made, steps=1, global_view=global_)(
        ensemble(), network(9), Y, TASK, rng()
    )
    assert global_.out is not None
    assert global_.out.grad is not None
    assert global_.out.grad.abs().sum() > 0
    assert local.out is not None
    assert local.out.grad is not None
    assert local.out.grad.abs().max() < 1e-6 * global_.out.grad.abs().max()


def test_terms_of_weight_zero_are_left_out() -> None:
    found = inversion(terms={"bn": BatchNorm(0.0), "oh": OneHot(1.0)})(ensemble(), network(9), Y, TASK, rng())
    assert set(found.losses) == {"oh", "total"}


def test_losses_are_unweighted_and_add_up() -> None:
    made = contrast()
    found = inversion(contrastive=made)(ensemble(), network(9), Y, TASK, rng()).losses
    total = found["bn"] + 0.5 * found["oh"] + 0.5 * found["adv"] + 0.8 * found["contrast"]
    assert found["total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("steps", [0, 1.5, "many"])
def test_steps_out_of_range(steps: Any) -> None:
    with pytest.raises(ConfigError, match=f"steps={steps}"):
        Inversion(GeneratorSource(generator, torch.optim.Adam), {"oh": OneHot()}, steps=steps)


def test_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match="temperature=0"):
        Contrast(temperature=0)
    with pytest.raises(ConfigError, match="mask=sometimes"):
        Adversarial(mask="sometimes")  # type: ignore[arg-type]


def test_without_any_term_there_is_nothing_to_invert() -> None:
    with pytest.raises(ConfigError, match="at least one term"):
        inversion(terms={"oh": OneHot(0.0)})


def test_the_last_iterate_is_kept_where_wanted_and_everyone_hears_of_the_end() -> None:
    source, term = Pixels(pixels(6)), Scripted([1.0, 2.0, 3.0])
    made = Inversion(source, {"scripted": term}, steps=3, keep="last")
    found = made(ensemble(), network(9), Y, TASK, rng())
    assert torch.equal(found.x, source.shown[2])
    assert found.losses["total"] == pytest.approx(3.0)
    assert source.finished
    assert term.finished == 1


def test_the_student_may_stay_in_train_mode() -> None:
    student, modes = network(9).eval(), []
    student.register_forward_hook(lambda module, *_: modes.append(module.training))
    made = Inversion(Pixels(pixels(6)), {"adv": Adversarial()}, steps=1, student_mode="train")
    made(ensemble(), student, Y, TASK, rng())
    assert modes == [True]
    assert not student.training


def test_a_view_of_several_copies_repeats_the_labels() -> None:
    def twice(x: Tensor, rng: torch.Generator) -> Tensor:
        return torch.cat([x, x])

    team, x = ensemble(), pixels(6)
    made = Inversion(Pixels(x), {"oh": OneHot()}, steps=1, global_view=twice)
    found = made(team, network(9), Y, TASK, rng())
    assert found.losses["oh"] == pytest.approx(reference.cross_entropy(team(x).double(), Y).item(), abs=1e-5)
    assert len(found.x) == 6
