"""Clients of four architectures, one student: every method that distils, from the same clients, in one table.

python -m simulations.mixed                                      # alpha .5, seed 0
python -m simulations.mixed --methods dense fed_cmi --seeds 0 1 2
python -m simulations.mixed --dry-run                            # the commands, and how long they may take

Fashion-MNIST in one round, 5 clients, Dirichlet by class, the setting and the budget of `simulations.one_shot`, but
clients 0 and 4 train the student's convnet, 1 LeNet-5, 2 ResNet-8 and 3 WRN-16-1. LeNet-5 has no batch norm: terms that
ask for statistics leave it out. No average of all clients exists, so methods that need one are not here.
"""

import sys
from collections.abc import Sequence

from simulations.federated import METHODS, Method
from simulations.one_shot import SETTING
from simulations.study import Study, main
from simulations.sweep import Launch

__all__ = ["STUDY", "run"]

CLIENTS = ["teachers=mixed_lenet", "local.start=scratch"]

SKIP = "+synthesizer.inversion.terms.bn.missing=skip"

MORE = {"dense": (SKIP[1:],), "f_adi": (SKIP,), "fed_cmi": (SKIP,)}
"""Beside what the methods are elsewhere."""


def mixed(name: str) -> Method:
    """A method of `simulations.federated` for clients of which some have no batch norm."""
    method = METHODS[name]
    return Method((*method.overrides, *MORE.get(name, ())), method.budget)


STUDY = Study(
    "simulations.mixed",
    (__doc__ or "").split("\n")[0],
    [*SETTING, *CLIENTS],
    {name: mixed(name) for name in ("feddf", "f_adi", "f_dafl", "dense", "co_boosting", "fedftg", "fed_cmi")},
    alphas=(0.5,),
)


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    return main(STUDY, arguments, launch)


if __name__ == "__main__":
    sys.exit(run())
