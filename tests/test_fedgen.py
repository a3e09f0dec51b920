"""FedGen: its losses against loops, both halves in both variants, and what travels."""

from functools import partial
from typing import Any

import pytest
import reference
import reference_federated
import torch
from small_federation import CLASSES, CPU, SIZES, TASK, Classifier, Federation, flat, full_batches, made_up
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.ensemble import owner_weights
from fl_cmi.federated.buffers import KeepLocal
from fl_cmi.federated.fedgen import GENERATOR, LABELS, LatentRegularized
from fl_cmi.federated.fedgen_losses import mean_logits_teacher, released_teacher, weighted_teacher
from fl_cmi.federated.fedgen_server import GeneratorTraining, LabelCounts
from fl_cmi.federated.method import Visit
from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.fedgen import FedGen
from fl_cmi.flower.records import to_record
from fl_cmi.models.fedgen import FedGenNet
from fl_cmi.models.initialize import initialize
from fl_cmi.models.latent import LatentGenerator
from fl_cmi.types import ConfigError

SMALL = partial(LatentGenerator, width=8, num_noise=4)
ADAM = partial(torch.optim.Adam, lr=3e-4, weight_decay=1e-2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(("classes", "classifier", "generator"), [(10, 26_434, 19_744), (26, 26_962, 23_840)])
def test_networks_have_the_published_sizes(classes: int, classifier: int, generator: int) -> None:
    model = FedGenNet((1, 28, 28), classes, (0.5,), (0.5,))
    assert numbers(model) == classifier
    assert model.embed.in_features == 784
    assert numbers(LatentGenerator(classes, 32)) == generator
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, classes)


def test_the_net_for_faces_ends_at_64_numbers() -> None:
    layers = [16, "M", 32, "M", 64, "M"]
    assert FedGenNet((3, 84, 84), 2, (0.5,) * 3, (0.5,) * 3, layers=layers).embed.in_features == 64
    with pytest.raises(ConfigError, match=r"^model\.layers="):
        FedGenNet((1, 8, 8), 2, (0.5,), (0.5,), layers=layers)
    with pytest.raises(ConfigError, match=r"^model\.layers="):
        FedGenNet((1, 8, 8), 2, (0.5,), (0.5,), layers=["P"])


def test_noise_is_as_told() -> None:
    uniform, normal = (SMALL(3, 5, noise=kind).draw(2000, rng(), CPU) for kind in ("uniform", "normal"))
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    assert normal.mean().abs() < 0.05
    assert normal.std() == pytest.approx(1, abs=0.05)
    with pytest.raises(ConfigError, match=r"^strategy\.client\.generator\.noise="):
        SMALL(3, 5, noise="pink")
    with pytest.raises(ConfigError, match=r"^strategy\.client\.generator\.width="):
        SMALL(3, 5, width=0)


# ---------------------------------------------------------------------------------------------- the losses


def test_teacher_losses_are_the_loops() -> None:
    logits, y = randn(3, 4, CLASSES), torch.tensor([0, 2, 1, 2])
    counts = [[5.0, 1, 1], [1.0, 1, 4], [2.0, 0, 3]]
    weights = owner_weights(torch.tensor(counts, dtype=torch.int64)).T
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(CLASSES, dtype=torch.float64))
    wanted = reference_federated.weighted_teacher(logits, y.tolist(), counts)
    torch.testing.assert_close(weighted_teacher(logits, y, weights), wanted)
    wanted = reference_federated.released_teacher(logits, y.tolist(), counts)
    torch.testing.assert_close(released_teacher(logits, y, weights), wanted)
    # The release: a row of losses times a column of weights.
    column, row = weights[y][:, 1, None], F.cross_entropy(logits[1], y, reduction="none")
    only = torch.zeros_like(weights)
    only[:, 1] = weights[:, 1]
    torch.testing.assert_close(released_teacher(logits, y, only), (row * column).mean())
    wanted = reference_federated.mean_logits_teacher(logits, y.tolist())
    torch.testing.assert_close(mean_logits_teacher(logits, y, weights), wanted)
    logits.requires_grad_()
    for loss in (released_teacher, weighted_teacher, mean_logits_teacher):
        assert torch.autograd.gradcheck(lambda values, loss=loss: loss(values, y, weights), (logits,))
    # One client that owns everything: all are its cross-entropy.
    alone = torch.ones(CLASSES, 1, dtype=torch.float64)
    for loss in (released_teacher, weighted_teacher, mean_logits_teacher):
        torch.testing.assert_close(loss(logits[:1], y, alone), F.cross_entropy(logits[0], y))


# ---------------------------------------------------------------------------------------------- the client


