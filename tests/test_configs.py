"""Every YAML file composes, and what it describes can be built."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class, get_method
from tiny import rng

from fl_cmi.attacks.attack import Attack
from fl_cmi.checks import check, check_distillation
from fl_cmi.compose import (
    Clients,
    bad_clients,
    build,
    compose_config,
    config_folder,
    dataset,
    make_model,
    make_partition,
    server_side,
    sharing,
    task,
)
from fl_cmi.distillation.budget import CLOCKS
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.ensemble import Ensemble
from fl_cmi.federated.buffers import BufferPolicy
from fl_cmi.federated.method import ClientMethod
from fl_cmi.partition import Partition
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.training import LocalTraining
from fl_cmi.types import Teacher

EMBEDDED = {"digits", "synthetic"}

NEEDS = {"feddf": ("held_out=40",)}
"""What a strategy cannot do without."""

GROUPS = {
    "data",
    "partition",
    "model",
    "teachers",
    "local",
    "combine",
    "synthesizer",
    "distiller",
    "schedule",
    "strategy",
    "buffers",
    "backend",
    "compression",
    "attacks",
    "calibration",
    "method",
    "experiment",
}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def composed(group: str, name: str, *more: str) -> dict[str, Any]:
    """The configuration with this choice, on made-up data unless the choice is the data."""
    data = [] if group in ("data", "experiment") else ["data=synthetic"]
    return compose_config([*data, f"{group}={name}", *more])


def test_the_groups_are_those_that_are_documented() -> None:
    assert {path.name for path in config_folder().iterdir() if path.is_dir()} == GROUPS
    assert all(names(group) for group in GROUPS)


@pytest.mark.parametrize("name", names("data"))
def test_data(name: str) -> None:
    config = composed("data", name)
    assert callable(get_method(config["data"]["_target_"]))
    assert {"root", "download"} <= config["data"].keys()
    assert not config["data"]["download"], "downloads only when asked"
    assert build(config["augment"], "augment")(torch.rand(2, 1, 8, 8), rng()).shape == (2, 1, 8, 8)
    if name in EMBEDDED:
        data = dataset(config)
        assert len(data.train) > len(data.test) > 0


@pytest.mark.parametrize("name", names("partition"))
def test_partition(name: str) -> None:
    config = composed("partition", name)
    procedure = build(config["partition"], "partition")
    assert callable(procedure)
    if name in ("dense_cifar10", "fixed_counts", "quantity_explicit"):
        clients, per_class = 5, 5000 if name == "dense_cifar10" else 140
    else:
        clients, per_class = (10 if name == "feddf" else 5), 200
    labels = np.repeat(np.arange(10), per_class).astype(np.int64)
    found = procedure(labels, clients, np.random.default_rng(0))
    assert isinstance(found, Partition)
    assert found.num_clients == clients


@pytest.mark.parametrize("name", names("model"))
def test_model(name: str) -> None:
    config = composed("model", name)
    model = make_model(config["model"], task(dataset(config)), 0)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("name", names("teachers"))
def test_teachers(name: str) -> None:
    config = composed("teachers", name)
    clients = Clients.of(config, dataset(config))
    for client in range(len(clients.nodes)):
        assert clients(client).eval()(torch.rand(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("name", names("local"))
def test_local(name: str) -> None:
    local = build(composed("local", name)["local"], "local")
    assert isinstance(local, LocalTraining)
    assert local.start == "broadcast"


@pytest.mark.parametrize("name", names("combine"))
def test_combine(name: str) -> None:
    config = composed("combine", name)
    combine = build(config["combine"], "combine")
    clients = Clients.of(config, dataset(config))
    counts = torch.tensor([3, 2, 1, 0])
    team = Ensemble([Teacher(k, 6, counts, clients(k)) for k in range(2)], combine)
    assert team(torch.rand(3, 1, 8, 8)).shape == (3, 4)


@pytest.mark.parametrize("name", names("synthesizer"))
def test_synthesizer(name: str) -> None:
    made = build(composed("synthesizer", name)["synthesizer"], "synthesizer")
    assert callable(made)
    assert made.batch_size > 1


@pytest.mark.parametrize("name", names("distiller"))
def test_distiller(name: str) -> None:
    if name == "nt_xent":
        pytest.importorskip("pytorch_metric_learning")
    made = build(composed("distiller", name)["distiller"], "distiller")
    assert isinstance(made, Distiller)
    made.begin(torch.nn.Linear(2, 2)).set_rate(0.5)


@pytest.mark.parametrize("name", names("schedule"))
def test_schedule(name: str) -> None:
    made = build(composed("schedule", name)["schedule"], "schedule")
    assert callable(made)
    assert made.evaluate_every >= 1


@pytest.mark.parametrize("name", names("method"))
def test_method(name: str) -> None:
    """Its synthesizer, distiller and schedule can be built and fit each other."""
    config = composed("method", name)
    check(config)
    distiller = build(config["distiller"], "distiller")
    distiller.begin(torch.nn.Linear(2, 2)).set_rate(0.5)
    build(config["schedule"], "schedule").check(build(config["synthesizer"], "synthesizer"), distiller)


@pytest.mark.parametrize("name", ["fast_cmi", "dafl"])
def test_a_preset_takes_another_method(name: str) -> None:
    """All of it, whichever of the two schedules it has, and nothing else changes."""
    config = composed("method", name)
    for preset in ("distill_digits", "distill_fashion_mnist", "distill_cifar10_wrn"):
        experiment = compose_config([f"experiment={preset}", f"method={name}"], "distill")
        assert experiment["schedule"] == config["schedule"]
        assert experiment["synthesizer"]["_target_"] == config["synthesizer"]["_target_"]
    experiment = composed("experiment", "demo", f"method={name}")
    assert all(experiment[part] == config[part] for part in ("synthesizer", "distiller", "schedule"))
    setting = ["data=fashion_mnist", "model.blocks=4", "local.epochs=20", f"method={name}"]
    assert composed("experiment", "fmnist_oneshot", f"method={name}") == compose_config(setting), (
        "its own alone"
    )


def server_of(config: dict[str, Any], folder: Path) -> Any:
    """The strategy, completed with what no YAML holds."""
    made, data = build(config["strategy"], "strategy"), dataset(config)
    if callable(made):
        log = MetricsLog(folder / "metrics.jsonl")
        made = made(side=server_side(config, data, Progress(quiet=True), log, make_partition(config, data)))
    return made


@pytest.mark.parametrize("name", names("strategy"))
def test_strategy(name: str, tmp_path: Path) -> None:
    config = composed("strategy", name, *NEEDS.get(name, ()))
    made = server_of(config, tmp_path)
    assert isinstance(sharing(config).method, ClientMethod)
    # Who takes part is `Participation`'s to say, so the strategy has to take everyone it sees.
    assert made.fraction_train == 1.0
    assert made.fraction_evaluate == 0.0
    assert made.min_train_nodes == made.min_available_nodes == 1


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("name", ["fed_cmi", "feddf"])
def test_a_budget_goes_by_the_clock_that_was_named(name: str, clock: str, tmp_path: Path) -> None:
    config = composed("strategy", name, *NEEDS.get(name, ()), f"budget_clock={clock}")
    assert server_of(config, tmp_path).clock is CLOCKS[clock]


@pytest.mark.parametrize("name", names("buffers"))
def test_buffers(name: str) -> None:
    made = build(composed("buffers", name)["buffers"], "buffers")
    assert isinstance(made, BufferPolicy)


@pytest.mark.parametrize("name", names("backend"))
def test_backend(name: str) -> None:
    assert callable(build(composed("backend", name)["backend"], "backend").run)


@pytest.mark.parametrize("name", names("attacks"))
def test_attacks(name: str) -> None:
    attack, bad = bad_clients(composed("attacks", name))
    assert isinstance(attack, Attack)
    assert (type(attack) is not Attack) is bool(bad) is (name != "none")


@pytest.mark.parametrize("name", names("compression"))
def test_compression(name: str) -> None:
    node = composed("compression", name)["compression"]
    assert (not node) is (name == "none")
    if node:
        assert callable(build(node, "compression"))


@pytest.mark.parametrize("name", names("calibration"))
def test_calibration(name: str) -> None:
    config = compose_config(["data=synthetic", f"calibration={name}", "run_dir=here"], "compress")
    source = build(config["calibration"], "calibration")
    assert callable(source)
    assert source.origin.data_free is (name != "real")
    assert build(config["calibrate"], "calibrate").batches >= 1


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment(name: str) -> None:
    """Its header names the command; the program in it takes the preset, and its parts fit each other."""
    header = (config_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    program = "distill" if name.startswith("distill_") else "simulate"
    assert f"#   python -m fl_cmi.{program} experiment={name}" in header, "presets tell their command"
    config = compose_config([f"experiment={name}"], program)
    # No key that its program would not read, and none that it misses; `buffers` is a group that is empty by default.
    assert config.keys() - {"buffers"} == compose_config([], program).keys()
    (check_distillation if program == "distill" else check)(config)
    what = replace(task(dataset(compose_config([]))), num_classes=100 if "100" in name else 10)
    synthesizer, distiller, schedule = (
        build(config[part], part) for part in ("synthesizer", "distiller", "schedule")
    )
    schedule.check(synthesizer, distiller)
    nodes = [config["teacher"]["model"]] if program == "distill" else config["teachers"]["architectures"]
    combine = build(config["combine"], "combine")
    synthesizer.check(
        Ensemble([Teacher(0, 1, torch.ones(10), make_model(node, what, 0)) for node in nodes], combine)
    )
    assert isinstance(build(config["local"], "local"), LocalTraining)
    make_model(config["model"], what, 0)


def test_presets_of_published_pairs_tell_the_published_numbers() -> None:
    """CMI's own, from its tables."""
    published = {
        "cifar10_wrn": "90.01",
        "cifar10_resnet": "94.84",
        "cifar100_wrn": "57.91",
        "cifar100_resnet": "77.04",
    }
    for name, accuracy in published.items():
        path = config_folder() / "experiment" / f"distill_{name}.yaml"
        assert f"CMI {accuracy}" in path.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("path", sorted(config_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_target_exists(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        for part in line.split("_target_:")[1:]:
            target = part.split("#")[0].split(",")[0].strip(" }")
            get = get_class if target.rsplit(".", 1)[-1][0].isupper() else get_method
            assert callable(get(target))
