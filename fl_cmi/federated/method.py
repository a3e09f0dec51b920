"""The client's half of a federated method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_cmi.session import Session
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, Images, State, Task

__all__ = ["ClientMethod", "Setting", "Visit", "checked_sgd", "from_broadcast", "trainable"]

Setting = str | bytes | bool | int | float | list[str] | list[bytes] | list[bool] | list[int] | list[float]
"""One value of a round's settings."""


@dataclass(frozen=True)
class Visit:
    """What a client has when a round begins for it.

    Args:
        model: At the weights it starts from, on `device`.
        images: Its training set.
        received: Records that came beside the model, by name.
        settings: The round's settings.
        kept: Records it kept of its last visit; empty at the first one.
        server_round: From 1.
        rng: The method's own draws.
        device: Where to train.
    """

    model: nn.Module
    images: Images
    received: Mapping[str, State]
    settings: Mapping[str, Setting]
    kept: Mapping[str, State]
    server_round: int
    rng: torch.Generator
    device: torch.device


class ClientMethod:
    """Plain training; the base of the client's half of every other method."""

    @property
    def trains_plainly(self) -> bool:
        """Whether a client's answer in round 1 depends on the model it gets, its images and its seed alone."""
        return type(self) is ClientMethod

    def check(self, local: LocalTraining) -> None:
        """Raise ConfigError where this local training does not go with the method."""

    def private(self, model: nn.Module) -> frozenset[str]:
        """Names of the model's tensors that never leave a client, which keeps its own from round to round."""
        return frozenset()

    def begin(self, visit: Visit) -> Session:
        """A round's session."""
        return Session()

    def check_images(self, sizes: Sequence[int]) -> None:
        """Raise ConfigError where clients of these numbers of images cannot do what the method asks."""

    def records(self, model: nn.Module, task: Task) -> Mapping[str, State]:
        """Examples of the records that each client sends beside `model`, by name, where their tensors are known.

        What arrives has to have these names, types and shapes.
        """
        return {}

    def attach(self, model: nn.Module, extra: Mapping[str, State]) -> None:
        """Give a client's model, rebuilt by the server, what of its records belongs to the model."""

    def disclosed(self, model: nn.Module, task: Task) -> list[str]:
        """What leaves a client beside its model, one phrase each."""
        return []


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def from_broadcast(local: LocalTraining, why: str) -> None:
    """Raise ConfigError where training starts from anything but the server's model."""
    if local.start != "broadcast":
        raise ConfigError("local.start", local.start, f"broadcast, because {why}")


def checked_sgd(local: LocalTraining, why: str) -> None:
    """Raise ConfigError where the optimizer's steps are no weighted sum of gradients."""
    optimizer = local.optimizer([torch.zeros(1, requires_grad=True)])
    if not isinstance(optimizer, torch.optim.SGD):
        raise ConfigError("local.optimizer", type(optimizer).__name__, f"torch.optim.SGD, because {why}")
    if local.clip is not None:
        raise ConfigError("local.clip", local.clip, f"null, because {why}")
