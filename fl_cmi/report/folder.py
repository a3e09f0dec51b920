"""What a run leaves in its folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fl_cmi.bank import Pool
from fl_cmi.files import whole
from fl_cmi.report.figures import curves, synthetic_grid
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.origin import Origin
from fl_cmi.report.summary import write_json
from fl_cmi.types import State

__all__ = ["save_pool", "save_state", "saving_on_failure", "write_results"]


def save_state(state: State, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a model as safetensors, from whatever device."""
    with whole(path) as draft:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, draft, metadata)


def save_pool(pool: Pool, run_dir: Path, origin: Origin) -> Path:
    """Write the images to `pool.safetensors`, with where they come from; the file."""
    path = run_dir / "pool.safetensors"
    save_state(pool.tensors(), path, origin.metadata())
    return path


@contextmanager
def saving_on_failure(
    pool: Pool | None,
    run_dir: Path,
    origin: Origin,
    failures: tuple[type[Exception], ...] = (FloatingPointError,),
) -> Iterator[None]:
    """Inside, a loss that is not finite loses no image: the pool goes to `pool.safetensors`.

    Args:
        pool: Images, if any.
        run_dir: Where they go.
        origin: Where they come from.
        failures: Exceptions made of a message, for which that is done.

    Raises:
        FloatingPointError: The one from inside, with a word on where the images are; so do all `failures`.
    """
    try:
        yield
    except failures as error:
        if pool is None or not len(pool):
            kept = "no image had been kept yet"
        else:
            path = save_pool(pool, run_dir, origin)
            kept = f"the {len(pool):,} images synthesized before are in {path.resolve()}"
        raise type(error)(f"{error}; {kept}") from error


def write_results(
    run_dir: Path,
    summary: dict[str, Any],
    student: State,
    pool: Pool | None,
    class_names: Sequence[str],
    write_page: Callable[[], object],
) -> None:
    """Fill the run folder with what every kind of run has; `summary.json` comes last and says that all is there.

    Args:
        run_dir: Holds `metrics.jsonl` already.
        summary: What `summary.json` is to hold.
        student: The model that was taught.
        pool: Synthetic images, if any.
        class_names: What the labels stand for.
        write_page: Writes the page, once all that it shows is there.
    """
    save_state(student, run_dir / "student.safetensors")
    levels = {name: summary.get(name, {}).get("accuracy") for name in ("ensemble", "average", "teacher")}
    curves(MetricsLog.read(run_dir / "metrics.jsonl"), run_dir / "curves.png", **levels)
    if pool is not None and len(pool):
        chosen = pool.get(pool.surest())
        assert chosen.y is not None
        synthetic_grid(chosen.x, chosen.y, class_names, run_dir / "synthetic.png")
    write_page()
    write_json(run_dir / "summary.json", summary)
