"""Two machines of a Ray cluster on one: network namespaces with addresses of their own, where the system allows it.

Elsewhere the second raylet listens on 127.0.0.2. Each is brought up by `ray start`, as a user would, and is ended by
the processes' own ids: `ray stop` would end every Ray of the host.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from killing import ROOT, kill_marked

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Machine:
    """One machine.

    Args:
        address: Of its own.
        prefix: Of every command on it.
        environment: Of every command on it.
    """

    address: str
    prefix: list[str]
    environment: dict[str, str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def begin(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a program on it."""
        return subprocess.Popen(
            [*self.prefix, *command],
            env={**self.environment, "FL_CMI_MARK": self.mark, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_ray(self, *arguments: str, **more: str) -> None:
        """`ray start` with one CPU; it is up when this returns."""
        command = (RAY, "start", f"--node-ip-address={self.address}", "--num-cpus=1", *arguments)
        started = self.begin(*command, "--disable-usage-stats", "--object-store-memory=100000000", **more)
        said = started.communicate(timeout=90)[0]
        assert started.returncode == 0, said

    def lose(self) -> None:
        """Kill all of its processes, as a power cut would."""
        kill_marked(self.mark)


def ip(*arguments: str) -> bool:
    """Whether `ip` did it."""
    try:
        return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def namespaces() -> Iterator[list[tuple[str, list[str]]]]:
    """Address and command prefix of two machines, in namespaces of the network or, failing that, in none."""
    names = [f"flcmi{uuid.uuid4().hex[:6]}{k}" for k in (1, 2)]
    # 198.18.0.0/15 is set aside for tests (RFC 2544).
    addresses = [f"198.18.77.{k}" for k in (1, 2)]
    ends = [f"v{name[5:]}" for name in names]
    try:
        done = all(ip("netns", "add", name) for name in names)
        done = done and ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, addresses, strict=True):
            done = done and ip("link", "set", end, "netns", name)
            done = done and ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            done = (
                done
                and ip("-n", name, "link", "set", end, "up")
                and ip("-n", name, "link", "set", "lo", "up")
            )
        if done:
            yield [(a, ["ip", "netns", "exec", n]) for n, a in zip(names, addresses, strict=True)]
        else:
            yield [("127.0.0.1", []), ("127.0.0.2", [])]
    finally:
        for name in names:
            ip("netns", "del", name)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine, str]]:
    """Two machines without a Ray yet, and the address that the first one's is to have; nothing is left of them."""
    # Ray's sockets need a short path.
    folder = tempfile.mkdtemp(prefix="flr", dir="/tmp")
    environment = {
        **os.environ,
        "RAY_TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_enable_metrics_collection": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    with namespaces() as places:
        first, second = (Machine(address, prefix, environment) for address, prefix in places)
        port = 6390 if places[0][1] else 20000 + os.getpid() % 10000
        try:
            yield first, second, f"{first.address}:{port}"
        finally:
            first.lose()
            second.lose()
            shutil.rmtree(folder, ignore_errors=True)
