"""What of a model leaves its client: the method's say and that of the policy for batch norm's buffers."""

from dataclasses import dataclass, field

from torch import nn

from fl_cmi.federated.buffers import BufferPolicy
from fl_cmi.federated.method import ClientMethod, from_broadcast
from fl_cmi.training import LocalTraining

__all__ = ["Sharing"]


@dataclass(frozen=True)
class Sharing:
    """What clients do besides training, and what they share.

    Args:
        method: The client's half of the federated method.
        buffers: What happens to batch norm's running statistics.
    """

    method: ClientMethod = field(default_factory=ClientMethod)
    buffers: BufferPolicy = field(default_factory=BufferPolicy)

    def check(self, local: LocalTraining, model: nn.Module) -> None:
        """Raise ConfigError where this local training of `model` does not go with the method or the policy."""
        self.method.check(local)
        if self.buffers.private(model):
            policy = type(self.buffers).__name__
            from_broadcast(local, f"buffers={policy} tells with which buffers the server's model is trained")

    def private(self, model: nn.Module) -> frozenset[str]:
        """Names of the tensors that never leave a client."""
        return self.method.private(model) | self.buffers.private(model)

    def kept(self, model: nn.Module) -> frozenset[str]:
        """Those of the private ones that a client goes on with in its next round."""
        return self.method.private(model) | self.buffers.kept(model)
