"""Batch norm's buffers taken out of a strategy's hands."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble, mean_logits
from fl_cmi.federated.buffers import buffer_names
from fl_cmi.flower.records import ARRAYS, REPORT, from_record, to_record, unpack_updates
from fl_cmi.flower.strategy_state import restore_strategy, strategy_state
from fl_cmi.rng import stream
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError

__all__ = ["SeparateBuffers"]


class SeparateBuffers(Strategy):
    """Any strategy that averages, of Flower's or ours, on a model of parameters alone; buffers follow their own policy.

    Args:
        strategy: Never sees a buffer.
        side: What the server knows of the run, with the policy.

    Raises:
        ConfigError: For a strategy that needs the clients' whole models, whose global model is no average, or whose
            clients keep the buffers anyway, unless the policy is that they do.
    """

    def __init__(self, strategy: Strategy, side: ServerSide) -> None:
        model, policy = side.student(), side.sharing.buffers
        self.strategy, self.side, self.names = strategy, side, buffer_names(model)
        private, name = side.sharing.method.private(model), type(strategy).__name__
        if getattr(strategy, "whole_models", False):
            raise ConfigError("buffers", type(policy).__name__, f"null, because {name} needs whole models")
        if dict(model.named_parameters()).keys() <= private:
            allowed = f"null, because {name} does not average the clients' models"
            raise ConfigError("buffers", type(policy).__name__, allowed)
        if self.names & private and not self.names <= policy.kept(model):
            allowed = f"null or keep_local, because clients of this {name} keep their buffers"
            raise ConfigError("buffers", type(policy).__name__, allowed)
        side.sharing.buffers.check(side.untrained_ensemble(mean_logits))
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the shared buffers to the strategy's messages."""
        self.sent = arrays
        parameters = ArrayRecord({name: a for name, a in arrays.items() if name not in self.names})
        private = self.side.sharing.private(self.side.student())
        buffers = {name: arrays[name] for name in sorted(self.names - private)}
        messages = list(self.strategy.configure_train(server_round, parameters, config, grid))
        for message in messages:
            message.content[ARRAYS] = ArrayRecord({**message.content.array_records[ARRAYS], **buffers})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate parameters, and the policy merge buffers."""
        replies, side = list(replies), self.side
        good = [reply for reply in replies if not reply.has_error()]
        updates = unpack_updates(good)
        for reply in good:
            arrays = reply.content.array_records[ARRAYS]
            parameters = {name: a for name, a in arrays.items() if name not in self.names}
            reply.content[ARRAYS] = ArrayRecord(parameters)
            if REPORT in reply.content and side.sharing.method.private(side.student()) <= self.names:
                del reply.content[REPORT]  # Flower's own strategies want one record of arrays
        new, metrics = self.strategy.aggregate_train(server_round, replies)
        if new is None:
            return None, metrics
        model = side.student()
        model.load_state_dict(from_record(ArrayRecord({**self.sent, **new}), like=model.state_dict()))
        ensemble = Ensemble([side.teacher(update) for update in updates], mean_logits)
        rng = stream(side.seed, "buffers", server_round)
        states = [update.shared for update in updates]
        merged = side.sharing.buffers.merge(ensemble, model.to(side.device), states, side.task, rng)
        return to_record({**model.state_dict(), **merged}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """None: the server scores the global model."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def state_dict(self, scene: Scene) -> Tree:
        """The strategy's, and the policy's."""
        return [strategy_state(self.strategy, scene), self.side.sharing.buffers.state_dict(scene)]

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        restore_strategy(self.strategy, state[0], scene)
        self.side.sharing.buffers.load_state_dict(state[1], scene)

    def summary(self) -> None:
        """The strategy's own."""
        self.strategy.summary()
