"""FedFTG: its losses against the loops, its step counts, its weights by class and its rates by round."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference_server as reference
import torch
from test_methods import configured, shrink
from tiny import CLASSES, COUNTS, TASK, ensemble, network, pixels, rng, rows
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import pack, unpack
from fl_cmi.compose import build
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.loss import Answers
from fl_cmi.distillation.schedules import SameBatch
from fl_cmi.distillation.targets import Owners
from fl_cmi.distillation.transfer import transfer
from fl_cmi.ensemble import owner_weights
from fl_cmi.losses import pairwise_diversity
from fl_cmi.models.tanh_generator import TanhGenerator
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.fedftg import FedFtgGenerator, fidelity, hard_samples
from fl_cmi.types import ConfigError

ADAM = partial(torch.optim.Adam, lr=0.01)


def made(**options: Any) -> FedFtgGenerator:
    return FedFtgGenerator(partial(TanhGenerator, width=2), ADAM, num_latents=5, batch_size=6, **options)


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student, teacher, labels, weights."""
    weight = torch.rand(6, dtype=torch.float64, generator=rng(3))
    return rows(6, 0), rows(6, 1), torch.tensor([0, 1, 1, 3, 0, 2]), weight


def test_losses_agree_with_the_loops_and_their_gradients() -> None:
    student, teacher, y, weight = case()
    x, z = rows(6, 4, 12).view(6, 1, 3, 4), rows(6, 5, 7)
    both = {"teacher": teacher, "weight": weight}
    kl = partial(hard_samples, divergence="kl", **both)
    labelled = {"y": y, "weight": weight}
    pairs: list[tuple[Any, Any, Tensor]] = [
        (partial(hard_samples, **both), partial(reference.hard_samples, **both), student),
        (kl, partial(reference.hard_samples_kl, **both), student),
        (partial(fidelity, **labelled), partial(reference.fidelity, **labelled), teacher),
        (partial(pairwise_diversity, noise=z), partial(reference.pairwise_diversity, z=z), x),
    ]
    for ours, naive, argument in pairs:
        one, other = argument.clone().requires_grad_(), argument.clone().requires_grad_()
        found, expected = ours(one), naive(other)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        found.backward()
        expected.backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6)
        assert torch.autograd.gradcheck(ours, (argument.clone().requires_grad_(),))


def test_the_student_is_at_fault_and_not_the_teacher() -> None:
    student, teacher, _, weight = case()
    teacher.requires_grad_()
    student.requires_grad_()
    hard_samples(student, teacher, weight).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert hard_samples(teacher, teacher, weight) == 0


def test_the_mean_loss_meets_the_mean_weight() -> None:
    """Not the mean of products: one image of weight 1 among weights of 0 takes a share of all losses."""
    _, teacher, y, _ = case()
    weight = torch.zeros(6, dtype=torch.float64)
    weight[0] = 1.0
    whole = nn.functional.cross_entropy(teacher, y)
    torch.testing.assert_close(fidelity(teacher, y, weight), whole / 6)


def test_diversity_is_one_where_all_is_alike_and_falls_with_distance() -> None:
    x, z = rows(1, 0, 9).repeat(4, 1), rows(4, 1)
    assert pairwise_diversity(x, z) == 1
    apart = (rows(4, 0, 9).requires_grad_(), rows(4, 1).requires_grad_())
    assert torch.autograd.gradcheck(pairwise_diversity, apart)
    near, far = (pairwise_diversity(rows(4, 0, 9) * scale, z) for scale in (1.0, 2.0))
    assert 0 < far < near < 1
    torch.testing.assert_close(far, near**2)  # linear in the exponent


def test_owner_weights_are_shares_of_each_class() -> None:
    found = owner_weights(torch.tensor(COUNTS))
    assert found.tolist() == reference.owner_weights(COUNTS)
    assert found.sum(dim=0).tolist() == [1, 1, 0, 1]  # nobody owns class 2


def test_targets_of_the_owners_agree_with_the_loops() -> None:
    team, y = ensemble(), torch.tensor([0, 1, 3, 1, 0])
    x = pixels(5)
    aims = nn.functional.one_hot(y, CLASSES).float()
    with torch.no_grad():
        expected = reference.owners(team.logits(x).double(), COUNTS, y.tolist())
    found = Owners()(team, x, None, aims).exp()
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=0, atol=1e-6)
    # Class 3 has one owner: its word is the target.
    torch.testing.assert_close(found[2], team.models[1](x)[2].softmax(dim=0))


def test_the_students_loss_has_the_gradient_of_the_papers() -> None:
    """Soft cross-entropy, mean over images and classes, and KL at T = 1 with `mean` differ by a constant."""
    team, y, x = ensemble(), torch.tensor([0, 1, 3, 1, 0]), pixels(5)
    target = Owners()(team, x, None, nn.functional.one_hot(y, CLASSES).float()).double()
    one, other = rows(5, 2).requires_grad_(), rows(5, 2).requires_grad_()
    KL(1.0, "mean")(Answers(target, one), rng()).backward()
    reference.soft_loss(target.exp().tolist(), other).backward()  # type: ignore[arg-type]
    torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6)


