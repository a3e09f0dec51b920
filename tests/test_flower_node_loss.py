"""A machine of a Ray cluster that is lost in the middle of a round."""

import threading
import time
from pathlib import Path
from typing import Any

import fake_side
import pytest
from by_hand import NUM_CLIENTS, PARTITION, ask, comparable, rounds_of
from flwr.serverapp import Grid
from ray.cluster_utils import Cluster

from fl_cmi.flower.local_backend import LocalBackend
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.ray_backend import RayBackend
from fl_cmi.flower.ray_session import remove_session


@pytest.mark.slow
def test_a_machine_that_is_lost_costs_nothing_but_time(tmp_path: Path) -> None:
    """The second raylet on this machine is killed, with its process, while a client is at work there."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    rounds: list[list[Any]] = []
    lost: list[str] = []

    def serve(grid: Grid) -> None:
        view = Participation(grid, num_clients=NUM_CLIENTS, seed=0)
        before, during = tmp_path / "before" / second.node_id, tmp_path / "during" / second.node_id
        before.parent.mkdir(), during.parent.mkdir()
        busy: dict[str, Any] = {"hang": [0, 1, 2, 3], "seconds": 2}
        end = time.monotonic() + 120
        while not before.exists():  # until both machines are up, and each has clients
            assert time.monotonic() < end
            rounds.extend(rounds_of(view, faults={**busy, "machines": str(before.parent)}))

        def lose() -> None:
            while not during.exists() and time.monotonic() < end:
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)

        loss = threading.Thread(target=lose)
        loss.start()
        rounds.extend(rounds_of(view, faults={**busy, "seconds": 4, "machines": str(during.parent)}))
        loss.join()
        lost.extend(failure.message for failure in view.failures)

    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        RayBackend(address=cluster.address).run("{}", PARTITION, NUM_CLIENTS, serve, fake_side.app)
    finally:
        folder = Path(cluster.head_node.get_session_dir_path())
        cluster.shutdown()
        remove_session(folder)
    (here,) = ask(LocalBackend())
    for distant in rounds:
        assert [comparable(reply) for reply in distant] == [comparable(reply) for reply in here]
    assert len(lost) == 1
    assert lost[0].endswith("it was asked again")
