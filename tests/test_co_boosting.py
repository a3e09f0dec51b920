"""Co-Boosting's learnt weights and moved images, and DENSE's batch-norm hook, against what their equations say."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference_server as reference
import torch
from test_methods import configured, run, shrink
from tiny import CLASSES, COUNTS, SHAPE, TASK, ensemble, inversion, network, pixels, rng, rows
from torch import Tensor, nn

from fl_cmi.bank import Pool, Shuffled
from fl_cmi.compose import build
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.learnt_weights import LearntWeights, stepped, weighted_logits
from fl_cmi.distillation.perturb import EnsembleSign
from fl_cmi.distillation.schedules import GrowPool
from fl_cmi.distillation.transfer import transfer
from fl_cmi.ensemble import mean_logits
from fl_cmi.models.lenet import LeNet
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.term import look
from fl_cmi.types import ConfigError

SGD = partial(torch.optim.SGD, lr=0.1)


def logits() -> Tensor:
    """Three teachers, five images, four classes."""
    return torch.stack([rows(5, seed) for seed in range(3)])


def filled_pool(number: int = 10) -> Pool:
    pool = Pool()
    y = torch.arange(number) % CLASSES
    pool.add(pixels(number), y, torch.zeros(number, CLASSES))
    return pool


# ------------------------------------------------------------------------------------------------ weights


def test_weighted_logits_agree_with_the_loops() -> None:
    weights = torch.tensor([0.2, 0.0, 0.5], dtype=torch.float64)
    found = weighted_logits(logits(), weights)
    torch.testing.assert_close(found, reference.weighted_logits(logits(), weights), rtol=0, atol=1e-6)
    equal = weighted_logits(logits(), torch.full((3,), 0.7, dtype=torch.float64))
    torch.testing.assert_close(equal, logits().mean(dim=0))
    assert torch.autograd.gradcheck(
        weighted_logits, (logits().requires_grad_(), (weights + 0.1).requires_grad_())
    )


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.004, 0.5, 0.995], [0.0, 1.0, 0.2]])
def test_a_step_of_the_weights_agrees_with_the_loops(weights: list[float]) -> None:
    y = torch.tensor([0, 3, 1, 2, 2])
    found = stepped(torch.tensor(weights, dtype=torch.float64), logits(), y, 0.01)
    expected = reference.weight_step(weights, logits(), y, 0.01)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert ((found >= 0) & (found <= 1)).all()
    assert not torch.equal(found, torch.tensor(weights, dtype=torch.float64))


def test_a_teacher_who_knows_the_labels_gains_and_one_who_errs_loses() -> None:
    y = torch.tensor([0, 1, 2, 3])
    right = 5 * nn.functional.one_hot(y, CLASSES).float()
    teachers = torch.stack([right, torch.zeros(4, 4), -right])
    found = stepped(torch.full((3,), 1 / 3), teachers, y, 0.01)
    assert found[[0, 2]].tolist() == pytest.approx([1 / 3 + 0.01, 1 / 3 - 0.01])


def test_some_weight_always_stays() -> None:
    alone = torch.tensor([0.005, 0.0])
    moved = stepped(alone, torch.stack([rows(5, 0), rows(5, 1)]).float(), torch.arange(5) % 4, 1.0)
    assert moved.sum() > 0


def test_weights_start_equal_in_every_round_and_learn_from_the_second_epoch_on() -> None:
    team, pool, rule = ensemble(), filled_pool(), LearntWeights(0.01, 0.9)
    answers = team.logits(pixels(2))
    torch.testing.assert_close(rule(answers, team), mean_logits(answers, team))
    rule.begin(range(3))
    rule.learn(team, pool, 4, 0, rng())
    assert rule.weights(range(3)).tolist() == pytest.approx([1 / 3] * 3)
    before = team.passes
    rule.learn(team, pool, 4, 2, rng())
    assert team.passes - before == 3 * 3  # three batches, of three teachers each
    moved = (rule.weights(range(3)) - 1 / 3) / (0.01 * 0.9**2)
    torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)  # whole steps of r d^e
    assert 0 < moved.abs().max() <= 3
    rule.begin(range(3))
    assert rule.weights(range(3)).tolist() == pytest.approx([1 / 3] * 3)
    assert rule.weights(range(2)).tolist() == [0.5, 0.5]  # of another number of teachers nothing was learnt


@pytest.mark.parametrize(("option", "value"), [("learning_rate", 0.0), ("decay", 1.5)])
def test_rates_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"combine.{option}"):
        LearntWeights(**{option: value})


def test_the_whole_method_learns_its_weights_between_synthesis_and_distillation(tmp_path: Path) -> None:
    config, log = configured("co_boosting"), MetricsLog(tmp_path / "metrics.jsonl")
    rule = build(config["combine"], "combine")
    rule.weights_K = torch.tensor([0.0, 0.1, 0.9])  # of another round, perhaps of other clients
    team = ensemble(combine=rule)
    heard: list[Tensor] = []
    label = team.label

    def listening(x: Tensor) -> Tensor:
        heard.append(rule.weights(team.clients))
        return label(x)

    team.label = listening  # type: ignore[method-assign]
    metrics = transfer(
        team,
        network(9),
        build(shrink(config["synthesizer"]), "synthesizer"),
        build(shrink(config["distiller"]), "distiller"),
        Pool(),
        GrowPool(epochs=3, batches=1, steps=None, evaluate_every=1),
        task=TASK,
        seed=0,
        server_round=1,
        progress=Progress(quiet=True),
        log=log,
        evaluate=lambda model: 0.25,
    )
    found = [row["weights"] for row in MetricsLog.read(log.path) if row["event"] == "weights"]
    assert len(found) == 3
    assert heard[0].tolist() == pytest.approx([1 / 3] * 3), "images of the first epoch too"
    assert found[0] == pytest.approx([1 / 3] * 3)
    assert found[1] != found[0] != found[2]
    assert found[2] == pytest.approx(rule.weights(range(3)).tolist())
    # each epoch: 2 steps and a label for the batch; a pass for the weights, but in the first; in the
    # pass of the lessons, moving the images and labelling them
    assert metrics["teacher-passes"] == 3 * (3 * (2 + 1) + (0 + 2 + 3) + 2 * (1 + 2 + 3))


# ----------------------------------------------------------------------------------------------- passes


def test_a_pass_shows_each_image_once() -> None:
    pool = filled_pool(10)
    draws = Shuffled(pool)
    generator = rng()
    first = torch.cat([draws.draw(4, generator).index for _ in range(3)])
    assert sorted(first[:10].tolist()) == list(range(10))
    assert first[:10].tolist() != list(range(10))
    second = torch.cat([first[10:], draws.draw(8, generator).index])
    assert sorted(second.tolist()) == list(range(10))


def test_one_pass_of_the_schedule_teaches_every_image_once(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(Pool):
        def get(self, index: Tensor) -> Any:
            seen.extend(index.tolist())
            return super().get(index)

    transfer(
        ensemble(),
        network(9),
        Joint(inversion(steps=1), batch_size=6),
        Distiller(SGD, batch_size=4),
        Counting(),
        GrowPool(epochs=2, batches=1, steps=None),
        task=TASK,
        seed=0,
        server_round=1,
        progress=Progress(quiet=True),
        log=MetricsLog(tmp_path / "metrics.jsonl"),
        evaluate=lambda model: 0.25,
    )
    assert len(seen) == 2 * 4 + 3 * 4  # 6 and 12 images in full batches of 4
    assert sorted(seen[:6]) == list(range(6))
    assert sorted(seen[8:]) == list(range(12))


# ---------------------------------------------------------------------------------------------- images


class Linear(nn.Module):
    """Logits that are linear in the pixels, so that slopes can be written out."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(64, CLASSES)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.randn(CLASSES, 64, generator=rng(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))


