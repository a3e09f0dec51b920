"""FedDistill and FedDistill+: mean logits instead of models, or beside them."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.federated.buffers import weighted_mean
from fl_cmi.federated.feddistill import LOGITS, LabelLogits, global_logits
from fl_cmi.flower.records import unpack_updates
from fl_cmi.flower.sending import complete, shared_part, with_records
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError, State

__all__ = ["FedDistill"]


class FedDistill(FedAvg):
    """Clients learn from the mean logits that all clients' models give to images of a label.

        mbar_c = 1/K sum_k m_kc        over the round's clients

    Down and up: a row of logits for each label; with `client.share_model` (FedDistill+) also the model, which is
    averaged by examples. Without it there is no global model: the run is scored by the clients' own ones, and these
    may be of any architecture.

    References:
        The baseline of Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, after Seo et al. 2020, arXiv 2011.02367.

    Args:
        client: The client's half.
        side: What the server knows of the run.
    """

    def __init__(self, client: LabelLogits, side: ServerSide) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        if client.share_counts and not side.share_label_counts:
            allowed = "false, because clients keep their label counts (share_label_counts=false)"
            raise ConfigError("strategy.client.share_counts", True, allowed)
        self.client, self.side = client, side
        self.mixed_architectures = not client.share_model
        self.logits: State | None = None
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the mean logits, from the second round."""
        self.sent = arrays
        messages = super().configure_train(server_round, shared_part(arrays, self.side), config, grid)
        return messages if self.logits is None else with_records(messages, {LOGITS: self.logits})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average logits, and models where they are shared."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        updates = unpack_updates(valid)
        self.logits = global_logits([update.extra[LOGITS] for update in updates])
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        if not self.client.share_model:
            return self.sent, metrics
        new = weighted_mean([u.shared for u in updates], [u.num_examples for u in updates])
        return complete(new, self.sent), metrics

    def state_dict(self, scene: Scene) -> Tree:
        """The mean logits."""
        return self.logits

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.logits = state
