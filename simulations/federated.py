"""The federated methods that the benchmarks compare, each a list of Hydra overrides of `python -m fl_cmi.simulate`.

Losses, sources and rules are those of `conf/strategy` and `conf/method`. What is cut is size, as in
`simulations.methods`: the papers' generators and batches are for a GPU (FedFTG keeps its latents of CIFAR-10, 100).
Where a round has a budget, time ends it, and the number of epochs is out of reach; so is the fall of the generator's
rate in FedFTG, by .998 after each round of 10 batches.
"""

from dataclasses import dataclass

from simulations.methods import ENDLESS, SMALL_BATCH, SMALL_GENERATOR, generator, pool

__all__ = ["HELD_OUT", "METHODS", "Method", "averaging"]


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Args:
        overrides: What it is.
        budget: How many budgets of server time it has in a round; 0 for a server that only averages.
        of_all: Overrides that it asks of all runs of a sweep, for their clients to be the same.
    """

    overrides: tuple[str, ...]
    budget: float = 1.0
    of_all: tuple[str, ...] = ()


def averaging(strategy: str, *more: str) -> Method:
    """The server needs no time to speak of."""
    return Method((f"strategy={strategy}", *more), budget=0.0)


FEDGENS_OWN = (
    "local.optimizer.lr=0.01",
    "local.optimizer.momentum=0",
    "local.optimizer.weight_decay=0",
    "local.schedule._target_=fl_cmi.training.constant",
    "local.round_decay=0.99",
    "local.decay_by=last_visit",
)
"""Its weights of 10 belong to these steps: .05 with momentum .9 is too much for them."""

OURS = ("experiment=fmnist_oneshot", "method=fed_cmi_fashion", *ENDLESS[:1])

HALVES = ("schedule.batches=1000000", "schedule.steps=1000000")
"""Half of the time makes images, the other half teaches them."""

HELD_OUT = "held_out=5000"
"""Training images of the server, in the sweeps where it has some."""

METHODS: dict[str, Method] = {
    "fedavg": averaging("fedavg"),
    "fedprox": averaging("fedprox"),
    "scaffold": averaging("scaffold", "local.optimizer.momentum=0"),
    "fednova": averaging("fednova"),
    "fed_ensemble": averaging("fed_ensemble"),
    "fedgen": averaging("fedgen", *FEDGENS_OWN),
    "fedgen_paper": averaging("fedgen_paper", *FEDGENS_OWN),
    "feddf": Method(("strategy=feddf",), of_all=(HELD_OUT,)),
    "f_adi": Method(("method=f_adi", "synthesizer.inversion.steps=100", *pool(steps=80)[1:])),
    "f_dafl": Method(tuple(generator("f_dafl"))),
    "dense": Method(("method=dense", *SMALL_GENERATOR, *SMALL_BATCH, *ENDLESS)),
    "co_boosting": Method(("method=co_boosting", *SMALL_GENERATOR, *SMALL_BATCH, *ENDLESS)),
    "fedftg": Method(
        (
            "method=fedftg",
            "synthesizer.generator.width=16",
            "schedule.iterations=1000000",
            "schedule.evaluate_every=1000000",
        )
    ),
    "fed_cmi": Method(OURS),
    "fed_cmi_x4": Method(OURS, budget=4.0),
    "fed_cmi_settled": Method(("experiment=fmnist_oneshot", "method=fed_cmi_settled", *HALVES)),
    "fed_cmi_moments": Method(("experiment=fmnist_oneshot", "method=fed_cmi_moments", *HALVES)),
}
