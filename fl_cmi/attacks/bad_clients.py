"""Which clients are bad, and what they do."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fl_cmi.attacks.attack import Attack
from fl_cmi.rng import stream
from fl_cmi.types import ConfigError

__all__ = ["BadClients"]


@dataclass(frozen=True)
class BadClients:
    """Clients that attack, named or drawn.

    Args:
        attack: What each of them does.
        clients: Their partition ids; None: `number` of them, drawn from the seed's own stream. Those drawn for a small
            number are among those drawn for a larger one.
        number: How many, where they are drawn.
    """

    attack: Attack
    clients: Sequence[int] | None = None
    number: int = 1

    def chosen(self, num_clients: int, seed: int) -> tuple[int, ...]:
        """Partition ids of the bad clients, ascending.

        Raises:
            ConfigError: Clients that there are not, or more than there are.
        """
        every = f"0 to {num_clients - 1}"
        if self.clients is None:
            if not 0 <= self.number <= num_clients:
                raise ConfigError("attacks.number", self.number, f"an integer from 0 to {num_clients}")
            order = torch.randperm(num_clients, generator=stream(seed, "attacks", "clients"))
            return tuple(sorted(order[: self.number].tolist()))
        if not isinstance(self.clients, list | tuple):
            raise ConfigError("attacks.clients", self.clients, f"a list of clients, {every}, or null")
        for client in self.clients:
            if isinstance(client, bool) or not isinstance(client, int) or not 0 <= client < num_clients:
                raise ConfigError("attacks.clients", self.clients, f"a list of clients, {every}")
        if len(set(self.clients)) < len(self.clients):
            raise ConfigError("attacks.clients", self.clients, "each client once")
        return tuple(sorted(self.clients))
