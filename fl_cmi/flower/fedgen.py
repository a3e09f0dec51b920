"""FedGen: averaging, helped by a generator of features that the server learns from the clients' heads."""

from collections.abc import Iterable
from typing import Literal, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.federated.buffers import weighted_mean
from fl_cmi.federated.fedgen import GENERATOR, LABELS, LatentRegularized
from fl_cmi.federated.fedgen_server import GeneratorTraining, LabelCounts
from fl_cmi.flower.records import unpack_updates
from fl_cmi.flower.sending import complete, shared_part, with_records
from fl_cmi.models.initialize import initialize
from fl_cmi.rng import stream
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError, Update

__all__ = ["FedGen"]


class FedGen(FedAvg):
    """FedGen: a generator G(y) of what classifiers' last layers see, learned from the clients' heads, sent to clients.

        theta <- sum_k n_k theta_k / sum n                 clients' models, or their heads alone
        w     <- argmin L_teacher(h_k(G_w(y))) + L_div     a few steps in each round

    Down: the model, and from the second round the generator with its buffers and the prior of labels (C numbers); up:
    the model and label counts. Variants are settings: `strategy=fedgen` is the released code, `strategy=fedgen_paper`
    the paper. The code keeps batch norm's buffers on the clients, which here is `buffers=keep_local`.

    Deviations: labels "that some client owns" are those that clients have told so far (the released code looks at all
    clients' data before the first round); a client with fewer images than a batch trains on what it has; all clients
    may take part. Its "partial sharing" sends everything and is not reproduced: `client.share=head` shares the head.

    References:
        Zhu, Hong, Zhou 2021, arXiv 2105.10056, algorithm 1.

    Args:
        client: The client's half.
        training: Of the generator.
        side: What the server knows of the run.
        prior: Labels that clients draw: `owned`, uniformly those that some client owns, or `frequent`, as frequent as
            they are with all clients heard of (the paper's p-hat).
    """

    def __init__(
        self,
        client: LatentRegularized,
        training: GeneratorTraining,
        side: ServerSide,
        prior: Literal["owned", "frequent"] = "owned",
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        if prior not in ("owned", "frequent"):
            raise ConfigError("strategy.prior", prior, "owned or frequent")
        if not side.share_label_counts:
            raise ConfigError("share_label_counts", False, "true, because FedGen needs the clients' labels")
        self.client, self.training, self.side = client, training, side
        self.prior: Literal["owned", "frequent"] = prior
        generator = client.make(side.task.num_classes, cast(int, side.student().num_features))
        initialize(generator, stream(side.seed, "generator"))
        self.generator = generator.to(side.device)
        self.counts = LabelCounts(client.count_start)
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the generator along once it has learned something."""
        self.sent = arrays
        messages = super().configure_train(server_round, shared_part(arrays, self.side), config, grid)
        if not self.counts.last:
            return messages
        prior = {"prior": self.counts.prior(self.prior)}
        return with_records(messages, {GENERATOR: self.generator.state_dict(), LABELS: prior})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train the generator, average the models."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        updates = unpack_updates(valid)
        counts = {update.client: update.extra[LABELS]["count"] for update in updates}
        self.counts.add(counts)
        of_round = LabelCounts(self.client.count_start)
        of_round.add(counts)
        with self.side.progress.phase("generator"):
            losses = self.training(
                self.generator,
                [self.head(update) for update in updates],
                of_round,
                stream(self.side.seed, "generator", "round", server_round),
            )
        self.side.log.write("generator", round=server_round, **losses)
        new = weighted_mean([u.shared for u in updates], [u.num_examples for u in updates])
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        return complete(new, self.sent), metrics

    def head(self, update: Update) -> nn.Module:
        """A client's last layer."""
        model = self.side.student()
        model.load_state_dict(update.shared, strict=False)
        return model.get_submodule("classifier").to(self.side.device)

    def state_dict(self, scene: Scene) -> Tree:
        """The generator, its training, and the labels heard of."""
        return {
            "generator": self.generator.state_dict(),
            "training": self.training.state_dict(),
            "counts": [self.counts.last, self.counts.owned],
        }

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.generator.load_state_dict(state["generator"])
        self.training.load_state_dict(state["training"], self.generator)
        self.counts.last, self.counts.owned = state["counts"]
