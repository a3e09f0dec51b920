"""What a federated method adds to one client's training in one round: hooks that the training calls."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from fl_cmi.types import State

__all__ = ["Contribution", "Session"]


@dataclass(frozen=True)
class Contribution:
    """What remains of a session.

    Args:
        sent: Records that go to the server beside the model, by name.
        kept: Records that the client keeps for its next session; they replace those of the same name.
    """

    sent: dict[str, State] = field(default_factory=dict)
    kept: dict[str, State] = field(default_factory=dict)


class Session:
    """Nothing beside plain training; the base of every method's own."""

    def prepare(self, optimizer: Optimizer, proximal_mu: float) -> None:
        """Before the first step; rates set here are what the learning-rate schedule starts from."""

    def loss(
        self, logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""] | float:
        """Added to a batch's loss.

        Args:
            logits: What the model says of the batch, with gradient, free of any prior correction.
            y: The labels.
        """
        return 0.0

    def correct(self) -> None:
        """Change the gradients of a batch, which are there now."""

    def finish(self) -> Contribution:
        """After the last step, the model being trained."""
        return Contribution()
