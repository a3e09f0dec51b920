"""What our strategies send and read beside Flower's FedAvg."""

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, Message
from torch import nn

from fl_cmi.flower.records import from_record, to_record
from fl_cmi.sides import ServerSide
from fl_cmi.types import State

__all__ = ["complete", "in_types_of", "parameters_and_rest", "shared_part", "with_records"]


def with_records(messages: Iterable[Message], records: Mapping[str, State]) -> list[Message]:
    """The messages, with more records."""
    packed = {name: to_record(state) for name, state in records.items()}
    messages = list(messages)
    for message in messages:  # they may share one content
        for name, record in packed.items():
            message.content[name] = record
    return messages


def shared_part(arrays: ArrayRecord, side: ServerSide) -> ArrayRecord:
    """Of the global model, what clients share with the server."""
    private = side.sharing.private(side.student())
    return ArrayRecord({name: array for name, array in arrays.items() if name not in private})


def parameters_and_rest(state: State, model: nn.Module) -> tuple[State, State]:
    """A model's state, or a part of it, cut in two: parameters, and buffers."""
    names = dict(model.named_parameters()).keys()
    return (
        {name: value for name, value in state.items() if name in names},
        {name: value for name, value in state.items() if name not in names},
    )


def in_types_of(record: ArrayRecord, like: State) -> ArrayRecord:
    """The model `record` with the types of number that it has in `like`, whose names it has."""
    same = all(
        str(like[name].dtype) == f"torch.{array.dtype}" for name, array in record.items() if name in like
    )
    return record if same else to_record(from_record(record, like))


def complete(new: State, arrays: ArrayRecord) -> ArrayRecord:
    """The global model `arrays` with the tensors in `new` in their places."""
    return to_record({**from_record(arrays), **new})
