"""`python -m fl_cmi.simulate`: a federated run from a Hydra configuration.

python -m fl_cmi.simulate                                   # digits, 5 clients, one round of fed_cmi
python -m fl_cmi.simulate experiment=fmnist_oneshot seed=1
python -m fl_cmi.simulate -m seed=0,1,2 strategy=fedavg,fed_cmi
python -m fl_cmi.simulate resume=outputs/.../...                # go on with a run that was killed
"""

import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from fl_cmi.attacks.attack import Attack
from fl_cmi.attacks.success import success
from fl_cmi.bank import Pool
from fl_cmi.checkpoint.begin import begin_or_resume
from fl_cmi.checkpoint.run import Checkpoints
from fl_cmi.checkpoint.store import Generation, Store
from fl_cmi.checks import check
from fl_cmi.command import carry_out, command_line
from fl_cmi.compose import Config, bad_clients, build, dataset, fitting, make_partition, server_side
from fl_cmi.disclosure import disclosed
from fl_cmi.distillation.budget import checked_budget, clock_called
from fl_cmi.ensemble import Combine, Ensemble
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.flower.backend import Backend, flower_log
from fl_cmi.flower.buffers import SeparateBuffers
from fl_cmi.flower.client import own_tests
from fl_cmi.flower.compatibility import check_strategy, strategy_name
from fl_cmi.flower.failure import BackendFailure, ClientFailure
from fl_cmi.flower.outcome import Outcome
from fl_cmi.flower.scores import Scores
from fl_cmi.flower.server import serve
from fl_cmi.flower.strategies import FedCmi
from fl_cmi.flower.teacher_cache import TeacherCache
from fl_cmi.last_step import LastStepFailure, check_last_step, failure_of, last_step
from fl_cmi.measures import measure_pool
from fl_cmi.memory import keep_freed_memory
from fl_cmi.partition import Partition
from fl_cmi.report.figures import partition_heatmap
from fl_cmi.report.folder import save_pool, saving_on_failure, write_results
from fl_cmi.report.html import write_report
from fl_cmi.report.integrity import write_integrity
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.origin import origin_of
from fl_cmi.report.progress import Progress
from fl_cmi.report.summary import digest, provenance
from fl_cmi.report.table import print_summary
from fl_cmi.rng import stream
from fl_cmi.sides import ServerSide
from fl_cmi.spread import check_room, crew_of, hired
from fl_cmi.synthesis.crew import WorkerFailure
from fl_cmi.trust import trust_scores
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
        LastStepFailure: If compression failed, when all else is written.
    """
    check(config)
    keep_freed_memory()
    return begin_or_resume(config, run_dir, partial(carry_on, run_dir, command, backend))


def carry_on(
    run_dir: Path,
    command: str | None,
    backend: Backend | None,
    config: Config,
    store: Store,
    start: Generation | None,
) -> dict[str, Any]:
    """A run from its beginning or from a checkpoint to its end."""
    # Told of every strategy, also of those that have no use for it.
    checked_budget(config["budget_s"]), clock_called(config["budget_clock"])
    progress, log = Progress(), MetricsLog(run_dir / "metrics.jsonl")
    threads = config["server_threads"] or os.cpu_count() or 1
    torch.set_num_threads(threads)
    with progress.phase("setup"):
        compressor = build(config["compression"], "compression") if config["compression"] else None
        data = dataset(config)
        partition = make_partition(config, data)
        attack, bad = bad_clients(config)
        attack.wanted(data.test)  # its own checks speak before the run begins
        crew = crew_of(config)
        side = server_side(config, data, progress, log, partition, crew)
        combine = build(config["combine"], "combine")
        with fitting(config["combine"], "combine"):
            side.untrained_ensemble(combine)
        # Flower warns that clients' own evaluation is off; it is meant to be.
        with flower_log(logging.ERROR):
            strategy = build(config["strategy"], "strategy")
            if callable(strategy):  # ours are completed with what no YAML holds
                with fitting(config["strategy"], "strategy"):
                    strategy = strategy(side=side)
        check_strategy(config, side, strategy)
        # The clients build it, but a mistake is told before they start.
        side.sharing.check(build(config["local"], "local"), side.student())
        if config["on_client_failure"] == "fail":
            side.sharing.method.check_images(partition.sizes)
        if config["save_pool"] and not isinstance(strategy, FedCmi):
            raise ConfigError("save_pool", "true", "false, because only fed_cmi makes synthetic images")
        method, predictor = strategy, getattr(strategy, "predictor", None)
        if config.get("buffers") is not None:
            strategy = SeparateBuffers(strategy, side)
        tests = own_tests(data, partition, config["seed"]) if config["own_tests"] else None
        scores = Scores(side, predictor, tests)
        if compressor is not None:
            check_last_step(compressor, side, strategy)
        folder = config.get("teacher_cache")
        cache = None if folder is None else TeacherCache(folder, config, partition, data, side)
        if cache is not None and start is not None:  # round 1 may be over
            cache.status = start.about.get("remembered") or cache.status
        backend = build(config["backend"], "backend") if backend is None else backend
        check_room(crew, method, backend)
    checkpoints = Checkpoints(store, config, log, progress, start)
    counts = partition.counts(data.train.y.numpy(), data.train.num_classes)
    log.write("partition", counts=counts, **partition.manifest())
    if start is None:
        checkpoints.commit({})
    outcome = Outcome()

    def rounds(grid: Any) -> None:
        nonlocal outcome
        with hired(crew):
            outcome = serve(grid, strategy, side, config, threads, scores, cache, checkpoints)

    pool = strategy.pool if isinstance(strategy, FedCmi) else None
    origin = origin_of(config["synthesizer"])
    with saving_on_failure(pool, run_dir, origin):
        backend.run(json.dumps(config), partition, config["num_clients"], rounds)
    torch.set_num_threads(threads)
    with progress.phase("evaluation"):
        # What a rule has learnt is in the strategy's own; FedDF has another rule than the run.
        measured = measure(outcome, side, getattr(method, "combine", combine), pool)
        attacked(measured, attack, bad, outcome, side, getattr(method, "combine", combine), scores)
    measured["disclosed"] += getattr(method, "disclosed", ())
    summary = summarize(config, outcome, measured, partition, side)
    summary["teacher_passes"] = getattr(method, "teacher_passes", 0) + side.sharing.buffers.teacher_passes
    # `transfer` is the sum of synthesis, distillation and evaluation.
    phases = {name: seconds for name, seconds in progress.seconds.items() if name != "transfer"}
    summary["workers"] = None if crew is None else crew.told()
    summary["teacher_cache"] = None if cache is None else cache.status
    # Clients that were not trained took no time, however long it was to wait for another run to train them.
    phases |= {} if cache is None or cache.status != "hit" else {"local": phases.get("local", 0.0)}
    summary["seconds"] = {**phases, "total": checkpoints.seconds}
    log.write("summary", **{key: summary[key] for key in ("student", "ensemble", "average", "gap")})
    if compressor is not None and pool is not None:
        augment = build(config["augment"], "augment")
        summary["compressed"] = last_step(compressor, augment, outcome.student, side, pool, run_dir)
    failure = failure_of(summary, run_dir)
    if pool is not None and (config["save_pool"] or failure is not None):
        save_pool(pool, run_dir, origin)
    partition_heatmap(counts, data.class_names, run_dir / "partition.png")
    write_results(
        run_dir,
        summary,
        outcome.student,
        pool,
        data.class_names,
        partial(write_report, run_dir, summary, command),
    )
    write_integrity(run_dir)
    checkpoints.close()
    if failure is not None:
        raise failure
    return summary


def measure(outcome: Outcome, side: ServerSide, combine: Combine, pool: Pool | None) -> dict[str, Any]:
    """Test accuracies of the last round's clients, their ensemble and their average; measures of the images."""
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
    trust = None if pool is None else trust_scores(ensemble, pool, stream(side.seed, "trust"))
    for row, score in zip(clients, trust or [None] * len(clients), strict=True):
        row["trust"] = score
    combined = combine(torch.stack(logits), ensemble.cpu())
    state = side.average(outcome.updates)
    average = None
    if state is not None:
        model = side.build(outcome.updates[0].client)
        model.load_state_dict(state)
        average = side.test_accuracy(model.to(side.device))
    return {
        "clients": clients,
        "ensemble": {"accuracy": accuracy(combined, side.test)},
        "average": {"accuracy": average},
        "synthetic": None
        if pool is None
        else measure_pool(pool, ensemble.to(side.device), side.test, stream(side.seed, "measures")),
        "disclosed": disclosed(outcome.updates, ensemble, side),
    }


