"""Clients that fail: what became of them, how that travels in a message, and the end of a run because of them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from flwr.app import Error, Message

__all__ = [
    "BackendFailure",
    "ClientFailure",
    "Failure",
    "Kind",
    "cause_of_death",
    "failed",
    "kind_of_error",
    "kind_of_exception",
]

Kind = Literal["raised", "memory", "died", "late", "refused"]
"""An exception; too little memory; the end of a process or a machine; no reply in time; an update that does not fit."""

CODES: dict[Kind, int] = {"raised": 2, "died": 8, "late": 101, "memory": 102, "refused": 103}
"""Flower's own error codes (`flwr.common.constant.ErrorCode`) where it has one."""

FLOWERS: dict[int, Kind] = {0: "died", 3: "late", 4: "late", 5: "late"}
"""What else Flower's own engine and servers say: unknown (a process that died), and messages or nodes not there."""

NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""How torch says it where it has no exception for it."""


@dataclass(frozen=True)
class Failure:
    """A client that did not answer well.

    Args:
        round: From 1.
        client: Partition id.
        kind: What became of it.
        message: One line.
        retried: Whether the client was asked again: then this is no loss, unless another failure follows.
    """

    round: int
    client: int
    kind: Kind
    message: str
    retried: bool = False


class ClientFailure(RuntimeError):  # noqa: N818 - a failure is what the policy is about
    """The end of a run because of clients that failed.

    Args:
        failures: At least one, all of the same round.
    """

    def __init__(self, failures: list[Failure]) -> None:
        first = failures[0]
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        super().__init__(f"client {first.client} failed in round {first.round}{others}: {first.message}")
        self.failures = failures

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the trip between processes."""
        return type(self), (self.failures,)


class BackendFailure(RuntimeError):  # noqa: N818 - like the other one
    """The end of a run because there are no processes for its clients; the message is one line."""


def failed(message: Message, reason: str, kind: Kind) -> Message:
    """The reply to a message that a client did not answer well."""
    return Message(Error(CODES[kind], " ".join(reason.split())), reply_to=message)


def kind_of_error(error: Error) -> Kind:
    """What an error reply, ours or Flower's, is about."""
    ours: dict[int, Kind] = {code: kind for kind, code in CODES.items()}
    return {**FLOWERS, **ours}.get(error.code, "raised")


def kind_of_exception(error: BaseException) -> Kind:
    """What an exception of a client is about."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return "memory" if told else "raised"


def cause_of_death(said: str) -> tuple[Kind, str]:
    """Why a process of Ray's died, from all that Ray says of it, and that in one line."""
    if "OutOfMemory" in said or "OUT_OF_MEMORY" in said or "memory pressure" in said:
        return (
            "memory",
            "its process was killed because its machine ran out of memory; run fewer clients at once",
        )
    if "NodeDied" in said or "node is dead" in said or "node has died" in said:
        return "died", "its machine was lost"
    return "died", "its process died: a crash in native code, or killed from outside"
