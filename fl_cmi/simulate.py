"""`python -m fl_cmi.simulate`: a federated run from a Hydra configuration.

python -m fl_cmi.simulate                                   # digits, 5 clients, one round of fed_cmi
python -m fl_cmi.simulate experiment=fmnist_oneshot seed=1
python -m fl_cmi.simulate -m seed=0,1,2 strategy=fedavg,fed_cmi
"""

import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from safetensors.torch import save_file

from fl_cmi.bank import Pool
from fl_cmi.compose import (
    Config,
    build,
    check,
    config_folder,
    dataset,
    fitting,
    make_partition,
    plain_config,
    server_side,
)
from fl_cmi.data.dataset import Dataset
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.flower.backend import Backend, flower_log
from fl_cmi.flower.participation import ClientFailure
from fl_cmi.flower.server import Outcome, serve
from fl_cmi.flower.strategies import FedCmi, one_architecture
from fl_cmi.last_step import check_last_step, last_step
from fl_cmi.partition import Partition
from fl_cmi.report.figures import curves, partition_heatmap, synthetic_grid
from fl_cmi.report.html import write_report
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import commit, digest, versions, write_json
from fl_cmi.report.table import print_summary
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError

__all__ = ["main", "run"]

logger = logging.getLogger(__name__)


def run(
    config: Config, run_dir: Path, command: str | None = None, backend: Backend | None = None
) -> dict[str, Any]:
    """One run, from a plain configuration to a folder of results; returns what `summary.json` holds.

    Raises:
        ConfigError: For a user's mistake, before any client trains and before anything is written.
        ClientFailure: If a client failed and the policy is `fail`.
    """
    start = time.perf_counter()
    check(config)
    progress, log = Progress(), MetricsLog(run_dir / "metrics.jsonl")
    threads = config["server_threads"] or os.cpu_count() or 1
    torch.set_num_threads(threads)
    with progress.phase("setup"):
        compressor = build(config["compression"], "compression") if config["compression"] else None
        data = dataset(config)
        partition = make_partition(config, data)
        side = server_side(config, data, progress, log)
        combine = build(config["combine"], "combine")
        with fitting(config["combine"], "combine"):
            side.untrained_ensemble(combine)
        # Flower warns that clients' own evaluation is off; it is meant to be.
        with flower_log(logging.ERROR):
            strategy = build(config["strategy"], "strategy")
            if callable(strategy):  # ours are completed with what no YAML holds
                with fitting(config["strategy"], "strategy"):
                    strategy = strategy(side=side)
        check_architectures(config, side, strategy)
        if compressor is not None:
            check_last_step(compressor, side, strategy)
        build(config["local"], "local")  # the clients build it, but a mistake is told before they start
        backend = build(config["backend"], "backend") if backend is None else backend
    counts = partition.counts(data.train.y.numpy(), data.train.num_classes)
    log.write("partition", counts=counts, **partition.manifest())
    outcome = Outcome()

    def rounds(grid: Any) -> None:
        nonlocal outcome
        outcome = serve(grid, strategy, side, config, threads)

    backend.run(json.dumps(config), partition, config["num_clients"], rounds)
    torch.set_num_threads(threads)
    with progress.phase("evaluation"):
        measured = measure(outcome, side, combine)
    summary = summarize(config, outcome, measured, partition, side)
    # `transfer` is the sum of synthesis, distillation and evaluation.
    phases = {name: seconds for name, seconds in progress.seconds.items() if name != "transfer"}
    summary["seconds"] = {**phases, "total": time.perf_counter() - start}
    log.write("summary", **{key: summary[key] for key in ("student", "ensemble", "average", "gap")})
    pool = strategy.pool if isinstance(strategy, FedCmi) else None
    if compressor is not None and pool is not None:
        augment = build(config["augment"], "augment")
        summary["compressed"] = last_step(compressor, augment, outcome.student, side, pool, run_dir)
    if config["save_pool"] and pool is not None:
        save_file(pool.tensors(), run_dir / "pool.safetensors")
    write_results(run_dir, summary, outcome, counts, data, pool, command)
    return summary


def check_architectures(config: Config, side: ServerSide, strategy: Any) -> None:
    """Raise ConfigError where the global model would have to fit other architectures than its own."""
    if one_architecture(side):
        return
    why = "because not all clients train the global model's architecture"
    if config["local"].get("start") == "broadcast":
        raise ConfigError("local.start", "broadcast", f"scratch or own, {why}")
    if not isinstance(strategy, FedCmi):
        raise ConfigError("strategy", strategy_name(config), f"fed_cmi, {why}")


def strategy_name(config: Config) -> str:
    """The strategy's class."""
    return str(config["strategy"]["_target_"].rsplit(".", 1)[-1])


