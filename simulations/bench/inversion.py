"""The inversion step against the published loop, interleaved.

python -m simulations.bench.inversion                       # a BN convnet on 28 x 28, then WRN-40-2 on 32 x 32
python -m simulations.bench.inversion --threads 2 --pairs 20
python -m simulations.bench.inversion --precision fast

A pair is one batch of each, on the same teacher, by the process's CPU time (on a GPU by the clock on the wall); the
ratio is the median over the pairs. Both find their bank full. GFLOP/s count the products and sums of convolutions and
matrices alone.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fl_cmi.augment import CropFlip, ResizedCropFlip
from fl_cmi.compose import build, compose_config, make_model
from fl_cmi.ensemble import Ensemble
from fl_cmi.memory import keep_freed_memory
from fl_cmi.precision import PRECISIONS, precision_called
from fl_cmi.rng import stream
from fl_cmi.types import Task, Teacher
from simulations.bench.figures import Figure, Scale, Times, at_least, in_turn, seconds, wall_clock
from simulations.bench.machine import processor
from simulations.bench.naive_cmi import NaiveCmi

__all__ = ["figures", "main"]

SETTINGS: dict[str, tuple[Task, dict[str, Any], str]] = {
    "convnet": (Task((1, 28, 28), 10, (0.286,), (0.353,)), {"width": 32, "blocks": 4}, "convnet"),
    "wrn_40_2": (Task((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3), {}, "wrn_40_2"),
}
"""Task, arguments of the teacher, and its name under conf/model; the student is of the same kind."""


SIZES = {"convnet": (256, 20), "wrn_40_2": (64, 5)}
"""Images of a batch (the paper's 256 where it does not take half an hour), and pairs."""

GOALS = {"exact": 2.5, "fast": 4.0}
"""How many times as fast as the published loop, by precision."""

CPU = torch.device("cpu")


def operations(a_shape: Sequence[int], b_shape: Sequence[int], *_: object, **__: object) -> int:
    """Products and sums of `a b^T`."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[0]


ONEDNN = {torch.ops.mkldnn._linear_pointwise: operations}
"""What torch's counter does not know."""


def figures(scale: Scale) -> Iterator[Figure]:
    """Speed of the step for each teacher, on the CPU and on a GPU if there is one, exact and in fast mode."""
    devices = [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]
    for device in devices:
        for name, (full, usual) in SIZES.items() if not scale.tiny else list(SIZES.items())[:1]:
            batch, steps, pairs = scale.choose(full, 16, 4), scale.choose(2, 1), scale.repeat(usual, 3)
            # A GPU wants larger batches, and does many steps in the time of a pair on a CPU.
            size = (batch, steps) if device == CPU else (256, 10 * steps)
            what = f"inversion step, {name}, batch {size[0]}, {device.type}"
            for precision, goal in GOALS.items():
                times, flops = measure(name, *size, pairs, device, precision)
                ours = "ours" if precision == "exact" else f"{precision} mode"
                yield at_least(f"{what} s: {ours}, published loop", times, goal, per=size[1])
                rate, limit = flops / times.medians[0] / 1e9, arithmetic_rate(device, precision) / 1e9
                yield Figure(f"{what} GFLOP/s: {ours}, a convolution alone", rate, limit, rate / limit)


def arithmetic_rate(device: torch.device, precision: str, times: int = 10) -> float:
    """FLOP/s of a 3 x 3 convolution of 64 channels, channels last, at this precision: what a step cannot exceed."""
    x, w = torch.randn(64, 64, 32, 32, device=device), torch.randn(64, 64, 3, 3, device=device)
    if precision != "exact":
        x, w = x.bfloat16(), w.bfloat16()
    x, w = (a.contiguous(memory_format=torch.channels_last) for a in (x, w))

    def work() -> None:
        for _ in range(times):
            F.conv2d(x, w, padding=1)

    work()
    clock = time.process_time if device == CPU else wall_clock
    return 2 * x.numel() * w[0].numel() * times / seconds(work, clock)


def measure(
    name: str,
    batch_size: int,
    steps: int,
    pairs: int,
    device: torch.device = CPU,
    precision: str = "exact",
) -> tuple[Times, float]:
    """Seconds of batches, and floating-point operations of one of ours."""
    naive, ours = pair(name, batch_size, steps, device, precision)
    naive()
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as counter:
        ours()
    clock = time.process_time if device == CPU else wall_clock
    return in_turn(ours, naive, pairs, clock), float(counter.get_total_flops())


def pair(
    name: str, batch_size: int, steps: int, device: torch.device = CPU, precision: str = "exact"
) -> tuple[Callable[[], object], Callable[[], object]]:
    """One batch by the published loop, and one by ours."""
    what, arguments, model = SETTINGS[name]
    config = compose_config(
        [
            f"model={model}",
            "synthesizer=cmi",
            f"synthesizer.batch_size={batch_size}",
            f"synthesizer.inversion.steps={steps}",
        ],
        "distill",
    )
    node = {**config["model"], **arguments}
    teacher, student = make_model(node, what, 0), make_model(node, what, 1)
    with torch.no_grad():  # running statistics of something
        teacher(torch.rand(32, *what.shape, generator=stream(0, "bench")))
    teacher, student = teacher.to(device), student.to(device)
    contrast = config["synthesizer"]["inversion"]["contrast"]
    padding, flip = config["augment"]["padding"], config["augment"]["flip"]
    plain_teacher, plain_student = (
        copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in (teacher, student)
    )
    naive = NaiveCmi(
        plain_teacher,
        plain_student,
        what.shape,
        batch_size=batch_size,
        steps=steps,
        width=config["synthesizer"]["inversion"]["source"]["generator"]["width"],
        bank_size=contrast["bank_size"],
        negatives=contrast["num_negatives"],
        views=(CropFlip(padding, flip), ResizedCropFlip(flip=flip)),
        device=device,
    )
    counts = torch.full((what.num_classes,), 100)
    ensemble = Ensemble(
        [Teacher(0, 1000, counts, teacher)],
        build(config["combine"], "combine"),
        precision=precision_called(precision, device),
    ).to(device)
    ours = build(config["synthesizer"], "synthesizer")
    rng = stream(0, "bench", "naive")
    made = stream(0, "bench", "ours")
    ours(ensemble, student, what, made)
    bank = ours.inversion.contrast.bank
    bank.add(torch.randn(bank.capacity, naive.bank.shape[1], device=device))
    return lambda: naive(rng), lambda: ours(ensemble, student, what, made)


def line(name: str, batch_size: int, steps: int, pairs: int, precision: str) -> str:
    """A row of this program's own table."""
    times, flops = measure(name, batch_size, steps, pairs, precision=precision)
    figure, ratios = at_least("", times, None, per=steps), times.speedups
    speed = flops / times.medians[0] / 1e9
    return (
        f"| {name} | {batch_size} | {figure.reference:.3f} | {figure.ours:.3f} | **{figure.ratio:.2f}**"
        f" ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {speed:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.inversion")
    parser.add_argument("--models", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="of each batch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="exact", help="of ours")
    options = parser.parse_args(arguments)
    for name in ("pairs", "steps", "batch_size", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: at least 1")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(f"{processor()}, {options.threads} thread(s), torch {torch.__version__}; {options.pairs} pairs\n")
    print("| teacher | batch | published, s a step | ours | ratio (least to most) | GFLOP/s |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        print(line(name, options.batch_size, options.steps, options.pairs, options.precision), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