def attacked(
    measured: dict[str, Any],
    attack: Attack,
    bad: Sequence[int],
    outcome: Outcome,
    side: ServerSide,
    combine: Combine,
    scores: Scores,
) -> None:
    """Add to `measured` who was bad and how far they got: `attacks`, None where nobody was."""
    measured["attacks"] = None
    for row in measured["clients"]:
        row["attack"] = type(attack).__name__ if row["client"] in bad else None
    if bad:
        ensemble = Ensemble([side.teacher(update) for update in outcome.updates], combine)
        students = scores.models(outcome.student, outcome.updates)
        measured["attacks"] = {
            "attack": type(attack).__name__,
            "clients": list(bad),
            "success": success(attack, {"ensemble": [ensemble], "student": students}, side.test, side.device),
        }


def summarize(
    config: Config, outcome: Outcome, measured: dict[str, Any], partition: Partition, side: ServerSide
) -> dict[str, Any]:
    """The contract of `summary.json`; accuracies are fractions of 1."""
    last, best = outcome.accuracies[-1], max(a for a in outcome.accuracies if a is not None)
    return {
        "student": {
            "accuracy_last": last,
            "accuracy_best": best,
            "round_best": outcome.accuracies.index(best) + 1,
        },
        **measured,
        "own_tests": outcome.own_tests[-1] if outcome.own_tests else None,
        "gap": measured["ensemble"]["accuracy"] - last,
        "digest": digest(outcome.student),
        "bytes": {"up": outcome.bytes_up, "down": outcome.bytes_down},
        "partition": partition.manifest(),
        "failures": outcome.failures,
        "served": outcome.served,
        "server_seconds": outcome.server_seconds,
        "strategy": strategy_name(config),
        "rounds": config["rounds"],
        "device": str(side.device),
        "threads": {"server": torch.get_num_threads(), "client": config["client_threads"]},
        **provenance(config),
    }


def job(config: DictConfig) -> float:
    """Hydra's task function."""
    failures = ClientFailure, BackendFailure, WorkerFailure, LastStepFailure
    return carry_out(config, "simulate", run, print_summary, *failures)


def main() -> None:
    """The command line; exit codes as in `fl_cmi.command.carry_out`."""
    command_line("simulate", job)


if __name__ == "__main__":
    main()
