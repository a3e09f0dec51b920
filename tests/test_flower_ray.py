"""The Ray backend against the local one, and against clients and processes that fail."""

import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_side
import pytest
from by_hand import NUM_CLIENTS, PARTITION, ask, comparable, reasons, rounds_of
from flwr.serverapp import Grid
from killing import kill_marked

from fl_cmi.flower.failure import cause_of_death, kind_of_error
from fl_cmi.flower.grid import PartitionGrid
from fl_cmi.flower.local_backend import LocalBackend, LocalGrid
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.ray_backend import RayBackend
from fl_cmi.flower.ray_grid import RayGrid
from fl_cmi.flower.ray_session import ray_session
from fl_cmi.types import ConfigError

OWN = json.dumps({"start": "own"})


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    """One Ray for all tests of this file; backends use it and leave it running."""
    with ray_session():
        yield


@pytest.fixture(scope="module")
def ray_grid(ray_running: None) -> Iterator[PartitionGrid]:
    """Two actors, however many CPUs there are, whose clients start from their own models."""
    grid = RayGrid(fake_side.app, (OWN, PARTITION), NUM_CLIENTS, 2, {"num_cpus": 0.25}, retries=1)
    yield grid
    grid.close()


def test_answers_as_local_does(ray_running: None) -> None:
    backend = RayBackend(num_actors=2, client_resources={"num_cpus": 0.25})
    local, distant = ask(LocalBackend(), 3, start="own"), ask(backend, 3, start="own")
    assert [[comparable(reply) for reply in replies] for replies in distant] == [
        [comparable(reply) for reply in replies] for replies in local
    ]
    assert [reply.metadata.src_node_id for reply in distant[0]] == list(range(NUM_CLIENTS))


