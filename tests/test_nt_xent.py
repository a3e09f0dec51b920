"""NT-Xent by pytorch-metric-learning: against the loops, its queue, and what happens without the library."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference_distillation as reference
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, ensemble, generator, inversion, network, pixels, rng
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.loss import Answers
from fl_cmi.distillation.nt_xent import NTXent
from fl_cmi.distillation.schedules import Alternate
from fl_cmi.distillation.sum import Sum
from fl_cmi.synthesis.source import TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.types import ConfigError

TIGHT = {"rtol": 1e-6, "atol": 1e-6}
BATCH = 4


@pytest.fixture
def _library() -> None:
    pytest.importorskip("pytorch_metric_learning")


library = pytest.mark.usefixtures("_library")


def pool_of(images: int = 8, seed: int = 0) -> Pool:
    pool = Pool(images)
    y = torch.randint(CLASSES, (images,), generator=rng(seed))
    pool.add(pixels(images, seed), y, torch.randn(images, CLASSES, generator=rng(seed)).log_softmax(dim=1))
    return pool


def answers_of(seed: int, index: Sequence[int] | None = None, pool: Pool | None = None) -> Answers:
    """A student with features of width 5 and two teachers of 3 and 4."""
    f_s, *f_t = (
        torch.randn(BATCH, width, dtype=torch.float64, generator=rng(10 * seed + width))
        for width in (5, 3, 4)
    )
    nothing = torch.zeros(BATCH, CLASSES)
    slots = None if index is None else torch.tensor(index)
    return Answers(nothing, nothing, f_s.requires_grad_(), f_t, slots, None, pool)


def begun(made: NTXent) -> NTXent:
    list(made.begin(answers_of(0), rng(5)))
    return made


def vectors(made: NTXent, shown: Answers) -> Tensor:
    """What is compared: the student's, then the teachers'."""
    assert made.student is not None
    assert made.teacher is not None
    assert shown.student_features is not None
    together = torch.cat(list(shown.teacher_features), dim=1)
    sides = ((made.student, shown.student_features), (made.teacher, together))
    return torch.stack(
        [reference.embedded(layer.weight, layer.bias, row) for layer, rows in sides for row in rows]
    )


@library
@pytest.mark.parametrize("index", [[0, 1, 2, 3], [5, 2, 5, 7]])
def test_it_equals_the_loops_also_for_an_image_drawn_twice(index: list[int]) -> None:
    made, shown = begun(NTXent(0.3, width=6)), answers_of(1, index, pool_of())
    found = made(shown, rng())
    rows, images = vectors(made, shown), index + index
    expected = reference.nt_xent(rows, images, rows, images, range(2 * BATCH), 0.3)
    torch.testing.assert_close(found, expected, **TIGHT)
    inputs = [shown.student_features, *made.student.parameters(), *made.teacher.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, **TIGHT)


@library
def test_the_queue_equals_the_loops_and_forgets_the_oldest() -> None:
    """Two earlier batches are kept: at the fourth the first is gone. Images of no pool are all different."""
    made = begun(NTXent(0.3, width=6, queue=2))
    kept: list[Tensor] = []
    for step in range(4):
        shown = answers_of(step)
        found = made(shown, rng())
        rows = vectors(made, shown)
        kept = [*kept, rows.detach()][-3:]
        references = torch.cat(kept[::-1])
        images = [BATCH * age + i for age in range(len(kept)) for i in [*range(BATCH), *range(BATCH)]]
        expected = reference.nt_xent(rows, images[: 2 * BATCH], references, images, range(2 * BATCH), 0.3)
        torch.testing.assert_close(found, expected, **TIGHT)


@library
def test_a_slot_that_was_overwritten_shows_another_image() -> None:
    made, pool = begun(NTXent(width=6, queue=1)), pool_of(4)
    first = made.identify(answers_of(0, [0, 1, 2, 3], pool))
    assert torch.equal(first, made.identify(answers_of(1, [0, 1, 2, 3], pool)))
    batch = pool_of(4, seed=1).get(torch.arange(2))
    assert batch.y is not None
    assert batch.labels is not None
    pool.add(batch.x, batch.y, batch.labels)
    again = made.identify(answers_of(2, [0, 1, 2, 3], pool))
    assert (again == first).tolist() == [False, False, True, True]
    fresh = [made.identify(answers_of(seed)) for seed in (3, 4)]
    assert len(set(torch.cat([again, *fresh]).tolist())) == 3 * BATCH


@library
def test_gradients_equal_finite_differences() -> None:
    made, shown = begun(NTXent(0.5, width=3)), answers_of(0)

    def loss(f_s: Tensor, f_t: Tensor) -> Tensor:
        return made(Answers(shown.target, shown.student, f_s, [f_t, shown.teacher_features[1]]), rng())

    f_t = shown.teacher_features[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (shown.student_features, f_t))


@library
def test_resuming_reproduces_the_queue(tmp_path: Path) -> None:
    made = begun(NTXent(width=6, queue=2))
    for step in range(4):
        made(answers_of(step), rng())
    save_file(made.state_dict(), tmp_path / "state.safetensors")
    again = NTXent(width=6, queue=2)
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    begun(again)
    for step in range(4, 7):
        assert torch.equal(made(answers_of(step), rng()), again(answers_of(step), rng()))
    assert NTXent().state_dict() == {}


@library
def test_a_lesson_trains_both_projections_also_on_fresh_images() -> None:
    loss = Sum({"kl": KL(4.0), "nt_xent": NTXent(width=6, queue=1)})
    distiller = Distiller(partial(torch.optim.SGD, lr=0.1), loss=loss, batch_size=6, mixup=0.5)
    source = TrainedGenerator(generator, partial(torch.optim.Adam, lr=0.01))
    Alternate().check(Joint(inversion(source=source), batch_size=6), distiller)
    lesson = distiller.begin(network(9))
    lesson(ensemble(), pool_of(), 1, (0.0, 1.0), rng())
    _, own = lesson.optimizer.param_groups
    before = [p.detach().clone() for p in own["params"]]
    lesson(ensemble(), pool_of(), 3, (0.0, 1.0), rng())
    assert len(before) == 4
    for parameter, old in zip(own["params"], before, strict=True):
        assert not torch.equal(parameter, old)


@library
@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"width": 0}, {"queue": -1}, {"queue": 0.5}])
def test_out_of_range_is_named(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ConfigError, match=f"distiller.loss...{name}={value}"):
        NTXent(**arguments)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ConfigError, match=r"distiller.loss=NTXent: .*fl_cmi\[metric-learning\]"):
        NTXent()