def visit(model: Classifier, round_: int = 3, **more: Any) -> Visit:
    generator = SMALL(CLASSES, model.num_features)
    initialize(generator, rng(7))
    received = {
        GENERATOR: {name: value.clone() for name, value in generator.state_dict().items()},
        LABELS: {"prior": torch.tensor([0.5, 0.0, 0.5])},
    }
    return Visit(model, made_up(), more.get("received", received), {}, {}, round_, rng(9), CPU)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_clients_terms_are_the_equation(scaled: bool) -> None:
    """`S a_t CE(h(G(y')), y') + b_t KL(p(h(G(y))) || p(x))` with a generator in eval mode."""
    model = Classifier()
    method = LatentRegularized(SMALL, 10.0, 4.0, decay=0.5, num_samples=6, batch_scale=scaled)
    session = method.begin(visit(model, round_=3))
    y, logits = torch.tensor([1, 2, 2, 0]), randn(4, CLASSES, seed=4).float().requires_grad_()
    loss = session.loss(logits, y)
    generator, draws = SMALL(CLASSES, 3), rng(9)
    initialize(generator, rng(7))
    generator.eval()
    drawn = torch.multinomial(torch.tensor([0.5, 0.0, 0.5]), 6, replacement=True, generator=draws)
    assert set(drawn.tolist()) <= {0, 2}
    made = model.classifier(generator(generator.draw(6, draws, CPU), drawn)).double()
    target = model.classifier(generator(generator.draw(4, draws, CPU), y)).double()
    decay = 0.5**2
    wanted = (6 / 4 if scaled else 1) * 10 * decay * reference.cross_entropy(made, drawn)
    wanted = wanted + 4 * decay * reference.kl_divergence(target.detach(), logits.double(), 1.0)
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    # The divergence's target is fixed: the head's gradient is that of the cross-entropy alone.
    loss.backward()
    (scale,) = torch.autograd.grad(
        (6 / 4 if scaled else 1) * 10 * decay * reference.cross_entropy(made, drawn), model.classifier.weight
    )
    torch.testing.assert_close(model.classifier.weight.grad, scale, rtol=1e-4, atol=1e-5)
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_weights_do_not_decay_below_the_least() -> None:
    session = LatentRegularized(SMALL, decay=0.5).begin(visit(Classifier(), round_=60))
    assert session.weight(10.0) == 1e-4
    assert session.weight(0.0) == 0.0


def test_before_a_generator_comes_training_is_plain() -> None:
    method = LatentRegularized(SMALL)
    session = method.begin(visit(Classifier(), round_=1, received={}))
    assert session.loss(torch.zeros(2, CLASSES), torch.tensor([0, 1])) == 0.0
    assert session.finish().sent[LABELS]["count"].tolist() == [2, 2, 1], "1, and what was seen"


def test_labels_of_the_training_set_are_the_papers() -> None:
    method = LatentRegularized(SMALL, counts="images")
    made = method.begin(visit(Classifier())).finish()
    assert made.sent[LABELS]["count"].tolist() == made_up().class_counts().tolist()
    assert method.count_start == 0


# ---------------------------------------------------------------------------------------------- the server


def test_the_server_knows_who_owns_what() -> None:
    counts = LabelCounts(start=1)
    counts.add({0: torch.tensor([5, 1, 1]), 2: torch.tensor([1, 1, 4])})
    assert counts.prior("owned").tolist() == [0.5, 0, 0.5]
    counts.add({0: torch.tensor([1, 3, 1])})
    assert counts.prior("owned").tolist() == pytest.approx([1 / 3] * 3), "labels heard of are not forgotten"
    assert counts.prior("frequent").tolist() == pytest.approx([2 / 11, 4 / 11, 5 / 11]), "the last counts are"


@pytest.mark.parametrize("teacher", [released_teacher, weighted_teacher, mean_logits_teacher])
def test_the_generator_learns_what_the_heads_know(teacher: Any) -> None:
    heads = [Classifier(seed=k).classifier for k in range(2)]
    generator = SMALL(CLASSES, 3)
    initialize(generator, rng(1))
    counts = LabelCounts(0)
    counts.add({0: torch.tensor([4, 2, 0]), 1: torch.tensor([1, 2, 0])})
    training = GeneratorTraining(
        partial(torch.optim.Adam, lr=0.02), steps=30, rate_decay=0.5, teacher=teacher
    )
    first = training(generator, heads, counts, rng(2))
    for _ in range(3):
        last = training(generator, heads, counts, rng(3))
    assert last["teacher"] < 0.7 * first["teacher"]
    assert training.optimizer is not None
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * 0.5**4)
    assert generator.training, "batch norm by its own batches"