def measure(outcome: Outcome, side: ServerSide, combine: Combine) -> dict[str, Any]:
    """Test accuracies of the last round's clients, of their ensemble and of their average."""
    ensemble = Ensemble([side.teacher(update) for update in outcome.updates], combine).to(side.device)
    logits = [predict(model, side.test, side.device) for model in ensemble.models]
    clients = [
        {
            "client": teacher.client,
            "accuracy": accuracy(own, side.test),
            "num_examples": teacher.num_examples,
            "architecture": type(teacher.model).__name__,
        }
        for teacher, own in zip(ensemble.teachers, logits, strict=True)
    ]
    combined = combine(torch.stack(logits), ensemble.cpu())
    state = side.average(outcome.updates)
    average = None
    if state is not None:
        model = side.build(outcome.updates[0].client)
        model.load_state_dict(state)
        average = side.test_accuracy(model.to(side.device))
    parameters = [sum(value.numel() for value in update.state.values()) for update in outcome.updates]
    disclosed = [f"model weights and buffers ({_range(parameters)} numbers)", "number of examples"]
    if any(ensemble.batch_norm_counts):
        layers = _range(ensemble.batch_norm_counts)
        disclosed.append(f"batch-norm statistics of its images ({layers} layers, among the buffers)")
    if side.share_label_counts:
        disclosed.append(f"label counts ({side.task.num_classes} integers)")
    disclosed.append("mean training loss and accuracy")
    return {
        "clients": clients,
        "ensemble": {"accuracy": accuracy(combined, side.test)},
        "average": {"accuracy": average},
        "disclosed": disclosed,
    }


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def summarize(
    config: Config, outcome: Outcome, measured: dict[str, Any], partition: Partition, side: ServerSide
) -> dict[str, Any]:
    """The contract of `summary.json`; accuracies are fractions of 1."""
    last, best = outcome.accuracies[-1], max(outcome.accuracies)
    return {
        "student": {
            "accuracy_last": last,
            "accuracy_best": best,
            "round_best": outcome.accuracies.index(best) + 1,
        },
        **measured,
        "gap": measured["ensemble"]["accuracy"] - last,
        "digest": digest(outcome.student),
        "bytes": {"up": outcome.bytes_up, "down": outcome.bytes_down},
        "partition": partition.manifest(),
        "failures": outcome.failures,
        "strategy": strategy_name(config),
        "rounds": config["rounds"],
        "seed": config["seed"],
        "device": str(side.device),
        "threads": {"server": torch.get_num_threads(), "client": config["client_threads"]},
        "commit": commit(),
        "versions": versions(),
        "config": _json_safe(config),
    }


def _json_safe(value: Any) -> Any:
    """`value` with text in place of infinite numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _json_safe(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_json_safe(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_results(
    run_dir: Path,
    summary: dict[str, Any],
    outcome: Outcome,
    counts: Any,
    data: Dataset,
    pool: Pool | None,
    command: str | None,
) -> None:
    """Fill the run folder; `summary.json` comes last but for the page that shows it."""
    student = {name: value.contiguous() for name, value in outcome.student.items()}
    save_file(student, run_dir / "student.safetensors")
    partition_heatmap(counts, data.class_names, run_dir / "partition.png")
    curves(
        MetricsLog.read(run_dir / "metrics.jsonl"),
        run_dir / "curves.png",
        ensemble=summary["ensemble"]["accuracy"],
        average=summary["average"]["accuracy"],
    )
    if pool is not None and len(pool):
        chosen = pool.get(pool.surest())
        assert chosen.y is not None
        synthetic_grid(chosen.x, chosen.y, data.class_names, run_dir / "synthetic.png")
    write_json(run_dir / "summary.json", summary)
    write_report(run_dir, summary, command)


def job(config: DictConfig) -> float:
    """Hydra's task function: one run in the folder that Hydra made for it."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    command = shlex.join(["python", "-m", "fl_cmi.simulate", *HydraConfig.get().overrides.task])
    try:
        summary = run(plain_config(config), run_dir, command)
    except ConfigError as error:
        discard(run_dir)
        # Hydra lets SystemExit through; of an exception it would print lines of its own.
        fail(str(error), 2)
    except ClientFailure as error:
        fail(str(error), 1)
    print_summary(summary, Console())
    print(run_dir.resolve(), flush=True)
    accuracy_last = summary["student"]["accuracy_last"]
    assert isinstance(accuracy_last, float)
    return accuracy_last


def discard(run_dir: Path) -> None:
    """Remove what Hydra put into the folder of a run that never began, and the folder if that was all."""
    for handler in logging.getLogger().handlers:
        handler.close()
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for log_file in run_dir.glob("*.log"):
        log_file.unlink()
    if not any(run_dir.iterdir()):
        run_dir.rmdir()
        for parent in (run_dir.parent, run_dir.parent.parent):
            if parent.name and not any(parent.iterdir()):
                parent.rmdir()


def main() -> None:
    """The command line: exit code 0, 2 for a user's mistake (one line on standard error), 1 for a failed run."""
    # Hydra would print its own errors over several lines and exit with 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    program = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="simulate")(job)
    try:
        program()
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, ConfigError):
            fail(str(error.__cause__), 2)
        fail(" ".join(str(error).split()), 2)


def fail(message: str, code: int) -> NoReturn:
    """Say why in one line and leave."""
    print(f"fl_cmi: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
