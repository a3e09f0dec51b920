"""Every method runs: its synthesizer, distiller and schedule as configured, on small networks for a few steps."""

import functools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, SHAPE, TASK, ensemble, inversion, network, remembering, rng
from torch import Tensor, nn

from fl_cmi.bank import Pool, PoolBatch
from fl_cmi.compose import build, compose_config, config_folder
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.supply import Supply
from fl_cmi.distillation.transfer import Transfer, transfer
from fl_cmi.models.lenet import LeNet
from fl_cmi.models.tanh_generator import TanhGenerator
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.inversion import Inverted
from fl_cmi.synthesis.source import TrainedGenerator
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.types import ConfigError

METHODS = sorted(path.stem for path in (config_folder() / "method").glob("*.yaml"))

SMALL = {
    "GrowPool": {"epochs": 3, "batches": 1, "warmup": 1, "evaluate_every": 1},
    "Alternate": {"epochs": 1, "iterations": 2, "show": 4, "evaluate_every": 1},
    "SameBatch": {"iterations": 2, "show": 4, "evaluate_every": 1},
    "GeneratorFirst": {"generator_batches": 3, "epochs": 1, "show": 4, "evaluate_every": 1},
}

SHRUNK = {"width": 2, "num_latents": 5, "bank_size": 16, "num_negatives": 4, "batch_size": 8, "head_width": 3}


@functools.cache
def configured(name: str) -> dict[str, Any]:
    """The run's configuration under this method."""
    return compose_config(["data=synthetic", f"method={name}"])


def shrink(node: Any) -> Any:
    """The same configuration with small networks, few images and few steps."""
    if isinstance(node, list):
        return [shrink(value) for value in node]
    if not isinstance(node, dict):
        return node
    small = {key: SHRUNK.get(key, shrink(value)) for key, value in node.items()}
    kind = str(node.get("_target_")).rsplit(".", 1)[-1]
    small.update(SMALL.get(kind, {}))
    if isinstance(node.get("steps"), int):
        small["steps"] = min(node["steps"], 2)
    return small


def run(
    name: str, folder: Path, **schedule: int
) -> tuple[dict[str, float], Pool, nn.Module, list[dict[str, Any]]]:
    """A round of the shrunk method: its metrics, pool, student and log."""
    config = configured(name)
    pool, student, log = Pool(), network(9), MetricsLog(folder / "metrics.jsonl")
    metrics = transfer(
        ensemble(make=remembering),
        student,
        build(shrink(config["synthesizer"]), "synthesizer"),
        build(shrink(config["distiller"]), "distiller"),
        pool,
        build({**shrink(config["schedule"]), **schedule}, "schedule"),
        task=TASK,
        seed=0,
        server_round=1,
        progress=Progress(quiet=True),
        log=log,
        evaluate=lambda model: 0.25,
    )
    return metrics, pool, student, MetricsLog.read(log.path)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs(name: str, tmp_path: Path) -> None:
    metrics, pool, student, log = run(name, tmp_path)
    assert metrics["images"] > 0
    assert pool.pixels.shape[1:] == SHAPE
    start = network(9).state_dict()
    assert any((student.state_dict()[key] != value).any() for key, value in start.items())
    synthesis = [row for row in log if row["event"] == "synthesis"][-1]
    terms = configured(name)["synthesizer"].get("inversion", {}).get("terms", {})
    assert {key for key, term in terms.items() if term.get("weight", 1) > 0} <= synthesis.keys()


