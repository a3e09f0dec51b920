"""What becomes of batch norm's running statistics where parameters are averaged."""

from collections.abc import Sequence

import torch
from torch import nn

from fl_cmi.batchnorm import recalibrate
from fl_cmi.checkpoint.state import Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Combine, Ensemble, mean_logits
from fl_cmi.synthesis.synthesizers import Synthesizer
from fl_cmi.types import ConfigError, State, Task

__all__ = [
    "Average",
    "BufferPolicy",
    "Drop",
    "KeepLocal",
    "Recalibrate",
    "buffer_names",
    "weighted_mean",
]


class BufferPolicy:
    """What happens to the buffers of a model, apart from its parameters; the base leaves them to the strategy.

    Flower's FedAvg and FedProx average them with the parameters, by examples. Its FedAvgM and FedAdam take them for
    parameters: a server step with momentum, or one of a normalized size, leads to statistics that no client had, and
    may leave a negative variance behind. That is so under `buffers: null`.

    Attributes:
        teacher_passes: Forward passes of single clients' models so far.
    """

    teacher_passes = 0

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError where clients like these lack what the policy needs."""

    def private(self, model: nn.Module) -> frozenset[str]:
        """Names of the buffers that never leave a client."""
        return frozenset()

    def kept(self, model: nn.Module) -> frozenset[str]:
        """Those of the private ones that a client keeps from round to round; others start anew."""
        return frozenset()

    def merge(
        self, ensemble: Ensemble, model: nn.Module, states: Sequence[State], task: Task, rng: torch.Generator
    ) -> State:
        """The buffers of the new global model.

        Args:
            ensemble: The round's clients, rebuilt.
            model: The new global model, in which the buffers are the previous ones.
            states: What each client of the ensemble sent, in its order.
            task: What the models fit.
            rng: For what has to be drawn.
        """
        return {name: model.state_dict()[name] for name in buffer_names(model)}

    def state_dict(self, scene: Scene) -> Tree:
        """What the policy remembers from round to round: nothing, unless it says so."""
        return None

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        assert state is None, "a memory without an owner"


class Average(BufferPolicy):
    """The mean by examples, `sum_k n_k b_k / sum_k n_k`, however the strategy moves the parameters.

    Integers, batch norm's counters, are rounded.
    """

    def merge(
        self, ensemble: Ensemble, model: nn.Module, states: Sequence[State], task: Task, rng: torch.Generator
    ) -> State:
        """Average."""
        names = buffer_names(model)
        examples = [teacher.num_examples for teacher in ensemble.teachers]
        return weighted_mean([{name: state[name] for name in names} for state in states], examples)


class KeepLocal(BufferPolicy):
    """Every client has its own for ever; the server never sees any.

    The global model by itself keeps the initial statistics (mean 0, variance 1) and is of no use: it is scored in the
    hands of the clients. It is what FedGen's code does.

    References:
        Li et al. 2021 (FedBN), arXiv 2102.07623, keeps the layers' weights local as well.
    """

    def private(self, model: nn.Module) -> frozenset[str]:
        """All buffers."""
        return buffer_names(model)

    def kept(self, model: nn.Module) -> frozenset[str]:
        """All buffers."""
        return buffer_names(model)


class Drop(BufferPolicy):
    """Nobody sends them and nobody keeps them: clients start each round from the initial ones, as the server has them.

    The global model is scored with these, so that this option shows what parameters alone (`model.parameters()`) are
    worth, which is next to nothing for a network with batch norm.
    """

    def private(self, model: nn.Module) -> frozenset[str]:
        """All buffers."""
        return buffer_names(model)


class Recalibrate(BufferPolicy):
    """The server measures them anew: the averaged parameters' statistics on images that it makes itself.

        mean_l, var_l = mean over batches of each layer's batch statistics, on synthesizer(clients)

    Goes with every strategy that averages, Flower's and ours. Clients send their buffers, which the synthesizer's
    batch-norm term needs (with `synthesizer=noise` nothing is inverted and they go unused). The synthesizer is that of
    `fed_cmi`: every method that inverts the clients' models will do, and a few batches are enough.

    Args:
        synthesizer: Makes the images; it starts anew with each run and goes on from round to round.
        combine: Rule of the client ensemble that is inverted.
        batches: Batches of images, >= 1.
    """

    def __init__(self, synthesizer: Synthesizer, combine: Combine = mean_logits, batches: int = 4) -> None:
        if not isinstance(batches, int) or batches < 1:
            raise ConfigError("buffers.batches", batches, "an integer >= 1")
        self.synthesizer, self.combine, self.batches = synthesizer, combine, batches

    def check(self, ensemble: Ensemble) -> None:
        """As the synthesizer."""
        self.synthesizer.check(ensemble)

    def merge(
        self, ensemble: Ensemble, model: nn.Module, states: Sequence[State], task: Task, rng: torch.Generator
    ) -> State:
        """Synthesize and measure."""
        team = Ensemble(ensemble.teachers, self.combine).to(next(model.parameters()).device)
        made = [self.synthesizer(team, model, task, rng).x for _ in range(self.batches)]
        self.teacher_passes += team.passes
        recalibrate(model, made)
        return {name: model.state_dict()[name] for name in buffer_names(model)}

    def state_dict(self, scene: Scene) -> Tree:
        """The synthesizer's, the rule's, and what they have asked so far."""
        return [state_of(self.synthesizer, scene), state_of(self.combine, scene), self.teacher_passes]

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        restore(self.synthesizer, state[0], scene)
        restore(self.combine, state[1], scene)
        self.teacher_passes = state[2]


def buffer_names(model: nn.Module) -> frozenset[str]:
    """Names of what is in a model's state without being a parameter."""
    return frozenset(model.state_dict().keys() - dict(model.named_parameters()).keys())


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> State:
    """`sum_k w_k s_k / sum_k w_k`, summed in double precision in the order given; integers are rounded.

    Args:
        states: The same names and shapes in each.
        weights: >= 0, not all 0.
    """
    total = float(sum(weights))
    assert total > 0, "somebody has to count"
    result = {}
    for name, first in states[0].items():
        mean = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            mean += state[name].double() * (weight / total)
        result[name] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    return result
