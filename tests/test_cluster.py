"""A cluster of two machines, by the commands that a user types: both work, one is lost, and the result is the same."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import marked
from two_machines import Machine, two_machines

from fl_cmi.flower.ray_pool import room
from fl_cmi.flower.ray_session import reachable
from fl_cmi.flower.surroundings import Surroundings, describe
from fl_cmi.types import ConfigError
from simulations.bench.scale import UNITS, plan

RUN = (
    "data=synthetic",
    "partition.alpha=1.0",
    "num_clients=6",
    "rounds=3",
    "model.width=32",  # what clients keep is then too large to travel with their replies
    "strategy=scaffold",
    "local.epochs=1",
    "server_threads=1",
    "local._target_=slow_training.Paced",
)


class Cluster:
    """Two machines with a Ray."""

    def __init__(self, first: Machine, second: Machine, address: str, folder: Path) -> None:
        self.first, self.second, self.address, self.folder = first, second, address, folder
        first.start_ray("--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false")
        second.start_ray(f"--address={address}", FL_CMI_NO_DATA="1")

    def simulate(self, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        """The command line on the first machine."""
        (self.folder / name / "began").mkdir(parents=True)
        more = [f"+local.folder={self.began(name)}", f"+local.gate={self.gate(name)}"]
        more += [f"hydra.run.dir={self.folder / name / 'run'}"]
        command = (sys.executable, "-m", "fl_cmi.simulate", *RUN, *more, *overrides)
        return self.first.begin(*command, **environment)

    def began(self, name: str) -> Path:
        return self.folder / name / "began"

    def gate(self, name: str) -> Path:
        return self.folder / name / "gate"

    def summary(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "run" / "summary.json").read_text(encoding="utf-8"))

    def in_use(self) -> dict[str, float]:
        """What of the cluster's resources, and of its object stores, is taken; asked by a process of its own."""
        ask = (
            "import json, ray; ray.init(log_to_driver=False);"
            "have, free = ray.cluster_resources(), ray.available_resources();"
            "print(json.dumps({k: v - free.get(k, 0) for k, v in have.items() if v - free.get(k, 0) > 1e-6}))"
        )
        end = time.monotonic() + 15
        while True:
            asked = self.first.begin(sys.executable, "-c", ask, RAY_ADDRESS=self.address)
            taken: dict[str, float] = json.loads(asked.communicate(timeout=60)[0].splitlines()[-1])
            if not taken or time.monotonic() > end:
                return taken


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The second machine is lost in the last test."""
    with two_machines() as (first, second, address):
        yield Cluster(first, second, address, tmp_path_factory.mktemp("cluster"))
    assert not (marked(first.mark) or marked(second.mark))


@pytest.mark.slow
def test_a_machine_without_the_data_is_named_before_any_client_is_done(cluster: Cluster) -> None:
    data = "data._target_=slow_training.synthetic_or_nothing"
    wrong = cluster.simulate("without", f"backend.address={cluster.address}", data)
    said = wrong.communicate(timeout=120)[0]
    assert wrong.returncode == 2, said
    assert said.splitlines()[-1] == f"fl_cmi: data.root=/data: on {cluster.second.address}: no such folder"
    assert cluster.in_use() == {}


@pytest.mark.slow
def test_both_machines_work_one_is_lost_and_comes_back_and_the_result_is_the_same(cluster: Cluster) -> None:
    local = cluster.simulate("local", "backend=local")
    said = local.communicate(timeout=120)[0]
    assert local.returncode == 0, said
    run = cluster.simulate("both", "backend.address=auto", RAY_ADDRESS=cluster.address)
    second = cluster.second.address

    def wait_for_the_second(number: int) -> None:
        end = time.monotonic() + 120
        while len(list(cluster.began("both").glob(f"{second}-*"))) < number:
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)

    wait_for_the_second(2)  # one client is done there, and one at the gate
    cluster.second.lose()
    cluster.second.start_ray(f"--address={cluster.address}")
    wait_for_the_second(3)
    cluster.gate("both").touch()
    said = run.communicate(timeout=150)[0]
    assert run.returncode == 0, said
    disturbed = cluster.summary("both")
    assert disturbed["digest"] == cluster.summary("local")["digest"]
    served = disturbed["served"]
    assert set(served) == {cluster.first.address, second}
    assert sum(served.values()) == 18
    assert f"{second}: {served[second]}" in said
    (failure,) = disturbed["failures"]
    assert (failure["kind"], failure["retried"]) == ("died", True)
    assert cluster.in_use() == {}, "the cluster stays up, with nothing of the run in it"


def test_an_address_where_nobody_answers_is_told_at_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ConfigError, match="nobody answers there") as caught:
            reachable(address)
    assert (caught.value.key, caught.value.value) == ("backend.address", address)


def test_a_port_of_something_else_is_told_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_cmi.flower.ray_session.CONNECT_LIMIT", 1.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(ConfigError, match="what answers there is no Ray"):
            reachable(f"127.0.0.1:{mute.getsockname()[1]}")


@pytest.mark.parametrize("address", ["local", "ray://head:10001", "head", "head:port", ":6379", "head:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"a running Ray cluster \(auto or host:port\), or null"):
        reachable(address)


def test_what_differs_is_named() -> None:
    here = describe(None)
    assert here.mistake(here, "node") is None
    there = Surroundings({**here.needed, "torch": "1.0"}, here.nice)
    assert str(there.mistake(here, "10.0.0.2")).endswith(f"there torch 1.0, here {here.needed['torch']}")
    missing = Surroundings(here.needed, here.nice, ("data.root", None, "no such folder"))
    assert str(missing.mistake(here, "10.0.0.2")) == "data.root=null: on 10.0.0.2: no such folder"


def test_a_machine_holds_as_many_actors_as_each_of_its_resources_allows() -> None:
    machine = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}
    assert room(machine, {"num_cpus": 1, "num_gpus": 0}) == 4
    assert room(machine, {"num_cpus": 0.1, "num_gpus": 0}) == 40, "ten tenths are one"
    assert room(machine, {"num_cpus": 1, "num_gpus": 0.5}) == 2
    assert room({"CPU": 8.0}, {"num_cpus": 1, "num_gpus": 0.5}) == 0


def test_the_plan_grows_where_it_says() -> None:
    ones = dict.fromkeys(UNITS, 1.0)
    small, large = plan(ones, 1000, 10, 4), plan(ones, 1000, 20, 4)
    same = {"synthesis", "distillation", "start of the run"}
    assert {name for name in small if small[name] == large[name]} == same
    assert large["labels"] == 2 * small["labels"]
    assert plan(ones, 2000, 10, 4)["start of the run"] == 2 * small["start of the run"]
