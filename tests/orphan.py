"""A program whose parent has ended, and whose Ray dies before its session is over: `python orphan.py FILE`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fl_cmi.flower.ray_session import ray_session

# isort: split
import ray


def main(told: Path) -> None:
    """Write into `told` how far it came."""
    end = time.monotonic() + 20
    while os.getppid() != 1 and time.monotonic() < end:
        time.sleep(0.05)
    told.write_text(f"parent {os.getppid()}\n")
    with ray_session():
        daemon = int(subprocess.check_output(["pgrep", "-P", str(os.getpid()), "-x", "raylet"]))
        own = int(ray.get(ray.remote(lambda: os.environ["RAY_RAYLET_PID"]).remote()))
        assert own == daemon, "workers end with their own daemon"
        os.kill(daemon, signal.SIGKILL)
        time.sleep(1)
    with told.open("a") as file:
        file.write("went on\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
