"""SCAFFOLD and FedNova against the papers' loops, in the session, in the server's step and as whole runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import reference_federated as reference
import torch
from small_federation import CLASSES, CPU, PARTITION, SIZES, Classifier, Federation, made_up
from torch import Tensor, nn

from fl_cmi.federated.fednova import NORMALIZER, CountedSteps
from fl_cmi.federated.method import Visit
from fl_cmi.federated.scaffold import CONTROL, ControlVariates
from fl_cmi.federated.sharing import Sharing
from fl_cmi.federated.steps import control_step, nova_step, shares, step_towards
from fl_cmi.federated.travel import Travel
from fl_cmi.flower.corrected import FedNova, Scaffold
from fl_cmi.training import LocalTraining, cosine, optimizing
from fl_cmi.types import ConfigError, State

RATE = 0.3


class OneLayer(nn.Module):
    """`W x + b` on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def local(steps: int = 2, momentum: float = 0.0) -> LocalTraining:
    optimizer = partial(torch.optim.SGD, lr=RATE, momentum=momentum)
    return LocalTraining(optimizer, steps=steps, batch_size=100)


def gradient(client: int, flat_weights: Tensor) -> Tensor:
    """Of a client's cross-entropy, at weight and bias in a row."""
    images = made_up().subset(torch.tensor(PARTITION.indices[client]))
    weight, bias = flat_weights[:-CLASSES].view(CLASSES, 4), flat_weights[-CLASSES:]
    found = reference.softmax_gradient(weight, bias, images.x.flatten(1).double(), images.y.tolist())
    return torch.cat([found[0].flatten(), found[1]])


def in_a_row(state: State) -> Tensor:
    return torch.cat([state["layer.weight"].flatten(), state["layer.bias"]]).double()


@pytest.mark.parametrize(
    ("option", "weighted", "server_rate"), [(1, False, 1.0), (2, False, 0.7), (2, True, 1.0)]
)
def test_scaffold_is_algorithm_1(option: Any, weighted: bool, server_rate: float) -> None:
    """Whole runs with two of four clients a round, so that control variates are of different ages."""
    client = ControlVariates(option)
    federation = Federation(Sharing(client), local(), OneLayer, clients_per_round=2)
    strategy = Scaffold(client, federation.server, 4, server_rate, weighted)
    played = federation.play(strategy, 5)
    rounds = [[update.client for update in updates] for updates in played.updates]
    assert len({tuple(clients) for clients in rounds}) > 1
    assert max(sum(k in clients for clients in rounds) for k in range(4)) > 1, "somebody comes again"

    def weights(clients: Sequence[int]) -> list[float]:
        return shares([SIZES[k] for k in clients], weighted)

    gradients = [partial(gradient, k) for k in range(4)]
    start = in_a_row(played.states[0])
    expected = reference.scaffold(start, gradients, rounds, RATE, 2, server_rate, option, weights)
    for found, wanted in zip(played.states[1:], expected, strict=True):
        # Single precision against double.
        torch.testing.assert_close(in_a_row(found), wanted, rtol=1e-5, atol=1e-6)


def test_scaffold_finds_the_optimum_that_averaging_misses() -> None:
    """Quadratics `a_k/2 (w - b_k)^2` in double precision: the optimum of their sum is sum a_k b_k / sum a_k."""
    curvatures, centers = [1.0, 3.0, 0.5], [0.0, 1.0, -4.0]
    optimum = sum(a * b for a, b in zip(curvatures, centers, strict=True)) / sum(curvatures)

    def final(corrected: bool) -> float:
        x, c = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        own = [torch.zeros_like(x) for _ in curvatures]
        for _ in range(200):
            ends: list[State] = []
            changes: list[State] = []
            for k, (a, b) in enumerate(zip(curvatures, centers, strict=True)):
                model = nn.ParameterDict({"w": nn.Parameter(x.clone())})
                visit = Visit(
                    model,
                    made_up(),
                    {CONTROL: {"w": c}},
                    {},
                    {CONTROL: {"w": own[k]}},
                    1,
                    torch.Generator(),
                    CPU,
                )
                session = ControlVariates(2).begin(visit)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
                session.prepare(optimizer, 0.0)
                for _ in range(5):
                    optimizer.zero_grad()
                    (a / 2 * (model["w"] - b) ** 2).backward()
                    if corrected:
                        session.correct()
                    optimizer.step()
                ends.append({"w": model["w"].detach()})
                if corrected:
                    made = session.finish()
                    own[k] = made.kept[CONTROL]["w"]
                    changes.append(made.sent[CONTROL])
            x = step_towards({"w": x}, ends, [1 / 3] * 3)["w"]
            c = control_step({"w": c}, changes, 3)["w"] if corrected else c
        return float(x)

    assert final(corrected=True) == pytest.approx(optimum, abs=1e-9)
    assert abs(final(corrected=False) - optimum) > 0.1


