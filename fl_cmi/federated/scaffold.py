"""SCAFFOLD: control variates against the drift of clients."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fl_cmi.federated.method import ClientMethod, Visit, checked_sgd, from_broadcast, trainable
from fl_cmi.federated.travel import Travel
from fl_cmi.session import Contribution, Session
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, Images, State, Task

__all__ = ["CONTROL", "ControlVariates"]

CONTROL = "control"
"""The record of a control variate: down the server's c, up the change of the client's c_i."""


class ControlVariates(ClientMethod):
    """Every local gradient is corrected by the server's direction minus the client's own.

        y <- y - rate (g_i(y) - c_i + c)                      each local step, from y = x
        c_i+ = g_i(x)                                         option 1: the gradient of all images at x
        c_i+ = c_i - c + (x - y) / (K rate)                   option 2
        send y and c_i+ - c_i, keep c_i+

    Option 2 takes `sum_j a_j` of `Travel` for `K rate`, which is the same for plain SGD and stays the weighted mean of
    the corrected gradients under momentum and rate schedules. Weight decay counts as part of the gradient in option
    2, not in option 1. Option 1 needs one more pass over the images, batch norm on the statistics it started from.

    References:
        Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1.

    Args:
        option: 1 or 2, the paper's names for the two updates of c_i.
        batch_size: Images a pass of option 1.
    """

    def __init__(self, option: Literal[1, 2] = 2, batch_size: int = 256) -> None:
        if option not in (1, 2):
            raise ConfigError("strategy.client.option", option, "1 or 2")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError("strategy.client.batch_size", batch_size, "an integer >= 1")
        self.option, self.batch_size = option, batch_size

    def check(self, local: LocalTraining) -> None:
        """From the broadcast, by SGD."""
        from_broadcast(local, "control variates belong to the server's model")
        checked_sgd(local, "control variates correct its gradients")
        if self.option == 1 and local.prior_correction:
            allowed = "false, because strategy.client.option=1 takes the gradient of the plain cross-entropy"
            raise ConfigError("local.prior_correction", True, allowed)

    def begin(self, visit: Visit) -> "ControlledSession":
        """Look up c and c_i, zeros where there are none yet."""
        if self.option == 2:
            return ControlledSession(visit, None)
        gradient = full_gradient(visit.model, visit.images, visit.device, self.batch_size)
        return ControlledSession(visit, gradient)

    def disclosed(self, model: nn.Module, task: Task) -> list[str]:
        """One number for each parameter."""
        numbers = sum(p.numel() for p in trainable(model).values())
        return [f"change of its control variate ({numbers:,} numbers)"]


class ControlledSession(Session):
    """One round of a client.

    Args:
        visit: The client.
        gradient: `g_i(x)` for option 1; None for option 2.
    """

    def __init__(self, visit: Visit, gradient: Mapping[str, Tensor] | None) -> None:
        self.parameters = trainable(visit.model)
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.gradient = gradient
        self.server = self._variate(visit.received, visit.device)
        self.own = self._variate(visit.kept, visit.device)

    def prepare(self, optimizer: Optimizer, proximal_mu: float) -> None:
        """Measure how far the optimizer goes."""
        self.travel = Travel(optimizer, proximal_mu)

    def correct(self) -> None:
        """`g <- g - c_i + c`."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                parameter.grad += self.server[name] - self.own[name]
        self.travel.step()

    def finish(self) -> Contribution:
        """`c_i+`, and its difference to c_i for the server."""
        new = {name: self._next(name) for name in self.parameters}
        change = {name: new[name] - self.own[name] for name in new}
        return Contribution(sent={CONTROL: _on_cpu(change)}, kept={CONTROL: _on_cpu(new)})

    def _next(self, name: str) -> Tensor:
        if self.gradient is not None:
            return self.gradient[name]
        moved = self.start[name] - self.parameters[name].detach()
        return self.own[name] - self.server[name] + moved / self.travel.distance

    def _variate(self, records: Mapping[str, State], device: torch.device) -> dict[str, Tensor]:
        found = records.get(CONTROL)
        if found is None:
            return {name: torch.zeros_like(value) for name, value in self.start.items()}
        return {name: found[name].to(device) for name in self.start}


def full_gradient(
    model: nn.Module, images: Images, device: torch.device, batch_size: int
) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy of all images, batch norm in eval mode; the model is left as it was."""
    parameters, was_training = trainable(model), model.training
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for rows in torch.arange(len(images)).split(batch_size):
        logits = model(images.pixels(rows).to(device))
        loss = F.cross_entropy(logits, images.y[rows].to(device), reduction="sum") / len(images)
        for name, gradient in zip(total, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += gradient
    model.train(was_training)
    return total


def _on_cpu(state: Mapping[str, Tensor]) -> State:
    return {name: value.detach().cpu() for name, value in state.items()}
