"""FedGen's own experiment: its partition, its network, 200 rounds, by its metric and by the test set of all clients.

python -m simulations.fedgen                                     # Fashion-MNIST, alpha .1, seeds 0-2
python -m simulations.fedgen --alphas 0.05 0.1 1
python -m simulations.fedgen --dry-run                           # the commands, and how long they may take
python -m simulations.fedgen -- data=mnist data.download=true    # the paper's data

20 clients, 10 a round, 20 steps of SGD each, at a rate that falls by .99 a round for all methods, as in the released
code, but for `fedavg_constant`; batch norm's statistics stay on the clients. FedGen as released and as in the paper,
beside FedAvg. "own tests" is the paper's metric: every client scores the global weights with its own statistics on test
images of labels that it owns.
"""

import sys
from collections.abc import Sequence

from simulations.federated import METHODS, averaging
from simulations.study import Study, main
from simulations.sweep import Launch

__all__ = ["STUDY", "run"]

ROUNDS = 200

STUDY = Study(
    "simulations.fedgen",
    (__doc__ or "").split("\n")[0],
    ["experiment=fedgen_mnist", "data=fashion_mnist", f"rounds={ROUNDS}", "evaluate_every=5"],
    {
        **{name: METHODS[name] for name in ("fedavg", "fedgen", "fedgen_paper")},
        "fedavg_constant": averaging("fedavg", "local.round_decay=1"),
    },
    partitions=("fedgen",),
    clients=(20,),
    seeds={None: (0, 1, 2)},
    rounds=ROUNDS,
)


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    return main(STUDY, arguments, launch)


if __name__ == "__main__":
    sys.exit(run())