def test_scaffold_under_momentum_keeps_a_weighted_mean_of_gradients() -> None:
    """With a gradient that does not change, c_i+ is that gradient, whatever the momentum and the rates."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))})
    session = ControlVariates(2).begin(Visit(model, made_up(), {}, {}, {}, 1, torch.Generator(), CPU))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    session.prepare(optimizer, 0.0)
    set_rate, slope = optimizing(optimizer, cosine), torch.tensor([0.3, -2.0], dtype=torch.float64)
    for step in range(6):
        set_rate(step / 6)
        model["w"].grad = slope.clone()
        session.correct()
        optimizer.step()
    torch.testing.assert_close(session.finish().kept[CONTROL]["w"], slope)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_travel_is_the_papers_norm(momentum: float, mu: float, steps: int) -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=RATE, momentum=momentum, weight_decay=0.3)
    travel = Travel(optimizer, mu)
    for _ in range(steps):
        weight.grad = torch.ones(1)
        travel.step()
        optimizer.step()
    norm = reference.proximal_norm(steps, RATE * mu) if mu else reference.momentum_norm(steps, momentum)
    assert travel.distance == pytest.approx(RATE * norm, rel=1e-9)


@pytest.mark.parametrize("method", [ControlVariates(), CountedSteps()])
def test_a_client_that_did_not_move_says_so(method: Any) -> None:
    """Its changes would be divided by 0, and the global model be lost without a word."""
    still = LocalTraining(partial(torch.optim.SGD, lr=0.0), steps=2)
    federation = Federation(Sharing(method), still, OneLayer)
    side = federation.server
    strategy = Scaffold(method, side, 4) if isinstance(method, ControlVariates) else FedNova(method, side)
    with pytest.raises(RuntimeError, match=r"moved the weights by 0 .* learning rate above 0"):
        federation.play(strategy, 2)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.8, 0.0), (0.0, 0.4)])
def test_fednova_is_equation_6(momentum: float, mu: float) -> None:
    """Clients of unequal steps: batches of two, one pass."""
    client = CountedSteps()
    optimizer = partial(torch.optim.SGD, lr=RATE, momentum=momentum)
    federation = Federation(
        Sharing(client), LocalTraining(optimizer, epochs=1, batch_size=2), OneLayer, clients_per_round=3
    )
    played = federation.play(FedNova(client, federation.server, proximal_mu=mu), 2)
    for before, after, updates in zip(played.states, played.states[1:], played.updates, strict=False):
        x, ends = in_a_row(before), [in_a_row(update.state) for update in updates]
        steps = [max(1, SIZES[u.client] // 2) for u in updates]  # a remainder of one image is left out
        assert len(set(steps)) > 1
        norms = [
            reference.proximal_norm(s, RATE * mu) if mu else reference.momentum_norm(s, momentum)
            for s in steps
        ]
        wanted = reference.fednova(x, ends, RATE, norms, [u.num_examples for u in updates])
        torch.testing.assert_close(in_a_row(after), wanted, rtol=1e-5, atol=1e-6)
        average = sum(e * u.num_examples for e, u in zip(ends, updates, strict=True))
        average = average / sum(u.num_examples for u in updates)
        assert not torch.allclose(wanted, average, atol=1e-4), "FedAvg would differ"


def test_fednova_of_equal_clients_is_fedavg() -> None:
    ends = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}]
    start = {"w": torch.tensor([0.5, 0.5])}
    new, tau = nova_step(start, ends, [0.25, 0.75], [0.6, 0.6])
    torch.testing.assert_close(new["w"], torch.tensor([2.5, -1.0]))
    assert tau == pytest.approx(0.6)


def test_fednovas_server_momentum_is_a_velocity() -> None:
    client = CountedSteps()
    federation = Federation(Sharing(client), local(), OneLayer)
    plain, heavy = (
        federation.play(FedNova(client, federation.server, server_momentum=rho), 2) for rho in (0.0, 0.5)
    )
    first = [in_a_row(state) for state in heavy.states[:2]]
    torch.testing.assert_close(in_a_row(heavy.states[1]), in_a_row(plain.states[1]))
    # From the same second model the step is the plain one and half the first.
    step = in_a_row(plain.states[2]) - in_a_row(plain.states[1])
    wanted = first[1] + step + 0.5 * (first[1] - first[0])
    torch.testing.assert_close(in_a_row(heavy.states[2]), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [ControlVariates(), CountedSteps()])
def test_buffers_are_averaged_by_examples(method: Any) -> None:
    """Neither the server's rate nor its momentum has a say in them."""
    normed = partial(Classifier, norm=True)
    federation = Federation(Sharing(method), local(), normed, clients_per_round=3)
    side = federation.server
    scaffold = isinstance(method, ControlVariates)
    strategy = Scaffold(method, side, 4, 0.7) if scaffold else FedNova(method, side, server_momentum=0.5)
    played = federation.play(strategy, 3)
    buffers = [name for name, _ in normed().named_buffers()]
    assert len(buffers) == 3
    for after, updates in zip(played.states[1:], played.updates, strict=True):
        total = sum(update.num_examples for update in updates)
        for name in buffers:
            mean = sum(update.state[name].double() * update.num_examples for update in updates) / total
            torch.testing.assert_close(after[name].double(), mean, rtol=1e-6, atol=1e-6)
        plain = sum(update.state["norm.running_mean"] for update in updates) / len(updates)
        assert not torch.allclose(after["norm.running_mean"], plain, atol=1e-4)