@pytest.mark.parametrize(
    ("name", "steps"),
    [("dafl", 5), ("f_dafl", 5), ("zskt", 5), ("dfad", 5), ("dfad_original", 5), ("dfq", 10)],
)
def test_student_steps_to_one_step_of_the_generator(
    name: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = ""

    def spy(kind: type[torch.optim.Optimizer], sign: str) -> None:
        step = kind.step

        def counted(self: torch.optim.Optimizer, *args: Any) -> Any:
            nonlocal taken
            taken += sign
            return step(self, *args)

        monkeypatch.setattr(kind, "step", counted)

    spy(torch.optim.Adam, "g")
    spy(torch.optim.SGD, "s")
    run(name, tmp_path, iterations=3, steps=configured(name)["schedule"]["steps"])
    assert taken == ("g" + steps * "s") * 3


class Counting(Transfer):
    """A round in which nothing is made but its batches, steps and images are counted."""

    batches = steps = 0

    def train_generator(self) -> Inverted:
        self.grow(1)
        return Inverted(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64), {"total": 0.0})

    def grow(self, batches: int) -> None:
        self.batches += batches
        self.supply.losses = {"total": 0.0}

    @property
    def steps_of_a_pass(self) -> int:
        return self.batches  # pool and student take batches of one size

    def distil(self, draws: Any, steps: int, share: tuple[float, float]) -> None:
        self.steps += steps

    def keep(self, draws: Any, number: int) -> None:
        pass

    def report(self, epoch: int, look: bool) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "batches", "steps"),
    [
        ("cmi", 200, 80_000),
        ("deep_inversion", 200, 80_000),
        ("adaptive_deep_inversion", 200, 80_000),
        ("noise", 200, 80_000),
        ("dafl", 16_000, 80_000),
        ("zskt", 16_000, 80_000),
        ("dfad", 16_000, 80_000),
        ("dfad_original", 25_000, 125_000),
        ("dfq", 8_000, 80_000),
        ("rdskd", 2_400, 120_000),
        ("fast_cmi", 220, 80_000),
        ("fast_cmi_reptile", 220, 80_000),
        ("fast_cmi_contrast", 220, 80_000),
        ("dense", 200, 20_100),  # 1 + 2 + ... + 200 passes of so many batches: 5.1 million images
        ("co_boosting", 200, 20_100),
        ("f_adi", 200, 80_000),
        ("f_dafl", 16_000, 80_000),
        ("fedftg", 10, 50),
    ],
)
def test_a_method_takes_as_many_batches_and_steps_as_published(
    name: str, batches: int, steps: int, tmp_path: Path
) -> None:
    config = configured(name)
    rng = torch.Generator()
    counting = Counting(
        Supply(ensemble(), network(9), Joint(inversion()), TASK, lambda number: rng),
        Distiller(partial(torch.optim.SGD, lr=0.1)).begin(network(9)),
        Pool(),
        lambda what, number: rng,
        1,
        Progress(quiet=True),
        MetricsLog(tmp_path / "metrics.jsonl"),
        lambda model: 0.25,
    )
    build(config["schedule"], "schedule")(counting)
    assert (counting.batches, counting.steps) == (batches, steps)
    if steps == 20_100:
        assert config["synthesizer"]["batch_size"] == config["distiller"]["batch_size"]


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_read_batch_norm_refuse_teachers_without(name: str) -> None:
    """CMI's family, DeepInversion's and DFQ; the others are for any teacher."""
    needy = name.startswith(
        ("cmi", "fast_cmi", "fed_cmi", "per_client", "dfq", "dense", "deep_inversion", "adaptive", "f_adi")
    )
    synthesizer = build(configured(name)["synthesizer"], "synthesizer")
    lenets = ensemble(make=lambda k: LeNet(SHAPE, CLASSES, (0.5,), (0.25,)))
    if needy:
        with pytest.raises(ConfigError, match="batch norm"):
            synthesizer.check(lenets)
    else:
        synthesizer.check(lenets)


def parameters_of(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_a_step_of_the_student_leaves_the_generator_alone_and_conversely() -> None:
    """DFAD as published: both in train mode in both phases."""
    source = TrainedGenerator(
        partial(TanhGenerator, num_latents=5, width=2), partial(torch.optim.Adam, lr=0.01), True
    )
    loop = inversion(steps=1, terms={"adv": Adversarial(1.0, "none", "l1")}, source=source)
    loop.student_mode = "train"
    joint, team, student = Joint(loop, 8), ensemble(), network(9).train()
    joint(team, student, TASK, rng())
    assert source.generator is not None

    generator, learner = parameters_of(source.generator), parameters_of(student)
    joint(team, student, TASK, rng(1))
    assert same(parameters_of(student), learner)
    assert not same(parameters_of(source.generator), generator)
    assert all(p.grad is None and p.requires_grad for p in student.parameters())

    class Fresh:
        def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
            nobody = torch.full((batch_size,), -1)
            return PoolBatch(joint.sample(team, TASK, batch_size, rng), None, None, nobody, nobody)

    generator = parameters_of(source.generator)
    lesson = Distiller(partial(torch.optim.SGD, lr=0.1), batch_size=8).begin(student)
    lesson(team, Fresh(), 1, (0.0, 1.0), rng(2))
    assert same(parameters_of(source.generator), generator)
    assert not same(parameters_of(student), learner)
    assert all(p.grad is None for p in source.generator.parameters())
