"""One round on Fashion-MNIST: data-free methods from the same clients, for equal server time, in one table.

python -m simulations.one_shot                                   # alpha .1 (seeds 0-2), .3 and .5 (seed 0)
python -m simulations.one_shot --methods dense fed_cmi --alphas 0.1 --seeds 0 1 2 --jobs 2
python -m simulations.one_shot --dry-run                         # the commands, and how long they may take

5 clients, Dirichlet by class. Every method but averaging has 600 CPU seconds, 5 minutes of two cores, after the
clients' round; `fed_cmi_x4` has four times as much. 5,000 training images are the server's in all runs, so that all
have the same clients; only FedDF looks at them (500 of them with labels, to stop in time). Runs that are there are not
repeated, and clients are trained once (those of `fed_cmi_moments`, which send more, once again). Overrides after `--`
are for all runs and come last: `-- local.epochs=5`.
"""

import sys
from collections.abc import Sequence

from simulations.federated import HELD_OUT, METHODS
from simulations.study import Study, main
from simulations.sweep import Launch

__all__ = ["SETTING", "STUDY", "run"]

SETTING = ["data=fashion_mnist", "model=convnet", "model.blocks=4", "local.epochs=20", HELD_OUT]
"""Data, model and local training, as in `experiment=fmnist_oneshot`; the server's images are FedDF's."""

STUDY = Study(
    "simulations.one_shot",
    (__doc__ or "").split("\n")[0],
    SETTING,
    METHODS,
    [
        "fedavg",
        "feddf",
        "f_adi",
        "f_dafl",
        "dense",
        "co_boosting",
        "fedftg",
        "fed_cmi_moments",
        "fed_cmi_settled",
        "fed_cmi",
        "fed_cmi_x4",
    ],
    alphas=(0.1, 0.3, 0.5),
    seeds={0.1: (0, 1, 2), None: (0,)},
)


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    return main(STUDY, arguments, launch)


if __name__ == "__main__":
    sys.exit(run())
