"""What a step of synthesis costs with 50 clients, compared with 5."""

from collections.abc import Callable, Iterator, Sequence

import torch

from fl_cmi.compose import build, compose_config, make_model
from fl_cmi.ensemble import Ensemble
from fl_cmi.rng import stream
from fl_cmi.types import Task, Teacher
from simulations.bench.figures import Figure, Scale, at_most, in_turn

__all__ = ["figures"]

TASK = Task((1, 28, 28), 10, (0.286,), (0.353,))

DRAWN = 5
"""Teachers that a batch of `joint, 5 drawn` draws."""

MODES = {"per_client": 2.0, f"joint, {DRAWN} drawn": 2.0, "joint": None}
"""Goals. Joint inversion of all runs a batch through every teacher at each step: nothing grows less than they do."""


def figures(scale: Scale) -> Iterator[Figure]:
    """One line for each way to use many teachers."""
    batch, steps, pairs = scale.choose(128, 32, 4), scale.choose(10, 4), scale.repeat(9, 3)
    few, many = scale.choose(5, 5, 2), scale.choose(50, 50, 3)
    for mode, goal in MODES.items():
        if mode != "per_client":  # seconds a step, in a few of them
            steps, pairs = min(steps, 2), min(pairs, 3)
        ours, reference = (synthesis(mode, clients, batch, steps) for clients in (many, few))
        times = in_turn(ours, reference, pairs)
        name = f"synthesis step, {mode}, CPU s: {many} clients, {few} clients"
        yield at_most(name, times, goal, per=steps)


def synthesis(mode: str, clients: int, batch: int, steps: int) -> Callable[[], object]:
    """A batch of images from so many convnets on Fashion-MNIST's shape, without contrast."""
    overrides = [f"synthesizer.batch_size={batch}", f"synthesizer.inversion.steps={steps}"]
    config = compose_config(
        ["data=fashion_mnist", "synthesizer=per_client", "combine=mean_logits", *overrides]
    )
    node = dict(config["synthesizer"])
    if mode != "per_client":
        node |= {
            "_target_": "fl_cmi.synthesis.synthesizers.Joint",
            "teachers": None if mode == "joint" else DRAWN,
        }
    ensemble = Ensemble(teachers(config["model"], clients), build(config["combine"], "combine"))
    student, synthesizer = make_model(config["model"], TASK, 0), build(node, "synthesizer")
    rng = stream(0, "bench", mode)
    if mode == "per_client":
        # Whose turn it is is random, and each one's first turn makes a generator; costs are those of later turns.
        for client in range(clients):
            synthesizer.inversion_of(client)
    return lambda: synthesizer(ensemble, student, TASK, rng)


def teachers(node: dict[str, object], clients: int) -> Sequence[Teacher]:
    """Untrained, with running statistics of something."""
    counts = torch.full((TASK.num_classes,), 100)
    found = []
    for client in range(clients):
        model = make_model(node, TASK, client)
        with torch.no_grad():
            model.train()(torch.rand(32, *TASK.shape, generator=stream(client, "bench")))
        found.append(Teacher(client, 1000, counts, model))
    return found