def test_images_move_by_the_sign_of_the_slope() -> None:
    team = ensemble(COUNTS, make=Linear).double()
    x = pixels(3).double()
    found = EnsembleSign(0.1, 4.0, "pixels")(team, x, rng())
    weight = torch.stack([model.classifier.weight for model in team.models]).mean(dim=0)  # type: ignore[union-attr, misc]
    u = 2 * torch.rand(3, CLASSES, generator=rng()) - 1
    for i in range(3):
        p = reference.softmax(mean_logits(team.logits(x), team)[i], 4.0)
        # d/dx sum_c u_c p_c = 1/t sum_c p_c (u_c - sum_j u_j p_j) w_c
        mean = sum(u_c * p_c for u_c, p_c in zip(u[i], p, strict=True))
        slope = sum(p_c * (u_c - mean) * w_c for p_c, u_c, w_c in zip(p, u[i], weight, strict=True)) / 4
        torch.testing.assert_close(found[i].flatten(), x[i].flatten() + 0.1 * slope.sign())


def test_the_step_is_measured_in_normalized_images_or_in_pixels() -> None:
    team, x = ensemble(), pixels(4)
    for space, size in (("normalized", 0.1 * TASK.std[0]), ("pixels", 0.1)):
        moved = EnsembleSign(0.1, 4.0, space)(team, x, rng()) - x  # type: ignore[arg-type]
        sizes = moved.abs()
        assert ((sizes - size).abs() < 1e-6).float().mean() > 0.9  # dead units leave some pixels alone
        assert sizes.max() < size + 1e-6
    assert torch.equal(EnsembleSign(0.0)(team, x, rng()), x)


