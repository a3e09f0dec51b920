"""SCAFFOLD and FedNova: averaging that corrects what unequal clients do to it."""

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.federated.buffers import weighted_mean
from fl_cmi.federated.fednova import NORMALIZER, CountedSteps
from fl_cmi.federated.method import trainable
from fl_cmi.federated.scaffold import CONTROL, ControlVariates
from fl_cmi.federated.steps import control_step, nova_step, shares, step_towards
from fl_cmi.flower.records import from_record, unpack_updates
from fl_cmi.flower.sending import complete, parameters_and_rest, with_records
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError, State

__all__ = ["FedNova", "Scaffold"]


class Scaffold(FedAvg):
    """SCAFFOLD: the server keeps the mean direction of all clients, and every client corrects its own by it.

        x <- x + server_rate * sum_{k in S} p_k (y_k - x),    c <- c + 1/N sum_{k in S} (c_k+ - c_k)

    Down: the model and c; up: the model and the change of c_k, so twice FedAvg's bytes (the first round sends no c,
    which is 0). Buffers are averaged by examples.

    References:
        Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1.

    Args:
        client: The client's half.
        side: What the server knows of the run.
        num_clients: N, all clients of the run.
        server_rate: The server's learning rate, > 0.
        weighted: `p_k = n_k / sum n` instead of the paper's 1/|S|.
    """

    def __init__(
        self,
        client: ControlVariates,
        side: ServerSide,
        num_clients: int,
        server_rate: float = 1.0,
        weighted: bool = False,
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        if not server_rate > 0:
            raise ConfigError("strategy.server_rate", server_rate, "a number > 0")
        self.client, self.side, self.num_clients = client, side, num_clients
        self.server_rate, self.weighted = server_rate, weighted
        self.control: State | None = None
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send c along."""
        self.sent = arrays
        messages = super().configure_train(server_round, arrays, config, grid)
        return messages if self.control is None else with_records(messages, {CONTROL: self.control})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Both steps."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        updates = unpack_updates(valid)
        examples = [update.num_examples for update in updates]
        start, rest = parameters_and_rest(from_record(self.sent), self.side.student())
        ends = [update.state for update in updates]
        new = step_towards(start, ends, shares(examples, self.weighted), self.server_rate)
        new |= weighted_mean([{name: end[name] for name in rest} for end in ends], examples)
        if self.control is None:
            zeros = trainable(self.side.student())
            self.control = {name: torch.zeros_like(p).detach() for name, p in zeros.items()}
        changes = [update.extra[CONTROL] for update in updates]
        self.control = control_step(self.control, changes, self.num_clients)
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        return complete(new, self.sent), metrics

    def state_dict(self, scene: Scene) -> Tree:
        """C."""
        return self.control

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.control = state


class FedNova(FedAvg):
    """FedNova: clients may train for unequal numbers of steps without pulling the model to those that train longest.

        x <- x - tau sum_k p_k (x - y_k) / A_k,    tau = sum_k p_k A_k,    p_k = n_k / sum n

    A_k, `rate ||a_k||_1`, is what a client would have gone with a gradient of 1 (`fl_cmi.federated.travel`); it is the
    one number sent beside the model. With equal A_k this is FedAvg. The momentum of the paper's server is a velocity
    `v <- server_momentum v + (x - x_new)`, `x <- x - v`. Buffers are averaged by examples.

    References:
        Wang et al. 2020, arXiv 2007.07481, equation 6 and section 5.

    Args:
        client: The client's half.
        side: What the server knows of the run.
        proximal_mu: FedProx's mu in local training, >= 0.
        server_momentum: In [0, 1).
    """

    def __init__(
        self,
        client: CountedSteps,
        side: ServerSide,
        proximal_mu: float = 0.0,
        server_momentum: float = 0.0,
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        if not proximal_mu >= 0:
            raise ConfigError("strategy.proximal_mu", proximal_mu, "a number >= 0")
        if not 0 <= server_momentum < 1:
            raise ConfigError("strategy.server_momentum", server_momentum, "a number in [0, 1)")
        self.client, self.side = client, side
        self.proximal_mu, self.server_momentum = proximal_mu, server_momentum
        self.velocity: State | None = None
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send mu along."""
        self.sent = arrays
        config["proximal-mu"] = float(self.proximal_mu)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The normalized step."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        updates = unpack_updates(valid)
        examples = [update.num_examples for update in updates]
        start, rest = parameters_and_rest(from_record(self.sent), self.side.student())
        ends = [update.state for update in updates]
        distances = [float(update.extra[NORMALIZER][NORMALIZER]) for update in updates]
        new, tau = nova_step(start, ends, shares(examples), distances)
        self.side.log.write("fednova", round=server_round, tau=tau, distances=distances)
        new = self._with_momentum(start, new)
        new |= weighted_mean([{name: end[name] for name in rest} for end in ends], examples)
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        return complete(new, self.sent), metrics

    def _with_momentum(self, start: State, new: State) -> State:
        if not self.server_momentum:
            return new
        step = {name: start[name] - new[name] for name in start}
        if self.velocity is not None:
            step = {name: self.server_momentum * self.velocity[name] + step[name] for name in step}
        self.velocity = step
        return {name: start[name] - step[name] for name in step}

    def state_dict(self, scene: Scene) -> Tree:
        """V."""
        return self.velocity

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.velocity = state
