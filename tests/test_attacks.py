"""Bad clients: what they train on and send, that nobody else changes, and that the report names them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from small_federation import PARTITION, Classifier, Federation, full_batches
from tiny import images, network, rng

from fl_cmi.attacks.attack import Attack
from fl_cmi.attacks.backdoor import Backdoor
from fl_cmi.attacks.bad_clients import BadClients
from fl_cmi.attacks.collusion import Collusion
from fl_cmi.attacks.label_flip import LabelFlip
from fl_cmi.attacks.random_weights import RandomWeights
from fl_cmi.attacks.scaled import Scaled
from fl_cmi.attacks.success import success
from fl_cmi.compose import bad_clients, compose_config
from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.client import client_app, joined
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.records import ARRAYS, to_record
from fl_cmi.report.attacks import attack_lines, client_marks
from fl_cmi.sides import ClientSide
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError, Images, State, Update

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")
ATTACKS = ("label_flip", "random_weights", "scaled", "backdoor", "collusion")
TINY = (
    "data=synthetic",
    "model.width=2",
    "num_clients=4",
    "partition=iid",
    "local.epochs=1",
    "server_threads=1",
)


def updates(attack: Attack, bad: tuple[int, ...], momentum: float = 0.0) -> list[Update]:
    """What four clients answer in round 1, these of them bad."""
    federation = Federation(Sharing(), full_batches(momentum=momentum), lambda: Classifier(norm=True))

    def side(config_json: str) -> ClientSide:
        return replace(federation.side(config_json), attack=attack, bad_clients=bad)

    found: list[Update] = []
    grid = Participation(
        LocalGrid(client_app("{}", PARTITION, side), 4, reraise=True),
        num_clients=4,
        seed=0,
        observer=lambda _, these: found.extend(these),
    )
    content = [
        RecordDict(
            {
                ARRAYS: to_record(federation.make().state_dict()),
                "config": ConfigRecord({"server-round": 1}),
            }
        )
        for _ in range(4)
    ]
    grid.send_and_receive([Message(part, k, MessageType.TRAIN) for k, part in enumerate(content)])
    return found


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "attack",
    [LabelFlip(), RandomWeights(), Scaled(), Backdoor(size=1), Collusion()],
    ids=lambda a: type(a).__name__,
)
def test_bad_clients_send_something_else_and_the_others_what_they_always_do(attack: Attack) -> None:
    honest, attacked = updates(Attack(), ()), updates(attack, (1, 3))
    same = [equal(one.state, other.state) for one, other in zip(honest, attacked, strict=True)]
    assert same == [True, False, True, False]
    assert all(value.isfinite().all() for update in attacked for value in update.state.values())
    again = updates(attack, (1, 3))
    assert all(equal(one.state, other.state) for one, other in zip(attacked, again, strict=True))


def test_flipped_labels_are_all_wrong_and_counted_as_flipped() -> None:
    given = images(50)
    flipped = LabelFlip().images(given, rng())
    assert torch.equal(flipped.y, (given.y + 1) % 4)
    with pytest.raises(ConfigError, match=r"attacks\.attack\.factor=-1"):
        RandomWeights(-1.0)
    assert torch.equal(LabelFlip("mirrored").images(given, rng()).y, 3 - given.y)
    assert torch.equal(flipped.x, given.x)
    honest, attacked = updates(Attack(), ()), updates(LabelFlip(), (2,))
    assert honest[2].class_counts is not None
    assert attacked[2].class_counts is not None
    assert torch.equal(attacked[2].class_counts, honest[2].class_counts.roll(1))
    with pytest.raises(ConfigError, match=r"attacks\.attack\.to=up"):
        LabelFlip("up")  # type: ignore[arg-type]


def test_random_weights_have_the_honest_scale_and_statistics() -> None:
    model = network(width=16)
    sent = RandomWeights().state(model, {}, rng())
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if name not in parameters:
            assert torch.equal(sent[name], value), name
        elif value.numel() > 500:
            assert not torch.equal(sent[name], value)
            assert sent[name].std().item() == pytest.approx(value.std().item(), rel=0.1)
    assert all(
        torch.allclose(RandomWeights(0.0).state(model, {}, rng())[name], p.mean().expand(p.shape))
        for name, p in parameters.items()
    )


def test_scaled_updates_equal_the_formula() -> None:
    model, start = network(1), {name: value.clone() for name, value in network(0).state_dict().items()}
    trained = model.state_dict()
    sent = Scaled(-3.0).state(model, start, rng())
    for name, _ in model.named_parameters():
        torch.testing.assert_close(sent[name], start[name] - 3.0 * (trained[name] - start[name]))
    for name, value in trained.items():
        if name not in dict(model.named_parameters()):
            assert torch.equal(sent[name], value), name
    ones = Scaled(1.0).state(model, start, rng())
    for name, value in trained.items():
        torch.testing.assert_close(ones[name], value)


@pytest.mark.parametrize("whole", [True, False])
def test_a_backdoor_marks_a_share_of_the_images(whole: bool) -> None:
    given = images(41)
    given = given if whole else Images(given.pixels(), given.y, 4)
    marked = Backdoor(target=2, share=0.5, size=3).images(given, rng())
    white = 255 if whole else 1.0
    rows = (marked.x[:, :, -3:, -3:] == white).flatten(1).all(dim=1)
    assert rows.sum() == 21
    assert (marked.y[rows] == 2).all()
    assert torch.equal(marked.x[~rows], given.x[~rows])
    assert torch.equal(marked.y[~rows], given.y[~rows])
    assert torch.equal(marked.x[:, :, :-3], given.x[:, :, :-3])
    wanted = Backdoor(target=2).wanted(given)
    assert len(wanted) == int((given.y != 2).sum())
    assert (wanted.y == 2).all()
    assert ((wanted.x[:, :, -3:, -3:]) == white).all()


def test_success_is_the_share_that_is_judged_as_wanted() -> None:
    class Constant(torch.nn.Module):
        def __init__(self, says: int = 1) -> None:
            super().__init__()
            self.says = says

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[self.says].expand(len(x), 4)

    test = images(40)
    assert success(Backdoor(1), {"a": [Constant()]}, test, CPU) == {"a": 1.0}
    assert success(Backdoor(0), {"a": [Constant()]}, test, CPU) == {"a": 0.0}
    three = {"all": [Constant(), Constant(0), Constant(2), Constant(3)], "one": [Constant()]}
    assert success(Backdoor(1), three, test, CPU) == {"all": 0.25, "one": 1.0}
    share = (test.y == 0).double().mean().item()
    assert success(Collusion(), {"a": [Constant()]}, test, CPU) == {"a": pytest.approx(share)}
    assert success(RandomWeights(), {"a": [Constant()]}, test, CPU) is None
    assert (
        success(Backdoor(1), {"a": [Constant()]}, test.subset(torch.nonzero(test.y == 1)[:, 0]), CPU) is None
    )


def test_those_who_collude_send_one_model_of_all_their_images() -> None:
    attacked = updates(Collusion(), (0, 2, 3), momentum=0.9)
    assert equal(attacked[0].state, attacked[2].state)
    assert equal(attacked[0].state, attacked[3].state)
    assert [update.num_examples for update in attacked] == [3 + 4 + 8, 5, 15, 15]
    # With random weights they draw alike as well.
    drawn = updates(Collusion(RandomWeights()), (1, 2))
    assert equal(drawn[1].state, drawn[2].state)
    alone = updates(RandomWeights(), (1, 2))
    assert not torch.equal(alone[1].state["embed.weight"], alone[2].state["embed.weight"])


def test_parts_with_and_without_noise_are_joined_as_numbers() -> None:
    whole = images(5)
    noisy = Images(whole.pixels() + 0.1, whole.y, 4)
    assert joined([whole]) is whole
    assert joined([whole, whole]).x.dtype == torch.uint8
    both = joined([whole, noisy])
    torch.testing.assert_close(both.x, torch.cat([whole.pixels(), noisy.x]))
    assert torch.equal(both.y, whole.y.repeat(2))


def test_bad_clients_are_named_or_drawn() -> None:
    assert BadClients(Attack(), [3, 0]).chosen(5, 0) == (0, 3)
    drawn = [BadClients(Attack(), number=n).chosen(10, 7) for n in range(11)]
    assert [len(some) for some in drawn] == list(range(11))
    assert all(set(a) < set(b) for a, b in zip(drawn, drawn[1:], strict=False))
    assert len({BadClients(Attack(), number=2).chosen(10, seed) for seed in range(20)}) > 5
    config = compose_config(["attacks=label_flip", "attacks.clients=[1]"])
    assert bad_clients(config)[1] == (1,)
    assert bad_clients(compose_config([]))[1] == ()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attacks.number=5", "attacks.number=5"),
        ("attacks.number=-1", "attacks.number=-1"),
        ("attacks.number=x", "attacks.number=x"),
        ("attacks.clients=[4]", "attacks.clients="),
        ("attacks.clients=[1,1]", "attacks.clients=.*once"),
        ("attacks.clients=[a]", "attacks.clients="),
        ("attacks.clients=3", "attacks.clients=3"),
        ("attacks.attack.target=4", "target=4"),
        ("attacks.attack.share=2", "share=2"),
        ("attacks.attack.size=0", "size=0"),
        ("attacks.attack.size=9", "size=9"),
        ("attacks._target_=fl_cmi.attacks.scaled.Scaled", "attacks"),
    ],
)
def test_mistakes_are_named_before_the_run(override: str, key: str, tmp_path: Path) -> None:
    config = compose_config([*TINY, "backend=local", "strategy=fedavg", "attacks=backdoor", override])
    with pytest.raises(ConfigError, match=key):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def simulate(folder: Path, *overrides: str, backend: str = "local") -> dict[str, Any]:
    return run(compose_config([*TINY, f"backend={backend}", "strategy=fedavg", *overrides]), folder)


def test_the_summary_names_the_bad_clients(tmp_path: Path) -> None:
    clean, bad = simulate(tmp_path / "a"), simulate(tmp_path / "b", "attacks=backdoor", "attacks.clients=[2]")
    assert clean["attacks"] is None
    assert clean["digest"] != bad["digest"]
    assert bad["attacks"]["clients"] == [2]
    assert bad["attacks"]["attack"] == "Backdoor"
    assert bad["attacks"]["success"].keys() == {"ensemble", "student"}
    assert [row["attack"] for row in bad["clients"]] == [None, None, "Backdoor", None]
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "Backdoor by client 2" in page
    assert "Attacks" not in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert simulate(tmp_path / "c", "attacks=backdoor", "attacks.number=0")["digest"] == clean["digest"]


def test_lines_and_columns_of_the_report() -> None:
    found = {"attack": "Scaled", "clients": [1, 4], "success": None}
    assert attack_lines(found) == ["Scaled by clients 1, 4"]
    assert len(attack_lines({**found, "success": {"student": 0.5}})) == 2
    assert client_marks([{}, {}]) == {}
    rows = [{"trust": 0.5, "attack": None}, {"trust": None, "attack": "Scaled"}]
    assert client_marks(rows) == {"trust": ["50.00 %", "-"], "attack": ["", "Scaled"]}


def test_a_cache_of_teachers_tells_bad_from_honest(tmp_path: Path) -> None:
    cache = f"teacher_cache={tmp_path / 'cache'}"
    bad = ("attacks=collusion", "attacks.clients=[0,2]")
    first, plain = simulate(tmp_path / "a", *bad), simulate(tmp_path / "b")
    assert simulate(tmp_path / "c", cache)["digest"] == plain["digest"]
    stored = len(list((tmp_path / "cache").glob("*.safetensors")))
    found = simulate(tmp_path / "d", cache, *bad)
    assert (found["digest"], found["teacher_cache"]) == (first["digest"], "stored")
    # Honest clients are known already.
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == stored + 2
    assert simulate(tmp_path / "e", cache, *bad)["teacher_cache"] == "hit"
    other = simulate(tmp_path / "f", cache, "attacks=collusion", "attacks.clients=[0,1]")
    assert other["teacher_cache"] == "stored"


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_clients_are_the_same_on_all_backends_bit_by_bit(attack: str, tmp_path: Path) -> None:
    more = (f"attacks={attack}", "attacks.number=2", "rounds=2")
    found = {name: simulate(tmp_path / name, *more, backend=name) for name in ("local", "ray", "flower")}
    assert len({summary["digest"] for summary in found.values()}) == 1
    assert len({tuple(summary["attacks"]["clients"]) for summary in found.values()}) == 1
