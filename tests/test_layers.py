"""What The Knowledge Within's fine-tuning adds: matching layers, arcsine blends, its rates, chained augmentation."""

from functools import partial

import pytest
import reference_compression as reference
import torch
from tiny import CLASSES, SHAPE, TASK, ensemble, network, pixels, rng
from torch import Tensor, nn

from fl_cmi.augment import Chain, CropFlip, Cutout
from fl_cmi.bank import Pool
from fl_cmi.compression.low_bit import LowBit
from fl_cmi.compression.stage import alone
from fl_cmi.distillation.distiller import Distiller, blend
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.layers import LayerMatch, layer_outputs
from fl_cmi.distillation.loss import Answers
from fl_cmi.distillation.sum import Sum
from fl_cmi.models.lenet import LeNet
from fl_cmi.models.resnet import ResNet
from fl_cmi.models.wide_resnet import WideResNet
from fl_cmi.training import warm_stairs
from fl_cmi.types import ConfigError

SGD = partial(torch.optim.SGD, lr=0.1)


def outputs(seed: int, parts: int = 3) -> list[Tensor]:
    return [3 * torch.randn(2, 3, dtype=torch.float64, generator=rng(10 * seed + k)) for k in range(parts)]


def answers(learnt: list[Tensor], *taught: list[Tensor]) -> Answers:
    logits = torch.zeros(2, CLASSES, dtype=torch.float64)
    return Answers(logits, logits, student_layers=learnt, teacher_layers=taught)


def test_layers_match_as_the_loops_say() -> None:
    learnt, taught = outputs(1), outputs(2)
    found = LayerMatch()(answers(learnt, taught), rng())
    assert torch.allclose(found, reference.layer_match(learnt, taught), atol=1e-6)
    assert LayerMatch()(answers(taught, taught), rng()) == 0


def test_weights_add_up_to_one_and_deeper_layers_weigh_more() -> None:
    taught = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(4)]
    moved = [torch.full_like(h, 1.5) for h in taught]
    assert LayerMatch()(answers(moved, taught), rng()).item() == pytest.approx(1.0)
    each = [
        LayerMatch()(
            answers(
                [m if k == at else t for k, (m, t) in enumerate(zip(moved, taught, strict=True))], taught
            ),
            rng(),
        )
        for at in range(4)
    ]
    assert [loss.item() for loss in each] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_gradient_is_right() -> None:
    taught, learnt = outputs(2), [h.requires_grad_() for h in outputs(1)]
    assert torch.autograd.gradcheck(lambda *h: LayerMatch()(answers(list(h), taught), rng()), tuple(learnt))


def test_one_teacher_of_the_same_architecture() -> None:
    loss = Sum({"kl": KL(), "layers": LayerMatch()})
    distiller = Distiller(SGD, loss=loss)
    distiller.check(alone(network()), network(5))
    with pytest.raises(ConfigError, match=r"distiller\.loss=LayerMatch: .*one teacher, not of several"):
        distiller.check(ensemble(), network(5))
    with pytest.raises(ConfigError, match=r"distiller\.loss=LayerMatch: .*architecture"):
        distiller.check(alone(network()), network(5, width=3))
    Distiller(SGD, loss=Sum(loss.losses, {"layers": 0.0})).check(ensemble(), network(5))


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda: network(), 3 + 3 + 1 + 1),  # convolutions, norms, a pool, the classifier's input
        (lambda: LeNet(SHAPE, CLASSES, TASK.mean, TASK.std), 5),
        (lambda: ResNet(SHAPE, CLASSES, TASK.mean, TASK.std, depth=8), 2 + 3 + 1),
        (lambda: WideResNet(SHAPE, CLASSES, TASK.mean, TASK.std, depth=10), 1 + 3 + 1 + 1),
    ],
)
def test_parts_are_seen_in_order_of_execution(make: type[nn.Module], number: int) -> None:
    model, x = make().eval(), pixels(3)
    with layer_outputs(model) as found:
        model(x)
    assert len(found) == number
    assert torch.equal(found[-1], model.features(x))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert found[0].shape[1] == first.out_channels
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_lesson_hands_layers_of_teacher_and_low_bit_student_to_the_loss() -> None:
    teacher, pool = alone(network()), Pool()
    pool.add(pixels(8), torch.zeros(8, dtype=torch.int64), torch.zeros(8, CLASSES))
    student = LowBit(8, 8)(teacher.models[0], [pixels(8)])
    student.requires_grad_(True)
    lesson = Distiller(SGD, loss=LayerMatch(), batch_size=8, mixup=1.0, blend="arcsine").begin(student)
    close = lesson(teacher, pool, 1, (0.0, 1.0), rng())
    other = Distiller(SGD, loss=LayerMatch(), batch_size=8).begin(network(5))
    assert 0 < close < other(teacher, pool, 1, (0.0, 1.0), rng())


def test_arcsine_blends_mostly_show_one_image() -> None:
    x = torch.arange(4000.0).view(-1, 1, 1, 1).sign().repeat(1, 1, 1, 1)
    aims = torch.stack([x.flatten(), 1 - x.flatten()], dim=1)
    for arcsine, variance in ((False, 1 / 12), (True, 1 / 8)):  # of U(0, 1) and of Beta(1/2, 1/2)
        shares = []

        for seed in range(2):
            one, other = torch.zeros(2000, 1, 1, 1), torch.ones(2000, 1, 1, 1)
            mixed, labels = blend(torch.cat([one, other]), aims, rng(seed), arcsine)
            assert labels is not None
            shares.append(mixed[(mixed > 0) & (mixed < 1)])
        found = torch.cat(shares)
        assert found.var().item() == pytest.approx(variance, rel=0.08)
        assert found.mean().item() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ConfigError, match=r"distiller\.blend=beta"):
        Distiller(SGD, blend="beta")  # type: ignore[arg-type]


def test_the_rates_are_those_of_80_epochs() -> None:
    for epoch in range(80):
        assert warm_stairs(epoch / 80) == pytest.approx(reference.warm_stairs(epoch))
    inside = {warm_stairs((25 + at / 10) / 80) for at in range(10)}
    assert len(inside) == 1, "flat within an epoch"
    assert warm_stairs(0.0) == 0.0


def test_a_chain_takes_all_steps_in_order() -> None:
    x, crop, holes = pixels(5), CropFlip(2), Cutout(3, 0.5)
    own = rng(1)
    expected = holes(crop(x, own), own)
    assert torch.equal(Chain([crop, holes])(x, rng(1)), expected)
    with pytest.raises(ConfigError, match="at least one"):
        Chain([])
