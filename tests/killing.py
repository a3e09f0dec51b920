"""Command lines in a process of their own: what they leave behind when they are ended."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


def marked(mark: str) -> dict[int, str]:
    """Ids and names of the processes that have inherited a mark, also through others that are gone."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark.encode() in (process / "environ").read_bytes()
            name, state = (process / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # it has ended by now
            continue
        if ours and state.split()[0] != "Z":
            found[int(process.name)] = name
    return found


def kill_marked(mark: str) -> None:
    """End all of them, as a power cut would."""
    end = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < end:
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
    assert not left


@dataclass
class Command:
    """A run of `fl_cmi.simulate` with a folder for temporary files of its own.

    In a `with` block, no process of it outlives the block.

    Args:
        folder: Where it works.
        overrides: Of the configuration.
    """

    folder: Path
    overrides: tuple[str, ...]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.run_dir = self.folder / f"run-{self.mark}"
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        # Ray's sockets need a short path, so its own folder is elsewhere, and looked for by the process's id.
        more = {
            "PYTHONPATH": path,
            "TMPDIR": str(self.temporary),
            "RAY_TMPDIR": "/tmp",
            "FL_CMI_MARK": self.mark,
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fl_cmi.simulate",
                *self.overrides,
                f"hydra.run.dir={self.run_dir}",
            ],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever has become of the test, nothing that it started goes on."""
        kill_marked(self.mark)
        self.process.communicate()

    def wait_for(self, path: Path, seconds: float = 120) -> None:
        """Wait until a file is there."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, f"{path} does not come"
            time.sleep(0.05)

    def end_by(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to the program, not to what it started; exit code and standard error."""
        self.process.send_signal(number)
        return self.end()

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Exit code and standard error."""
        try:
            said = self.process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, said

    def left(self, seconds: float = 10) -> list[str]:
        """Processes, temporary files and Ray folders that are still there after a moment."""
        end = time.monotonic() + seconds
        while (left := marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.2)
        found = [f"{process} {name}" for process, name in left.items()]
        # Torch's cache of compiled code belongs to the user, not to a run.
        found += [str(path) for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")]
        found += [str(path) for path in Path("/tmp/ray").glob(f"session_*_{self.process.pid}")]
        return found + [str(path) for path in self.run_dir.rglob(".*.*") if path.is_file()]
