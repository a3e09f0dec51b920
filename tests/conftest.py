"""Shared by all tests: shapes and types of every fl_cmi function are checked at run time, on one thread."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]

# Left out: the hook wraps classes from the outside, and a class under `@ray.remote` is none any more.
UNCHECKED = {"fl_cmi.flower.ray_grid", "fl_cmi.flower.ray_workers"}

# Each module by its own name, because a package's name would take in all that is below it.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "fl_cmi").rglob("*.py")
    if path.name != "__init__.py"
}

# Before the first import of fl_cmi; worker processes run unchecked.
install_import_hook(sorted(MODULES - UNCHECKED), "typechecker.checked")

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what Hydra changes for the whole process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    yield tmp_path
    GlobalHydra.instance().clear()
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers = before
    root.setLevel(level)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing, which takes most of the time of a small one; the page is written all the same."""
    for picture in ("simulate.partition_heatmap", "report.folder.curves", "report.folder.synthetic_grid"):
        monkeypatch.setattr(f"fl_cmi.{picture}", lambda *_, **__: None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation with its pool and a last step, for the tests of compression, which leave it as it is."""
    from small_compression import TINY  # fl_cmi behind the hook

    from fl_cmi.compose import compose_config
    from fl_cmi.simulate import run

    folder = tmp_path_factory.mktemp("finished") / "run"
    run(compose_config([*TINY, "save_pool=true", "compression=w4a8"]), folder)
    return folder
