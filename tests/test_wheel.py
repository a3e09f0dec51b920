"""The wheel holds all modules and the configuration, and runs from another directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def test_everything_is_in_it(unpacked: Path) -> None:
    assert files(unpacked / "fl_cmi", "*.py") == files(ROOT / "fl_cmi", "*.py")
    assert files(unpacked / "fl_cmi" / "conf", "*.yaml") == files(ROOT / "conf", "*.yaml")
    assert not list(unpacked.rglob("test_*.py"))
    (metadata,) = unpacked.glob("*.dist-info")
    assert "fl-cmi" in (metadata / "entry_points.txt").read_text(encoding="utf-8")
    assert (metadata / "licenses" / "LICENSE").is_file()


def test_it_runs_from_another_directory(unpacked: Path, tmp_path: Path) -> None:
    where = "import fl_cmi, fl_cmi.compose as c; print(fl_cmi.__file__); print(c.config_folder())"
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    places = python("-c", where).stdout.split()
    assert places == [str(unpacked / "fl_cmi" / "__init__.py"), str(unpacked / "fl_cmi" / "conf")]
    overrides = [
        "data=synthetic",
        "partition.alpha=1.0",
        "model.width=4",
        "local.epochs=1",
        "synthesizer.batch_size=8",
        "schedule={epochs:1,batches:1,steps:1,evaluate_every:1}",
        "backend=local",
    ]
    done = python("-m", "fl_cmi.simulate", *overrides)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.is_relative_to(tmp_path)
    assert (folder / "summary.json").is_file()
    wrong = python("-m", "fl_cmi.simulate", "strategy=nope")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("fl_cmi: ")
    assert len(wrong.stderr.splitlines()) == 1
    names = sorted(path.stem for path in (unpacked / "fl_cmi" / "conf" / "synthesizer").glob("*.yaml"))
    assert {"cmi", "per_client"} <= set(names)
    assert f"synthesizer: {', '.join(names)}" in python("-m", "fl_cmi.simulate", "--help").stdout
