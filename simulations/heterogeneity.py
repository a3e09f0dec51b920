"""Methods x partitions x alphas x clients x seeds, in many rounds.

python -m simulations.heterogeneity                              # 20 clients, 10 a round, alpha .1, 20 rounds, seed 0
python -m simulations.heterogeneity --methods fedavg fedgen --alphas 0.05 0.1 1 --partitions dirichlet fedgen
python -m simulations.heterogeneity --dry-run                    # the commands, and how long they may take
python -m simulations.heterogeneity --clients 5 10 -- rounds=1 clients_per_round=null local.epochs=20

Fashion-MNIST. A round has 60 CPU seconds of the server where the method can use them. `rounds.csv` has the course of
every run by round and bytes.
"""

import sys
from collections.abc import Sequence

from simulations.federated import METHODS
from simulations.study import Study, main
from simulations.sweep import Launch

__all__ = ["STUDY", "run"]

SETTING = ["data=fashion_mnist", "model=convnet", "model.blocks=4", "local.epochs=2"]
SETTING += ["rounds=20", "clients_per_round=10"]

STUDY = Study(
    "simulations.heterogeneity",
    (__doc__ or "").split("\n")[0],
    SETTING,
    METHODS,
    ["fedavg", "fedprox", "fedgen", "fedftg", "fed_cmi"],
    clients=(20,),
    budget=60.0,
    rounds=20,
)


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    return main(STUDY, arguments, launch)


if __name__ == "__main__":
    sys.exit(run())
