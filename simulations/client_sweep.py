"""From 5 to 50 clients: how much each method loses when the same images are dealt to more of them.

python -m simulations.client_sweep                               # 5, 10, 20, 50 clients, alpha .5, seed 0
python -m simulations.client_sweep --clients 5 50 --seeds 0 1 2
python -m simulations.client_sweep --dry-run                     # the commands, and how long they may take

Fashion-MNIST in one round, Dirichlet by class, the setting and the budget of `simulations.one_shot`.
"""

import sys
from collections.abc import Sequence

from simulations.federated import METHODS
from simulations.one_shot import SETTING
from simulations.study import Study, main
from simulations.sweep import Launch

__all__ = ["STUDY", "run"]

STUDY = Study(
    "simulations.client_sweep",
    (__doc__ or "").split("\n")[0],
    SETTING,
    METHODS,
    ["fedavg", "dense", "fed_cmi"],
    alphas=(0.5,),
    clients=(5, 10, 20, 50),
)


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    return main(STUDY, arguments, launch)


if __name__ == "__main__":
    sys.exit(run())