def test_one_step_of_the_generator_for_each_client_on_the_same_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, codes = 0, []
    step, images = torch.optim.Adam.step, TanhGenerator.images

    def counted(self: torch.optim.Adam, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(self, *args)

    def noted(self: TanhGenerator, z: Tensor, task: Any) -> Tensor:
        codes.append(z)
        return images(self, z, task)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    monkeypatch.setattr(TanhGenerator, "images", noted)
    team, student = ensemble(), network(9).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = made()(team, student, TASK, rng())
    assert steps == team.passes == 3
    assert len(codes) == 4  # one for each client, and the batch that is handed on
    assert all(torch.equal(code, codes[0]) for code in codes)
    assert codes[0].shape == (6, 5 + CLASSES)
    assert torch.equal(codes[0][:, 5:].argmax(dim=1), found.y)
    assert {"adversarial", "one_hot", "diversity", "total"} == found.losses.keys()
    after = student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert student.training


def test_images_are_handed_on_by_running_statistics() -> None:
    """The student's are not those that the last step saw, by the statistics of their own batch."""
    synthesizer, modes = made(), []
    images = TanhGenerator.images

    class Watched(TanhGenerator):
        def images(self, z: Tensor, task: Any) -> Tensor:
            modes.append(self.training)
            return images(self, z, task)

    synthesizer.make = partial(Watched, width=2)
    synthesizer(ensemble(), network(9), TASK, rng())
    assert modes == [True, True, True, False]
    assert synthesizer.source is not None
    generator = synthesizer.source.generator
    assert generator is not None
    assert generator.training
    assert all(p.requires_grad for p in generator.parameters())
    synthesizer.sample(ensemble(), TASK, 7, rng())
    assert modes[4:] == [False]
    assert generator.training


def test_the_generators_optimizer_remembers_nothing_of_another_round() -> None:
    synthesizer, student = made(), network(9)
    ages = []
    for team in (one := ensemble(), one, ensemble(), one):
        synthesizer(team, student, TASK, rng())
        assert synthesizer.source is not None
        assert synthesizer.source.optimizer is not None
        ages.append({int(state["step"]) for state in synthesizer.source.optimizer.state.values()})
    assert ages == [{3}, {6}, {3}, {3}]


def test_between_rounds_and_within_one_a_resumed_generator_goes_on_alike() -> None:
    first, second, student = ensemble(), ensemble(), network(9)
    going, cpu = made(), torch.device("cpu")
    going(first, student, TASK, rng())
    for layers, team in (({}, second), (second.layers, second)):
        scene, resumed = Scene(TASK, cpu, layers), made()
        # As it is on disk.
        resumed.load_state_dict(unpack(*pack(going.state_dict(scene))), scene)
        expected, found = (g(team, student, TASK, rng(5)) for g in (going, resumed))
        assert torch.equal(found.x, expected.x)


def test_labels_are_as_frequent_as_at_the_clients() -> None:
    y, z = made().draw(ensemble(), 4000, rng())
    total = torch.tensor(COUNTS).sum(dim=0)
    share = torch.bincount(y, minlength=CLASSES) / 4000
    torch.testing.assert_close(share, total / total.sum(), rtol=0, atol=0.03)
    assert share[2] == 0
    assert abs(float(z.mean())) < 0.03
    assert abs(float(z.std()) - 1) < 0.03


def test_label_counts_are_needed() -> None:
    with pytest.raises(ConfigError, match="share_label_counts"):
        made().check(ensemble([None, None]))


@pytest.mark.parametrize(
    ("option", "value"),
    [("adversarial", -1.0), ("divergence", "l2"), ("num_latents", 0), ("batch_size", 1)],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    options = {"num_latents": 5, "batch_size": 6, option: value}
    with pytest.raises(ConfigError, match=f"synthesizer.{option}"):
        FedFtgGenerator(partial(TanhGenerator, width=2), ADAM, **options)


def test_the_student_learns_the_generators_own_batch(tmp_path: Path) -> None:
    taught = []

    class Watching(Owners):
        def __call__(self, ensemble: Any, seen: Tensor, labels: Any, aims: Tensor | None) -> Tensor:
            taught.append(seen.clone())
            return super().__call__(ensemble, seen, labels, aims)

    team, pool, sgd = ensemble(), Pool(), partial(torch.optim.SGD, lr=0.1)
    distiller = Distiller(sgd, loss=KL(1.0, "mean"), batch_size=2, targets=Watching())
    metrics = transfer(
        team,
        network(9),
        made(),
        distiller,
        pool,
        SameBatch(iterations=2, steps=5, show=4),
        task=TASK,
        seed=0,
        server_round=1,
        progress=Progress(quiet=True),
        log=MetricsLog(tmp_path / "metrics.jsonl"),
        evaluate=lambda model: 0.25,
    )
    assert len(taught) == 10
    assert all(len(x) == 6 for x in taught)  # the generator's batch, whole
    assert all(torch.equal(x, taught[5 * (i // 5)]) for i, x in enumerate(taught))
    assert not torch.equal(taught[0], taught[5])
    assert len(pool) == 4
    # per iteration 3 clients x (1 step of the generator, 5 lessons); 3 for the labels of what is shown
    assert metrics["teacher-passes"] == 2 * 3 * (1 + 5) + 3


def test_rates_fall_from_round_to_round() -> None:
    student, sgd = network(1), partial(torch.optim.SGD, lr=0.1)
    lesson = Distiller(sgd, round_decay=0.998).begin(student, server_round=4)
    lesson.set_rate(0.5)
    assert lesson.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.998**3)
    config = shrink(configured("fedftg")["synthesizer"])
    synthesizer = build({**config, "scheduler": {**config["scheduler"], "step_size": 2}}, "synthesizer")
    for _ in range(4):  # two rounds of two batches
        synthesizer(ensemble(), student, TASK, rng())
    assert synthesizer.source.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.998**2)


def test_fresh_images_can_be_had_at_any_time() -> None:
    synthesizer, team = made(), ensemble()
    synthesizer(team, network(9), TASK, rng())
    x = synthesizer.sample(team, TASK, 7, rng())
    assert x.shape == (7, *TASK.shape)
    assert torch.equal(x, synthesizer.sample(team, TASK, 7, rng()))