def test_the_methods_step_is_that_of_the_released_code() -> None:
    """8/255 of images that are normalized by 1/2, whatever the data set."""
    perturb = build(configured("co_boosting")["distiller"], "distiller").perturb
    assert (perturb.epsilon, perturb.space) == (pytest.approx(8 / 255 / 2), "pixels")
    assert vars(perturb) == vars(EnsembleSign())


def test_students_learn_the_moved_images_with_labels_of_their_own() -> None:
    class Shift:
        def __call__(self, ensemble: Any, x: Tensor, rng: torch.Generator) -> Tensor:
            return x + 1

    asked = []

    class Watching(nn.Module):
        def __call__(self, ensemble: Any, seen: Tensor, labels: Tensor | None, aims: Any) -> Tensor:
            asked.append((seen, labels))
            return torch.zeros(len(seen), CLASSES)

        needs_pool = False

    plain, moved = (Distiller(SGD, batch_size=4, targets=Watching(), perturb=p) for p in (None, Shift()))  # type: ignore[arg-type]
    for distiller in (plain, moved):
        distiller.begin(network(9))(ensemble(), filled_pool(), 1, (0.0, 1.0), rng())
    (x, labels), (other, none) = asked
    assert torch.equal(other, x + 1)
    assert labels is not None
    assert none is None, "the cache knows the image as it was stored"


def test_gradients_of_the_student_are_clipped() -> None:
    def step_length(clip: float | None) -> float:
        student = network(9)
        before = [p.detach().clone() for p in student.parameters()]
        distiller = Distiller(partial(torch.optim.SGD, lr=1.0), batch_size=4, clip=clip)
        distiller.begin(student)(ensemble(), filled_pool(), 1, (0.0, 1.0), rng())
        moved = [p.detach() - q for p, q in zip(student.parameters(), before, strict=True)]
        return float(sum(m.square().sum() for m in moved) ** 0.5)

    free = step_length(None)
    assert step_length(free / 2) == pytest.approx(free / 2, rel=1e-3)
    assert step_length(2 * free) == pytest.approx(free, rel=1e-3)
    with pytest.raises(ConfigError, match="distiller.clip"):
        Distiller(SGD, clip=0.0)


@pytest.mark.parametrize(
    ("option", "value"), [("epsilon", -1.0), ("temperature", 0.0), ("space", "elsewhere")]
)
def test_moves_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"distiller.perturb.{option}"):
        EnsembleSign(**{option: value})


# ----------------------------------------------------------------------------------------------- DENSE


def lenets_and_convnets(k: int) -> nn.Module:
    return LeNet(SHAPE, CLASSES, TASK.mean, TASK.std) if k == 1 else network(k)


def test_denses_hook_finds_every_layer_and_the_released_codes_none(tmp_path: Path) -> None:
    seen = look(ensemble(), None, pixels(6), torch.zeros(6, dtype=torch.int64), TASK)
    assert [len(inputs) for inputs in seen.seen] == [3, 3, 3]
    assert BatchNorm(1.0)(seen) > 0
    empty = BatchNorm(1.0, hook="empty")
    assert empty(seen) == 0
    empty.check(ensemble(make=lambda k: LeNet(SHAPE, CLASSES, TASK.mean, TASK.std)))
    term = configured("dense")["synthesizer"]["inversion"]["terms"]["bn"]
    assert (term["weight"], term["hook"]) == (1.0, "all")


def test_the_empty_hook_makes_the_images_of_weight_zero() -> None:
    made = []
    for bn in (BatchNorm(1.0, hook="empty"), BatchNorm(0.0), BatchNorm(1.0)):
        terms = {**inversion().terms, "bn": bn}
        made.append(Joint(inversion(terms=terms), 6)(ensemble(), network(9), TASK, rng()).x)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_teachers_without_batch_norm_may_be_left_out() -> None:
    mixed = ensemble(make=lenets_and_convnets)
    with pytest.raises(ConfigError, match=r"client 10's model \(LeNet\)"):
        BatchNorm().check(mixed)
    skip = BatchNorm(missing="skip")
    skip.check(mixed)
    y = torch.zeros(6, dtype=torch.int64)
    found = skip(look(mixed, None, pixels(6), y, TASK))
    # The mean of the two that have some, not of three.
    alone = [BatchNorm()(look(mixed.only(k), None, pixels(6), y, TASK)) for k in (0, 2)]
    torch.testing.assert_close(found, sum(alone) / 2)
    with pytest.raises(ConfigError, match="batch norm"):
        skip.check(ensemble(make=lambda k: LeNet(SHAPE, CLASSES, TASK.mean, TASK.std)))


@pytest.mark.parametrize(("option", "value"), [("hook", "some"), ("missing", "ignore")])
def test_batch_norm_options_are_checked(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"bn.{option}"):
        BatchNorm(**{option: value})


def test_dense_logs_its_batch_norm_term(tmp_path: Path) -> None:
    _, _, _, log = run("dense", tmp_path)
    assert all(row["bn"] > 0 for row in log if row["event"] == "synthesis")
