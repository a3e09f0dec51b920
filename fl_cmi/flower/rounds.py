"""The rounds of a run in its checkpoints: what a round leaves to the next, and what clients have sent."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_cmi.checkpoint.run import Checkpoints
from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.compose import Config
from fl_cmi.flower.failure import Failure
from fl_cmi.flower.grid import LiveGrid
from fl_cmi.flower.outcome import Outcome
from fl_cmi.flower.participation import Participation, Remember
from fl_cmi.flower.record_tree import recalled, records_of, reply_tree, tree_of
from fl_cmi.flower.records import from_record, to_record
from fl_cmi.flower.scores import Scores
from fl_cmi.flower.sending import in_types_of
from fl_cmi.flower.strategies import FedCmi
from fl_cmi.flower.strategy_state import restore_strategy, strategy_state
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError, State

__all__ = ["FromRound", "Rounds"]

logger = logging.getLogger(__name__)

SERVER, CLIENTS, REPLIES, TRANSFER = "server", "clients", "replies", "transfer"
"""Parts: what the last round left on the server, what clients keep, what they sent in this round, and how far the
server is with it."""


class Rounds:
    """Keeps what is needed at the end of a round, and where wanted within it; gives it back to a run that goes on.

    Args:
        checkpoints: Of the run.
        side: What the server knows of the run.
        strategy: The run's.
        scores: The run's.
        outcome: Grows with the run.
        config: Of the run.

    Attributes:
        done: Rounds that are over since before this process.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        side: ServerSide,
        strategy: Strategy,
        scores: Scores,
        outcome: Outcome,
        config: Config,
    ) -> None:
        self.checkpoints, self.side, self.strategy = checkpoints, side, strategy
        self.scores, self.outcome, self.config = scores, outcome, config
        self.scene = Scene(side.task, side.device)
        self.done: int = checkpoints.about["round"]
        self.spent: Mapping[str, float] = checkpoints.about.get("spent", {})
        self.known: Tree = checkpoints.read(REPLIES) if checkpoints.has(REPLIES) else None
        self.replies: dict[int, Message] = {}
        self.view: Participation | None = None
        self.grid: Grid | None = None
        if isinstance(strategy, FedCmi):
            strategy.checkpoints = checkpoints

    def attach(self, view: Participation, grid: Grid) -> Strategy:
        """Put everything back to where it was; the strategy as it is to be started.

        Raises:
            ConfigError: On a backend that does not take what clients keep.
        """
        self.view, self.grid, checkpoints = view, grid, self.checkpoints
        if self.clients_keep and not self.reaches_clients:
            if self.done or self.known is not None:
                allowed = "local or ray, because its engine does not take what clients keep between rounds"
                raise ConfigError("backend", self.config["backend"]["_target_"].rpartition(".")[2], allowed)
            logger.warning("no checkpoints of this run: this backend does not tell what clients keep")
            checkpoints.works = False
        if checkpoints.has(CLIENTS):
            assert isinstance(grid, LiveGrid)
            kept = {client: records_of(tree) for client, tree in checkpoints.read(CLIENTS).items()}
            grid.restore_client_states(kept)
        if not self.done:
            return FromRound(self.strategy, 0, ArrayRecord(), self.begin_round, self.initial)
        about, state = checkpoints.about, checkpoints.read(SERVER)
        restore_strategy(self.strategy, state["strategy"], self.scene)
        self.scores.private = state["scores"]
        view.load_state_dict(about["participation"])
        for name, value in about["outcome"].items():
            setattr(self.outcome, name, value)
        return FromRound(self.strategy, self.done, to_record(state["arrays"]), self.begin_round, self.initial)

    @property
    def initial(self) -> State:
        """The global model before the first round."""
        return self.side.student().state_dict()

    @property
    def clients_keep(self) -> bool:
        """Whether clients may keep something from round to round."""
        sharing = self.side.sharing
        local = self.config["local"]
        own = local.get("start") == "own" or local.get("decay_by") == "last_visit"
        return own or not sharing.method.trains_plainly or bool(sharing.kept(self.side.student()))

    @property
    def reaches_clients(self) -> bool:
        """Whether the grid tells and takes what clients keep."""
        return isinstance(self.grid, LiveGrid) and self.grid.client_states() is not None

    def begin_round(self) -> None:
        """The first round that is not over begins: anew, unless its clients have answered already."""
        if self.known is None:
            self.checkpoints.go_on()

    def remembering(self, remember: Remember | None) -> Remember:
        """Replies of the round that was under way as they came then; others by `remember`, or from the clients."""

        def replies(
            messages: Mapping[int, Message], ask: Callable[[list[Message]], list[Message]]
        ) -> list[Message]:
            if not all(m.metadata.message_type.startswith(MessageType.TRAIN) for m in messages.values()):
                return ask(list(messages.values()))
            if self.known is not None:
                return [recalled(self.known[k], m) for k, m in messages.items() if k in self.known]
            found = ask(list(messages.values())) if remember is None else remember(messages, ask)
            self.checkpoints.note(remembered=getattr(remember, "status", None))
            clients = {message.metadata.dst_node_id: client for client, message in messages.items()}
            self.replies = {clients[reply.metadata.src_node_id]: reply for reply in found}
            return found

        return replies

    def clients_done(self, server_round: int, begun: dict[str, float]) -> None:
        """The round's clients have answered, and the server begins.

        Args:
            server_round: Which.
            begun: When the server began, by each clock; set back by what it spent on this round before.
        """
        view = self.view
        assert view is not None
        if self.known is not None:
            self.known = None
            # Replies tell who failed in the end, but not who was asked again on the way.
            view.failures += [Failure(**failure) for failure in self.checkpoints.about["retried"]]
            for name, seconds in self.spent.items():
                begun[name] -= seconds
            if not self.checkpoints.has(TRANSFER):
                self.checkpoints.go_on()
        elif self.checkpoints.every is not None and self.checkpoints.about["round"] == server_round - 1:
            replies = self.replies
            trees: dict[str, Callable[[], Tree]] = {
                REPLIES: lambda: {client: reply_tree(reply) for client, reply in replies.items()}
            }
            again = [f for f in view.failures if f.retried and f.round == server_round]
            self.checkpoints.inside = self.checkpoints.commit(
                trees | self.of_clients(), (TRANSFER,), spent={}, retried=[asdict(f) for f in again]
            )
        clocks = self.side.clocks
        self.checkpoints.clocks = lambda: {"spent": {name: clocks[name]() - at for name, at in begun.items()}}
        self.replies = {}

    def round_done(self, server_round: int, arrays: ArrayRecord) -> None:
        """A round that is not the last is over."""
        checkpoints, outcome, view = self.checkpoints, self.outcome, self.view
        assert view is not None
        checkpoints.inside, checkpoints.clocks = False, dict
        if checkpoints.every is None and (checkpoints.rounds is None or server_round % checkpoints.rounds):
            return
        about: dict[str, Any] = {
            "accuracies": list(outcome.accuracies),
            "own_tests": list(outcome.own_tests),
            "server_seconds": dict(outcome.server_seconds),
        }
        trees: dict[str, Callable[[], Tree]] = {
            SERVER: lambda: {
                "strategy": strategy_state(self.strategy, self.scene),
                "arrays": from_record(arrays),
                "scores": self.scores.private,
            }
        }
        checkpoints.commit(
            trees | self.of_clients(),
            (REPLIES, TRANSFER),
            round=server_round,
            outcome=about,
            participation=view.state_dict(),
            spent={},
        )

    def of_clients(self) -> dict[str, Callable[[], Tree]]:
        """What clients keep, where they keep something."""
        if not self.clients_keep or not isinstance(self.grid, LiveGrid):
            return {}
        states = self.grid.client_states()
        return {CLIENTS: lambda: {k: tree_of(state) for k, state in states.items()}} if states else {}


class FromRound(Strategy):
    """A strategy of which the first rounds are over: they are passed over, and the next one begins where they ended.

    What it aggregates gets the model's types back: on NumPy 2, Flower's FedAdam makes float64 of float32.

    Args:
        strategy: Does the others.
        done: How many are over.
        arrays: The global model after them.
        begin: Called when the first of the others begins.
        like: A state of the global model, for its types.
    """

    def __init__(
        self, strategy: Strategy, done: int, arrays: ArrayRecord, begin: Callable[[], None], like: State
    ) -> None:
        self.strategy, self.done, self.arrays, self.begin, self.like = strategy, done, arrays, begin, like

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing, or the strategy's."""
        if server_round <= self.done:
            return []
        if server_round == self.done + 1:
            self.begin()
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The global model after the rounds that are over, or the strategy's."""
        if server_round <= self.done:
            return (self.arrays if server_round == self.done else None), None
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        return (None if arrays is None else in_types_of(arrays, self.like)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing, or the strategy's."""
        if server_round <= self.done:
            return []
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing, or the strategy's."""
        if server_round <= self.done:
            return None
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """The strategy's own."""
        self.strategy.summary()
