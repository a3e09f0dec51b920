"""FedEnsemble: federated averaging, and all clients' models vote on each prediction."""

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.flower.prototypes import Prototypes
from fl_cmi.flower.records import to_record, unpack_updates
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError

__all__ = ["FedEnsemble", "Vote"]


class Vote(nn.Module):
    """`sum_k m_k f_k(x)`: the sum of logits, m_k of the voters having model k."""

    def __init__(self, models: list[nn.Module], voters: list[int]) -> None:
        super().__init__()
        assert len(models) == len(voters) > 0
        self.models, self.voters = nn.ModuleList(models), voters

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Summed logits."""
        return torch.stack([m * model(x) for m, model in zip(self.voters, self.models, strict=True)]).sum(
            dim=0
        )


class FedEnsemble(FedAvg):
    """FedAvg's training; the prediction is `argmax_c sum_k f_k(x)_c` over all clients' models.

    Clients that were not drawn in a round hold the model that was last sent out, so it has as many votes as there are
    such clients. What is saved and sent on is the average; accuracies of the run are those of the vote. Where
    architectures differ, each has its own average. Not the same as Fed-ensemble (arXiv 2107.10663).

    References:
        Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, released code (baseline FedEnsemble).

    Args:
        num_clients: K.
        side: What the server knows of the run.
    """

    mixed_architectures = sends_own_architecture = whole_models = True
    teacher_passes = 0
    disclosed = ("server needs no images, but every client's model for each prediction",)

    def __init__(self, num_clients: int, side: ServerSide) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        if num_clients < 1:
            raise ConfigError("num_clients", num_clients, "an integer >= 1")
        self.num_clients, self.side, self.prototypes = num_clients, side, Prototypes(side)
        self.vote: Vote | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; each client gets the average of its own architecture."""
        messages = super().configure_train(server_round, arrays, config, grid)
        return self.prototypes.addressed(messages, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the votes of this round, then average."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        updates = unpack_updates(valid)
        models = [self.side.teacher(update).model for update in updates]
        voters = [1] * len(models)
        idle = set(range(self.num_clients)) - {update.client for update in updates}
        kinds = [self.prototypes.of_client(client) for client in sorted(idle)]
        for kind in self.prototypes.states:
            if kind in kinds:
                models.append(self.prototypes.model(kind))
                voters.append(kinds.count(kind))
        self.vote = Vote(models, voters).to(self.side.device)
        self.prototypes.average(updates)
        record = to_record(self.prototypes.states[self.prototypes.own])
        return record, MetricRecord({"models": len(models), "voters": sum(voters)})

    def predictor(self) -> nn.Module:
        """Who predicts, after a round."""
        assert self.vote is not None, "a round comes first"
        return self.vote

    def state_dict(self, scene: Scene) -> Tree:
        """The averages; who voted is asked anew in each round."""
        return self.prototypes.state_dict()

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.prototypes.load_state_dict(state)
