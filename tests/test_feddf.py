"""FedDF: the server's own images, early stopping, prototypes by architecture, clients that are left out."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_server as reference
import torch
from by_hand import train_messages
from flwr.clientapp import ClientApp
from tiny import SHAPE, TASK, ensemble, images, network, rng
from torch import nn

from fl_cmi.bank import Shuffled
from fl_cmi.compose import compose_config, dataset, make_partition, server_side
from fl_cmi.distillation.budget import Budget
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.early_stopping import EarlyStopping
from fl_cmi.distillation.kl import KL
from fl_cmi.distillation.proxy import NoiseDraws, Unlabelled, surest
from fl_cmi.ensemble import mean_logits
from fl_cmi.flower.feddf import FedDF, shares, split, worth_keeping
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.prototypes import Prototypes
from fl_cmi.flower.records import from_record
from fl_cmi.flower.scores import Scores
from fl_cmi.losses import entropy
from fl_cmi.partition import Partition, hold_out, iid
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError, State, Update, architecture

ADAM = partial(torch.optim.Adam, lr=1e-3)


def side_of(folder: Path, *overrides: str) -> ServerSide:
    config = compose_config(["data=synthetic", "partition.alpha=1.0", "model.width=4", *overrides])
    data = dataset(config)
    log = MetricsLog(folder / "metrics.jsonl")
    return server_side(config, data, Progress(quiet=True), log, make_partition(config, data))


def strategy(side: ServerSide, **options: Any) -> FedDF:
    distiller = Distiller(ADAM, loss=KL(1.0), batch_size=16, clip=5.0)
    return FedDF(mean_logits, distiller, EarlyStopping(8, 2, 4), side, **options)


# -------------------------------------------------------------------------------------- held-out images


def test_images_are_set_aside_before_the_others_are_dealt() -> None:
    labels = np.arange(100) % 4
    given: list[int] = []

    def deal(found: np.ndarray) -> Partition:
        given.append(len(found))
        return iid(found, 3, np.random.default_rng(1))

    parted = hold_out(labels, 30, np.random.default_rng(0), deal)
    assert given == [70]
    assert parted.held_out is not None
    everybody = np.concatenate([*parted.indices, parted.held_out])
    assert sorted(everybody) == list(range(100))
    assert len(parted.held_out) == 30
    assert "30 images were held out for the server before" in parted.notes
    other = hold_out(labels, 30, np.random.default_rng(5), deal)
    assert other.held_out is not None
    assert set(other.held_out) != set(parted.held_out)


def test_nothing_set_aside_changes_nothing_and_all_is_too_much() -> None:
    labels = np.arange(40) % 4
    plain = iid(labels, 3, np.random.default_rng(1))
    found = hold_out(labels, 0, np.random.default_rng(0), lambda y: iid(y, 3, np.random.default_rng(1)))
    assert found.hash == plain.hash
    assert found.held_out is None
    with pytest.raises(ConfigError, match="held_out=40"):
        hold_out(labels, 40, np.random.default_rng(0), lambda y: plain)


def test_what_a_partition_holds_out_is_the_servers_too(tmp_path: Path) -> None:
    config = compose_config(["data=synthetic", "partition=feddf", "partition.alpha=1.0", "held_out=40"])
    data = dataset(config)
    parted = make_partition(config, data)
    assert parted.held_out is not None
    assert len(parted.held_out) == 40 + 36  # a tenth of the other 360
    assert sorted(np.concatenate([*parted.indices, parted.held_out])) == list(range(400))
    side = server_side(config, data, Progress(quiet=True), MetricsLog(tmp_path / "m.jsonl"), parted)
    assert side.held_out is not None
    assert torch.equal(side.held_out.y, data.train.y[torch.from_numpy(parted.held_out)])
    same = make_partition(compose_config(["data=synthetic", "held_out=40"]), data)
    assert same.held_out is not None
    assert set(same.held_out) <= set(parted.held_out), "the choice has a stream of its own"


def test_validation_and_proxy_share_no_image(tmp_path: Path) -> None:
    side = side_of(tmp_path, "held_out=50")
    validation, proxy = split(side, 0.2)
    assert (len(validation), len(proxy)) == (10, 40)
    rows = {tuple(x.flatten().tolist()) for part in (validation, proxy) for x in part.x}
    assert len(rows) == 50
    assert strategy(side).disclosed == (
        "server needs 45 unlabelled images of its own (proxy data)",
        "server needs 5 labelled images of its own (early stopping)",
    )
    assert len(strategy(side, inputs="noise").disclosed) == 1
    with pytest.raises(ConfigError, match="held_out=0"):
        strategy(side_of(tmp_path))


def test_proxy_images_come_without_labels() -> None:
    batch = Shuffled(Unlabelled(images(10))).draw(4, rng())
    assert batch.y is None
    assert batch.labels is None
    assert batch.x.shape == (4, *SHAPE)
    noise = NoiseDraws(ensemble(), TASK).draw(5, rng())
    assert noise.y is None
    assert noise.x.shape == (5, *SHAPE)


def test_surest_images_have_the_least_entropy() -> None:
    team, many = ensemble(), images(20)
    kept = surest(team, many, 0.25, batch_size=7)
    spread = entropy(team.label(many.pixels()).exp())
    expected = many.subset(spread.argsort()[:5].sort().values)
    assert torch.equal(kept.x, expected.x)
    with pytest.raises(ConfigError, match="strategy.surest"):
        surest(team, many, 0.0)


# --------------------------------------------------------------------------------------- early stopping


def stopped(
    accuracies: list[float], stopping: EarlyStopping, budget: Budget | None = None, recalibrate: int = 0
) -> tuple[Any, State, list[State]]:
    """Validation says what it is told; the students as they were at each look."""
    student, looks = network(9), []
    said = iter(accuracies)

    def validate(model: nn.Module) -> float:
        looks.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(said)

    lesson = Distiller(ADAM, loss=KL(1.0), batch_size=4, recalibrate=recalibrate).begin(student)
    found = stopping(
        lesson,
        ensemble(),
        Shuffled(Unlabelled(images(12))),
        validate,
        rng,
        Budget() if budget is None else budget,
    )
    return found, dict(student.state_dict()), looks


def test_the_best_validated_student_is_kept() -> None:
    found, state, looks = stopped([0.1, 0.5, 0.4, 0.5], EarlyStopping(6, 2, None))
    assert (found.steps, found.best_step, found.accuracy) == (6, 2, 0.5)
    assert all(torch.equal(state[name], value) for name, value in looks[1].items())
    assert not torch.equal(state["classifier.weight"], looks[3]["classifier.weight"])


def test_the_validated_student_has_the_statistics_of_the_images_as_they_are() -> None:
    _, _, looks = stopped([0.1, 0.5, 0.4, 0.5], EarlyStopping(6, 2, None), recalibrate=12)
    tracked = [name for name in looks[0] if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(look[name] == 3 for look in looks[1:] for name in tracked), "12 images in batches of 4"


def test_patience_counts_steps_since_the_best_look() -> None:
    rising = [0.1, 0.2, 0.1, 0.3, 0.3, 0.3, 0.9]
    found, _, looks = stopped(rising, EarlyStopping(100, 10, 20))
    assert (found.steps, found.best_step) == (50, 30)
    assert len(looks) == 6


def test_the_start_counts_and_the_last_chunk_is_cut() -> None:
    found, state, looks = stopped([0.9, 0.2, 0.2], EarlyStopping(5, 3, 1000))
    assert (found.steps, found.best_step) == (5, 0)
    assert all(torch.equal(state[name], value) for name, value in looks[0].items())
    assert len(looks) == 3


def test_time_ends_it_too() -> None:
    found, _, looks = stopped([0.0, 0.1], EarlyStopping(1000, 1, None), Budget(1e-9))
    assert found.steps == 0
    assert len(looks) == 1


@pytest.mark.parametrize("options", [{"steps": 0}, {"check_every": 0}, {"patience": 0}])
def test_numbers_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"strategy.stopping.{next(iter(options))}"):
        EarlyStopping(**options)


# --------------------------------------------------------------------------------- clients that are left out


@pytest.mark.parametrize(
    "accuracies",
    [
        [0.11, 0.5, 0.6],
        [0.05, 0.1],
        [0.5, 0.5, 0.5],
        [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.3],
        [0.05, 0.8, 0.8, 0.8, 0.8, 0.79, 0.3],
    ],
)
def test_drop_worst_agrees_with_plain_numbers(accuracies: list[float]) -> None:
    assert worth_keeping(accuracies, 10) == reference.worth_keeping(accuracies, 10)


def test_drop_worst_by_hand() -> None:
    assert worth_keeping([0.11, 0.5, 0.6], 10) == [1, 2]
    assert worth_keeping([0.05, 0.1], 10) == [0, 1]  # nobody is above chance
    assert worth_keeping([0.8] * 6 + [0.3], 10) == [0, 1, 2, 3, 4, 5]


def test_dropped_clients_are_in_neither_average_nor_ensemble(tmp_path: Path) -> None:
    side = side_of(tmp_path, "held_out=60")
    made = strategy(side, drop_worst=True, validation_share=0.5)

    def update(client: int) -> Update:
        return Update(client, 10, None, side.build(client).state_dict())

    said = iter([0.9, 0.1, 0.9])
    made.validate = lambda model: next(said)  # type: ignore[method-assign]
    assert [kept.client for kept in made.kept([update(k) for k in range(3)])] == [0, 2]
    made.drop_worst = False
    assert len(made.kept([update(k) for k in range(3)])) == 3


# ----------------------------------------------------------------------------------------- prototypes


def shifted(state: State, by: float) -> State:
    return {name: value + by if value.is_floating_point() else value for name, value in state.items()}


def test_each_architecture_is_averaged_by_its_own_clients(tmp_path: Path) -> None:
    side = side_of(tmp_path, "teachers=mixed", "num_clients=5")
    found = Prototypes(side)
    assert found.mixed
    kinds = [found.of_client(client) for client in range(5)]
    assert kinds[4] == kinds[0]
    assert len(found.states) == 5  # four of the clients, and the student's own narrow convnet
    before = found.states[kinds[1]]
    updates = [
        Update(client, number, None, shifted(side.build(client).state_dict(), by))
        for client, number, by in ((0, 1, 0.0), (4, 3, 4.0), (2, 1, 1.0))
    ]
    assert set(found.average(updates)) == {kinds[0], kinds[2]}
    start = side.build(0).state_dict()["classifier.weight"]
    torch.testing.assert_close(found.states[kinds[0]]["classifier.weight"], start + 3.0)  # (1*0 + 3*4) / 4
    assert found.states[kinds[1]] is before
    assert architecture(found.model(kinds[2]).state_dict()) == kinds[2]


def test_networks_are_made_for_architectures_not_for_clients(tmp_path: Path) -> None:
    side = side_of(tmp_path, "teachers=mixed", "num_clients=9")
    made: list[int] = []

    def build(client: int) -> nn.Module:
        made.append(client)
        return side.build(client)

    counted = replace(side, build=build)
    found, scores = Prototypes(counted), Scores(counted)
    kinds = [found.of_client(client) for client in range(9)]
    assert kinds == [architecture(side.build(client).state_dict()) for client in range(9)]
    assert made == [0, 1, 2, 3]
    for _ in range(2):
        scores.remember([Update(client, 1, None, {}) for client in range(9)])
    assert made[4:] == [0, 1, 2, 3]


def test_clients_of_an_architecture_get_the_same_content(tmp_path: Path) -> None:
    """Grids put each content into the object store once; order of the tensors does not make an architecture."""
    found = Prototypes(side_of(tmp_path, "teachers=mixed", "num_clients=5"))
    grid = Participation(LocalGrid(ClientApp(), 5), num_clients=5, seed=0)
    sent = list(found.addressed(train_messages(range(5)), grid))
    assert [message.metadata.dst_node_id for message in sent] == list(range(5))
    assert sent[0].content is sent[4].content
    assert len({id(message.content) for message in sent}) == 4
    for client, message in enumerate(sent):
        state = from_record(message.content.array_records["arrays"])
        assert architecture(dict(reversed(state.items()))) == found.of_client(client)


def test_one_architecture_needs_one_prototype(tmp_path: Path) -> None:
    found = Prototypes(side_of(tmp_path))
    assert not found.mixed
    assert list(found.states) == [found.own]


@pytest.mark.parametrize(
    ("option", "value"),
    [("validation_share", 1.0), ("inputs", "web"), ("surest", 0.0), ("students", "some"), ("budget_s", 0)],
)
def test_options_out_of_range_are_refused(option: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=option):
        strategy(side_of(tmp_path, "held_out=20"), **{option: value})
    with pytest.raises(ConfigError, match=r"^strategy\.surest=0\.5: null, because strategy\.inputs=noise"):
        strategy(side_of(tmp_path, "held_out=20"), inputs="noise", surest=0.5)


def test_students_share_what_is_left_of_the_time() -> None:
    now = [100.0]
    found = []
    for share in shares(15.0, 3, lambda: now[0], 97.0):  # 3 s went into choosing clients and images
        found.append(share)
        now[0] += {1: 5.0, 2: 1.0, 3: 9.0}[len(found)]  # late, early, late
    assert found == [4.0, 3.5, 6.0]
    assert list(shares(None, 2, lambda: 0.0, 0.0)) == [None, None]


# ------------------------------------------------------------------------------------------ the maths


def test_students_follow_the_mean_of_the_clients_logits() -> None:
    """AVGLOGITS: KL(softmax(mean_k t_k) || softmax(s)) at T = 1, by hand on one step of SGD."""
    team, student, x = ensemble(), network(9), images(4)
    lesson = Distiller(partial(torch.optim.SGD, lr=0.5), loss=KL(1.0), batch_size=4).begin(student)
    twin = network(9).train()
    order = torch.randperm(4, generator=rng())
    lesson(team, Shuffled(Unlabelled(x)), 1, (0.0, 1.0), rng())
    target = torch.stack([model(x.pixels(order)) for model in team.models]).mean(dim=0).softmax(dim=1)
    logits = twin(x.pixels(order))
    loss = (target * (target.log() - logits.log_softmax(dim=1))).sum(dim=1).mean()
    loss.backward()
    for mine, own in zip(student.parameters(), twin.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(mine.detach(), own.detach() - 0.5 * own.grad, atol=1e-5, rtol=1e-4)