def test_what_is_sent_is_counted() -> None:
    """Names and payload of the records that each method adds, over two rounds of all four clients."""
    counted = CountedSteps()
    plain = Federation(Sharing(counted), local(), OneLayer)
    nova = plain.play(FedNova(counted, plain.server), 2)
    assert nova.grid is not None
    assert {name for update in nova.updates[0] for name in update.extra} == {NORMALIZER}
    variates = ControlVariates()
    twice = Federation(Sharing(variates), local(), OneLayer)
    scaffold = twice.play(Scaffold(variates, twice.server, 4), 2)
    assert scaffold.grid is not None
    model = sum(128 + 4 * value.numel() + len(name) for name, value in nova.states[0].items())
    number = len(NORMALIZER) + 128 + 8
    # Up: the model and the change of c_k, against the model and one number.
    assert scaffold.grid.bytes_up - nova.grid.bytes_up == 8 * (model - number)
    # Down: c from the second round on; FedNova sends proximal-mu in both.
    assert scaffold.grid.bytes_down - nova.grid.bytes_down == 4 * model - 8 * (len("proximal-mu") + 8)
    numbers = sum(p.numel() for p in OneLayer().parameters())
    assert variates.disclosed(OneLayer(), twice.server.task) == [
        f"change of its control variate ({numbers} numbers)"
    ]


def test_runs_repeat_bit_by_bit() -> None:
    def digest(seed: int) -> list[Tensor]:
        client = ControlVariates()
        sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9)
        training = LocalTraining(sgd, epochs=2, batch_size=2)
        federation = Federation(Sharing(client), training, OneLayer, clients_per_round=2, seed=seed)
        return [in_a_row(s) for s in federation.play(Scaffold(client, federation.server, 4), 4).states]

    assert all(torch.equal(a, b) for a, b in zip(digest(0), digest(0), strict=True))
    assert not torch.equal(digest(0)[-1], digest(1)[-1])


def test_mistakes_are_named() -> None:
    adam = LocalTraining(partial(torch.optim.Adam, lr=0.1), steps=1)
    corrected = LocalTraining(partial(torch.optim.SGD, lr=0.1), steps=1, prior_correction=True)
    own = LocalTraining(partial(torch.optim.SGD, lr=0.1), start="own", steps=1)
    clipped = LocalTraining(partial(torch.optim.SGD, lr=0.1), steps=1, clip=1.0)
    for method in (ControlVariates(), CountedSteps()):
        with pytest.raises(ConfigError, match=r"^local\.optimizer=Adam: torch\.optim\.SGD"):
            method.check(adam)
        with pytest.raises(ConfigError, match=r"^local\.start=own: broadcast"):
            method.check(own)
        with pytest.raises(ConfigError, match=r"^local\.clip=1\.0: null"):
            method.check(clipped)
        method.check(local())
    with pytest.raises(ConfigError, match=r"^local\.prior_correction=true"):
        ControlVariates(1).check(corrected)
    with pytest.raises(ConfigError, match=r"^strategy\.client\.option=3"):
        ControlVariates(3)  # type: ignore[arg-type]
    side = Federation(Sharing(), local(), OneLayer).server
    with pytest.raises(ConfigError, match=r"^strategy\.server_rate=0"):
        Scaffold(ControlVariates(), side, 4, server_rate=0)
    with pytest.raises(ConfigError, match=r"^strategy\.server_momentum=1"):
        FedNova(CountedSteps(), side, server_momentum=1.0)
    with pytest.raises(ConfigError, match=r"^strategy\.proximal_mu=-1"):
        FedNova(CountedSteps(), side, proximal_mu=-1)