def test_survives_clients_that_raise_and_processes_that_die(
    ray_grid: PartitionGrid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {"raise": [1], "die_once": {"2": str(tmp_path / "died")}}
    with caplog.at_level(logging.WARNING):
        (distant,) = rounds_of(ray_grid, faults=faults)
    assert reasons(distant) == ["", "ZeroDivisionError: as told", "", ""]
    assert "fake_side.py" in caplog.text, "the client's own traceback"
    assert (tmp_path / "died").exists()
    assert "client 2: its process died" in caplog.text
    local = LocalGrid(fake_side.app(OWN, PARTITION), NUM_CLIENTS)
    (here,) = rounds_of(local, faults={"raise": [1]})
    # Round 2 shows what the clients kept of round 1: nothing for the one that raised.
    ((after_distant,), (after_here,)) = rounds_of(ray_grid), rounds_of(local)
    assert [comparable(distant[k]) for k in (0, 2, 3)] == [comparable(here[k]) for k in (0, 2, 3)]
    assert [comparable(reply) for reply in after_distant] == [comparable(reply) for reply in after_here]


def test_gives_up_a_client_whose_process_dies_each_time(ray_grid: PartitionGrid) -> None:
    (replies,) = rounds_of(ray_grid, faults={"die": [0]})
    assert "process died" in reasons(replies)[0]
    assert reasons(replies)[1:] == ["", "", ""]


def test_kills_who_is_late_and_goes_on(ray_grid: PartitionGrid) -> None:
    rounds_of(ray_grid, faults={"hang": [0, 1, 2, 3], "seconds": 0.2})  # brings up both processes, untimed
    replied: list[int] = []
    ray_grid.on_reply = lambda reply: replied.append(reply.metadata.src_node_id)
    start = time.monotonic()
    try:
        (replies,) = rounds_of(ray_grid, faults={"hang": [3]}, timeout=3.0)
    finally:
        ray_grid.on_reply = None
    assert time.monotonic() - start < 10
    assert reasons(replies) == ["", "", "", "no reply within 3 s"]
    assert sorted(replied) == [0, 1, 2, 3]
    assert replied[-1] == 3
    assert reasons(rounds_of(ray_grid)[0]) == [""] * NUM_CLIENTS


def test_ends_a_client_that_has_had_its_time_and_no_other(ray_running: None) -> None:
    backend = RayBackend(num_actors=1, client_resources={"num_cpus": 0.25}, client_timeout=2.0)
    said: list[list[Any]] = []

    def serve(grid: Grid) -> None:
        rounds_of(grid)
        start = time.monotonic()
        said.append(rounds_of(grid, faults={"hang": [1], "memory": [2]})[0])
        assert time.monotonic() - start < 30
        said.extend(rounds_of(grid))

    backend.run("{}", PARTITION, NUM_CLIENTS, serve, fake_side.app)
    assert reasons(said[0]) == ["", "no reply within 2 s", "MemoryError: as told", ""]
    assert [kind_of_error(reply.error) for reply in said[0][1:3]] == ["late", "memory"]
    assert reasons(said[1]) == [""] * NUM_CLIENTS


def test_a_client_that_is_asked_again_is_on_the_list(ray_grid: PartitionGrid, tmp_path: Path) -> None:
    view = Participation(ray_grid, num_clients=NUM_CLIENTS, seed=0)
    rounds_of(view, faults={"die_once": {"3": str(tmp_path / "died")}})
    (failure,) = view.failures
    assert (failure.client, failure.kind, failure.retried) == (3, "died", True)
    assert failure.message.endswith("killed from outside; it was asked again")


def test_rays_words_for_a_death_become_one_line() -> None:
    told = "1 worker(s) were killed due to the node running low on memory. Memory on the node ..."
    assert cause_of_death(f"OutOfMemoryError: {told}")[0] == "memory"
    lost = cause_of_death("ActorDiedError: The actor died because its node has died. Node Id: 1")
    assert lost == ("died", "its machine was lost")
    crash = (
        "ActorDiedError: ... (1) the process was killed by the OOM killer due to high memory usage, (2) ..."
    )
    assert cause_of_death(crash)[0] == "died", "Ray names the OOM killer as a possible cause of every crash"


def test_gives_up_when_the_app_cannot_be_made(ray_running: None) -> None:
    def serve(grid: Grid) -> None:
        rounds_of(grid)

    backend = RayBackend(num_actors=1, client_resources={"num_cpus": 0.25}, retries=0)
    with pytest.raises(RuntimeError, match="die while they start"):
        backend.run("{}", PARTITION, NUM_CLIENTS, serve, fake_side.dead_app)


def test_refuses_resources_that_are_not_there(ray_running: None) -> None:
    def refused(key: str, **options: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            ask(RayBackend(**options))
        assert caught.value.key == key

    refused("backend.client_resources.num_cpus", client_resources={"num_cpus": 4096})
    refused("backend.client_resources.num_gpus", client_resources={"num_gpus": 4096})
    many: dict[str, Any] = {"num_actors": 8 * (os.cpu_count() or 1), "client_resources": {"num_cpus": 1}}
    refused("backend.num_actors", **many)
    (replies,) = ask(RayBackend(address="auto", **many))  # a cluster may grow
    assert len(replies) == NUM_CLIENTS


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("backend.client_resources.num_cpu", {"client_resources": {"num_cpu": 1}}),
        ("backend.client_resources.num_cpus", {"client_resources": {"num_cpus": 0}}),
        ("backend.client_resources.num_cpus", {"client_resources": {"num_cpus": 1.5}}),
        ("backend.client_resources.num_gpus", {"client_resources": {"num_gpus": -1}}),
        ("backend.num_actors", {"num_actors": 0}),
        ("backend.retries", {"retries": -1}),
        ("backend.timeout", {"timeout": 0.0}),
    ],
)
def test_refuses_options_that_cannot_be(key: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        RayBackend(**options)
    assert caught.value.key == key


def test_a_process_without_a_parent_outlives_its_ray(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = Path(__file__).parent / "orphan.py"
    mark = uuid.uuid4().hex
    # The shell ends at once.
    subprocess.run(
        ["sh", "-c", f"'{sys.executable}' '{program}' '{told}' >'{tmp_path}/said' 2>&1 &"],
        env={**os.environ, "FL_CMI_MARK": mark},
        check=True,
    )
    end = time.monotonic() + 120
    try:
        while time.monotonic() < end and not (told.exists() and "went on" in told.read_text()):
            time.sleep(0.2)
            if told.exists() and told.read_text().splitlines()[:1] not in ([], ["parent 1"]):
                pytest.skip("the parent of orphans is another process here")
    finally:
        kill_marked(mark)
    assert told.read_text() == "parent 1\nwent on\n", (tmp_path / "said").read_text()