def test_a_step_of_the_generator_is_the_formula() -> None:
    heads = [Classifier(seed=k).classifier for k in range(2)]
    generator, twin = SMALL(CLASSES, 3), SMALL(CLASSES, 3)
    initialize(generator, rng(1))
    twin.load_state_dict(generator.state_dict())
    counts = LabelCounts(1)
    rows = {0: torch.tensor([4, 2, 1]), 1: torch.tensor([1, 3, 1])}
    counts.add(rows)
    sgd = partial(torch.optim.SGD, lr=0.1)
    GeneratorTraining(sgd, steps=1, batch_size=5, diversity_weight=0.3)(generator, heads, counts, rng(2))
    draws = rng(2)
    y = torch.multinomial(torch.tensor([0.5, 0.5, 0.0]), 5, replacement=True, generator=draws)
    eps = twin.draw(5, draws, CPU)
    z = twin.train()(eps, y)
    said = torch.stack([head(z) for head in heads])
    loss = reference_federated.released_teacher(said, y.tolist(), [r.tolist() for r in rows.values()])
    (loss + 0.3 * reference_federated.diversity(eps, z)).backward()
    for parameter, expected in zip(generator.parameters(), twin.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(parameter, expected - 0.1 * expected.grad, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the rounds


def federation(method: LatentRegularized, **more: Any) -> Federation:
    sharing = Sharing(method, more.pop("buffers")) if "buffers" in more else Sharing(method)
    return Federation(sharing, full_batches(), **more)


def strategy(method: LatentRegularized, made: Federation, **more: Any) -> FedGen:
    return FedGen(method, GeneratorTraining(ADAM, steps=3, batch_size=4), made.server, **more)


def test_what_travels_is_counted() -> None:
    method = LatentRegularized(SMALL)
    made = federation(method, clients_per_round=2)
    plan = strategy(method, made)
    played = made.play(plan, 3)
    assert played.grid is not None

    def size(state: dict[str, Tensor]) -> int:
        record = to_record(state)
        return sum(len(name) + len(array.data) for name, array in record.items())

    model, generator = size(made.make().state_dict()), size(plan.generator.state_dict())
    prior = len("prior") + 128 + 4 * CLASSES
    setting = len("server-round") + 8
    assert played.grid.bytes_down == 6 * (model + setting) + 4 * (generator + prior)
    metrics = ("num-examples", "partition-id", "loss", "accuracy", "steps")
    own = sum(len(name) + 8 for name in metrics) + len("class-counts") + 8 * CLASSES
    assert played.grid.bytes_up == 6 * (model + own + len("count") + 128 + 8 * CLASSES)
    assert method.disclosed(made.make(), TASK) == ["labels of its batches of the round (3 integers)"]


def test_rounds_repeat_and_the_generator_counts() -> None:
    def final(**settings: Any) -> Tensor:
        method = LatentRegularized(SMALL, **settings)
        made = federation(method, clients_per_round=2)
        return flat(made.play(strategy(method, made), 4).states[-1])

    first = final()
    assert torch.equal(first, final())
    assert not torch.equal(first, final(cross_entropy=0.0))
    assert not torch.equal(first, final(divergence=0.0))


def test_the_global_model_is_the_average_by_examples() -> None:
    method = LatentRegularized(SMALL)
    made = federation(method)
    played = made.play(strategy(method, made), 2)
    mean = sum(flat(u.state) * n for u, n in zip(played.updates[1], SIZES, strict=True)) / sum(SIZES)
    torch.testing.assert_close(flat(played.states[2]), mean, rtol=1e-6, atol=1e-6)


def test_the_head_alone_may_be_shared() -> None:
    method = LatentRegularized(SMALL, share="head")
    made = federation(method, clients_per_round=2)
    played = made.play(strategy(method, made, prior="frequent"), 4)
    for update in (update for round_ in played.updates for update in round_):
        assert update.shared.keys() == {"classifier.weight", "classifier.bias"}
    first, last = played.states[0], played.states[-1]
    assert torch.equal(first["embed.weight"], last["embed.weight"])
    assert not torch.equal(first["classifier.weight"], last["classifier.weight"])
    # A client's own part goes on from its last visit.
    visits: dict[int, list[Tensor]] = {}
    for update in (update for round_ in played.updates for update in round_):
        visits.setdefault(update.client, []).append(update.state["embed.weight"])
    again = [states for states in visits.values() if len(states) > 1]
    assert again
    assert all(not torch.equal(states[0], states[1]) for states in again)


def test_buffers_may_stay_with_the_clients() -> None:
    from fl_cmi.flower.buffers import SeparateBuffers

    method = LatentRegularized(SMALL)
    made = federation(method, buffers=KeepLocal(), make=partial(Classifier, norm=True))
    played = made.play(SeparateBuffers(strategy(method, made), made.server), 2)
    assert all("norm.running_mean" not in update.shared for update in played.updates[0])
    assert played.states[-1]["norm.running_mean"].tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cross_entropy": -1.0}, "strategy.client.cross_entropy"),
        ({"decay": 0.0}, "strategy.client.decay"),
        ({"num_samples": 0}, "strategy.client.num_samples"),
        ({"counts": "none"}, "strategy.client.counts"),
        ({"share": "tail"}, "strategy.client.share"),
    ],
)
def test_mistakes_of_the_client_are_named(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}="):
        LatentRegularized(SMALL, **settings)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"steps": 0}, "steps"), ({"batch_size": 1}, "batch_size"), ({"labels": "all"}, "labels")],
)
def test_mistakes_of_the_server_are_named(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^strategy\.training\.{key}="):
        GeneratorTraining(ADAM, **settings)


def test_own_start_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^local\.start=own"):
        LatentRegularized(SMALL).check(full_batches(start="own"))
