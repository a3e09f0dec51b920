"""FedNova: clients of unequal work, averaged by their direction instead of their distance."""

import torch
from torch import nn
from torch.optim import Optimizer

from fl_cmi.federated.method import ClientMethod, Visit, checked_sgd, from_broadcast
from fl_cmi.federated.travel import Travel
from fl_cmi.session import Contribution, Session
from fl_cmi.training import LocalTraining
from fl_cmi.types import Task

__all__ = ["NORMALIZER", "CountedSteps"]

NORMALIZER = "normalizer"
"""The record of `rate ||a_i||_1`, and the name of the one number in it."""


class CountedSteps(ClientMethod):
    """Plain SGD whose client tells how far it would have gone with a gradient of 1: `rate ||a_i||_1` of `Travel`.

    Momentum starts anew in every round, as in the paper. With a proximal term (`strategy.proximal_mu`) the number takes
    it into account too.

    References:
        Wang et al. 2020, arXiv 2007.07481.
    """

    def check(self, local: LocalTraining) -> None:
        """From the broadcast, by SGD."""
        from_broadcast(local, "the server adds up what clients changed in its model")
        checked_sgd(local, "||a||_1 is known for it only")

    def begin(self, visit: Visit) -> "CountedSession":
        """Nothing is received or kept."""
        return CountedSession()

    def disclosed(self, model: nn.Module, task: Task) -> list[str]:
        """One number."""
        return ["length of its local training (1 number)"]


class CountedSession(Session):
    """One round of a client."""

    def prepare(self, optimizer: Optimizer, proximal_mu: float) -> None:
        """Put the probe in."""
        self.travel = Travel(optimizer, proximal_mu)

    def correct(self) -> None:
        """Move the probe as well."""
        self.travel.step()

    def finish(self) -> Contribution:
        """The distance."""
        distance = torch.tensor(self.travel.distance, dtype=torch.float64)
        return Contribution(sent={NORMALIZER: {NORMALIZER: distance}})
