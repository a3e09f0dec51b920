"""Flower's own engine against the local backend, and against its ways to hang."""

import json
import time
from pathlib import Path
from typing import Any

import fake_side
import pytest
from by_hand import NUM_CLIENTS, PARTITION, ask, comparable, rounds_of
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.serverapp import Grid

from fl_cmi.flower.backend import Backend
from fl_cmi.flower.failure import ClientFailure, Failure
from fl_cmi.flower.flower_backend import FlowerBackend
from fl_cmi.flower.local_backend import LocalBackend
from fl_cmi.flower.participation import Participation
from fl_cmi.report.progress import Progress

pytestmark = pytest.mark.slow


def test_answers_as_local_does(tmp_path: Path) -> None:
    def clients(backend: Backend, faults: dict[str, Any]) -> list[list[tuple[Any, ...]]]:
        rounds = []
        progress = Progress(quiet=True)
        shown = []

        def serve(grid: Grid) -> None:
            view = Participation(
                grid,
                num_clients=NUM_CLIENTS,
                clients_per_round=3,
                seed=1,
                exchanging=lambda clients: progress.phase("local", clients),
                observer=lambda _, updates: shown.extend(updates),
            )
            rounds.extend(rounds_of(view, 3, faults))

        backend.run(json.dumps({"start": "own"}), PARTITION, NUM_CLIENTS, serve, fake_side.app)
        assert len(shown) == 9
        return [[comparable(reply) for reply in replies] for replies in rounds]

    faults = {"die_once": {"0": str(tmp_path / "died")}}
    distant = clients(FlowerBackend(client_resources={"num_cpus": 0.5}), faults)
    assert (tmp_path / "died").exists()
    assert distant == clients(LocalBackend(), {})


def test_ends_in_time_when_a_client_hangs() -> None:
    def serve(grid: Grid) -> None:
        view = Participation(grid, num_clients=NUM_CLIENTS, seed=0)
        rounds_of(view)
        rounds_of(view, faults={"hang": [1], "seconds": 600}, timeout=15)

    start = time.monotonic()
    # Room for two clients on one CPU, so that nobody waits behind the one that hangs.
    backend = FlowerBackend(client_resources={"num_cpus": 0.5})
    with pytest.raises(ClientFailure, match=r"^client 1 failed in round 2: no reply within 15 s$"):
        backend.run("{}", PARTITION, NUM_CLIENTS, serve, fake_side.app)
    assert time.monotonic() - start < 300, "the client would hang for 600 s"


def test_ends_a_client_that_has_had_its_time_and_no_other(tmp_path: Path) -> None:
    rounds = []
    faults = {"hang": [1], "seconds": 600, "memory": [2], "raise": [3]}
    died = {"die_once": {"0": str(tmp_path / "died")}, "die": [3]}

    def serve(grid: Grid) -> None:
        view = Participation(grid, num_clients=NUM_CLIENTS, seed=0, on_client_failure="drop")
        rounds_of(view)
        rounds.extend(rounds_of(view, faults=faults))
        rounds.extend(rounds_of(view, faults=died))
        rounds.append(view.failures)

    start = time.monotonic()
    backend = FlowerBackend(client_resources={"num_cpus": 0.5}, client_timeout=3)
    backend.run("{}", PARTITION, NUM_CLIENTS, serve, fake_side.app)
    assert time.monotonic() - start < 300, "the client would hang for 600 s"
    assert [len(replies) for replies in rounds[:2]] == [1, 3]
    assert rounds[2] == [
        Failure(2, 1, "late", "no reply within 3 s"),
        Failure(2, 2, "memory", "MemoryError: as told"),
        Failure(2, 3, "raised", "ZeroDivisionError: as told"),
        Failure(3, 3, "died", "its process died: a crash in native code, or killed from outside"),
    ]


def test_says_so_when_the_engine_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("as told")

    monkeypatch.setattr(RayBackend, "build", broken)
    with pytest.raises(RuntimeError, match="Ending simulation"):
        ask(FlowerBackend())
