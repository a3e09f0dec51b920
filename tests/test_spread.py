"""Workers of the server that make no sense are refused before anything begins."""

from pathlib import Path
from typing import Any

import pytest
from test_simulate import TINY

import fl_cmi.distill
import fl_cmi.simulate
from fl_cmi.compose import build, compose_config
from fl_cmi.flower.app import GivenGrid
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.ray_workers import RayWorkers
from fl_cmi.spread import crew_of
from fl_cmi.synthesis.crew import Crew
from fl_cmi.types import ConfigError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "schedule=alternate synthesizer=dafl distiller=dafl",
            "server.workers=2: null, because Alternate needs",
        ),
        ("method=fedftg", "server.workers=2: null, because SameBatch needs each batch before the next"),
        ("strategy=fedavg", "server.workers=2: null, because strategy=FedAvg fills no pool"),
        ("backend=flower", "server.workers=2: null, because FlowerBackend keeps for its clients"),
        ("server.workers=0", "server.workers=0: an integer >= 1, or null"),
        ("server.workers=1.5", "server.workers=1.5: an integer >= 1, or null"),
        ("server.worker_cpus=0", "server.worker_cpus=0: a number > 0"),
        ("server.worker_cpus=1.5", "server.worker_cpus=1.5: a whole number or a fraction of 1"),
        ("server.worker_gpus=-1", "server.worker_gpus=-1: a whole number or a fraction of 1"),
        ("server=null", "server=null: its keys"),
    ],
)
def test_what_makes_no_sense_is_named(given: str, said: str, tmp_path: Path) -> None:
    config = compose_config([*TINY, "backend=local", "server.workers=2", *given.split()])
    with pytest.raises(ConfigError) as caught:
        fl_cmi.simulate.run(config, tmp_path / "run")
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "run").exists()


def test_flwr_run_keeps_its_machines(tmp_path: Path) -> None:
    config = compose_config([*TINY, "server.workers=2"])
    grid: Any = Participation.__new__(Participation)
    with pytest.raises(ConfigError, match="because GivenGrid keeps for its clients"):
        fl_cmi.simulate.run(config, tmp_path, backend=GivenGrid(grid))


def test_distillation_refuses_before_a_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*given: Any) -> None:
        raise AssertionError("a teacher is trained")

    monkeypatch.setattr(fl_cmi.distill, "train", train)
    given = ["data=synthetic", "method=dafl", "server.workers=2"]
    with pytest.raises(ConfigError, match="because Alternate needs each batch before the next"):
        fl_cmi.distill.run(compose_config(given, "distill"), tmp_path / "run")


def test_workers_are_as_they_were_asked_for() -> None:
    config = compose_config(
        ["server.workers=3", "server.worker_cpus=2", "server.worker_gpus=0.5", "device=cpu"]
    )
    crew = crew_of(config)
    assert isinstance(crew, Crew)
    workers = crew.workers
    assert isinstance(workers, RayWorkers)
    assert (crew.number, workers.num_gpus, workers.num_threads, workers.device) == (3, 0.5, 2, "cpu")
    assert workers.resources.by_name == {"num_cpus": 2, "num_gpus": 0.5}
    assert crew_of(compose_config([])) is None
    backends = {
        name: build(compose_config([f"backend={name}"])["backend"], "backend") for name in ("ray", "local")
    }
    assert all(backend.makes_room for backend in backends.values())
