"""Between tensors and Flower's records."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fl_cmi.flower.arrays import MessageError, Values, num_bytes, values_of, view_of
from fl_cmi.types import State, Update

__all__ = [
    "content_bytes",
    "from_record",
    "load_record",
    "pack_update",
    "partition_id",
    "received_records",
    "to_record",
    "unpack_updates",
]

Record = TypeVar("Record")

ARRAYS, METRICS = "arrays", "metrics"
"""The names under which Flower's strategies send a model, and we send it back with its metrics."""

REPORT = "for the report"
"""The name under which tensors come along that a method leaves on its clients: only the report reads them, to measure
the clients' models; no strategy does, and they are no payload."""


def to_record(state: State) -> ArrayRecord:
    """A model as Flower sends it.

    Raises:
        TypeError: For bfloat16, which numpy does not know.
    """
    record = ArrayRecord()
    for name, tensor in state.items():  # its constructor would encode all of them
        record[name] = Values.of(tensor)
    return record


def from_record(record: ArrayRecord, like: State | None = None) -> State:
    """The model in `record`; its tensors share no memory with it.

    Args:
        record: A model.
        like: A state of the model that is to load it: names and shapes have to agree, and each tensor is cast
            to the type it has there, integers rounded. (Flower's FedAvg turns integer buffers such as
            `num_batches_tracked` into float64.)

    Raises:
        MessageError: Arrays that cannot be read, or names or shapes that differ.
    """
    if like is not None:
        _check_fit(record, like)
    state = {name: torch.from_numpy(values_of(array)) for name, array in record.items()}
    return (
        state if like is None else {name: _cast(state[name], tensor.dtype) for name, tensor in like.items()}
    )


def load_record(record: ArrayRecord, state: State) -> None:
    """Write the model in `record` into the tensors of `state`, as `from_record` would cast them, and without its copy.

    Raises:
        MessageError: As `from_record` with a state.
    """
    _check_fit(record, state)
    for name, tensor in state.items():
        view = view_of(record[name])
        here = tensor.numpy()
        if view.dtype == here.dtype:
            np.copyto(here, view)
        else:
            tensor.copy_(_cast(torch.from_numpy(values_of(record[name])), tensor.dtype))


def pack_update(update: Update, metrics: Mapping[str, float]) -> RecordDict:
    """A client's answer: one record `arrays` and one record `metrics`, as Flower's FedAvg wants them.

    `metrics` holds `num-examples`, `partition-id`, `class-counts` where the client shares them, and the given
    ones. What a method sends beside the model comes in records of its own, private tensors in `REPORT`.
    """
    values: dict[str, int | float | list[int]] = {
        "num-examples": update.num_examples,
        "partition-id": update.client,
    }
    if update.class_counts is not None:
        values["class-counts"] = [int(count) for count in update.class_counts]
    assert not values.keys() & metrics.keys(), "a metric has a reserved name"
    content = RecordDict({ARRAYS: to_record(update.shared), METRICS: MetricRecord({**values, **metrics})})
    assert not update.extra.keys() & {ARRAYS, METRICS, REPORT}, "a record has a reserved name"
    for name, state in update.extra.items():
        content[name] = to_record(state)
    if update.private:
        content[REPORT] = to_record({name: update.state[name] for name in sorted(update.private)})
    return content


def received_records(content: RecordDict) -> dict[str, State]:
    """The arrays in `content` beside the model, by the names of their records."""
    extra = content.array_records.items()
    return {name: from_record(record) for name, record in extra if name not in (ARRAYS, REPORT)}


def unpack_updates(replies: Iterable[Message]) -> list[Update]:
    """The updates that `replies`, none of them an error, carry; sorted by partition id.

    Raises:
        MessageError: One that is no update.
    """
    return sorted((_unpack(reply) for reply in replies), key=lambda update: update.client)


def partition_id(content: RecordDict) -> int:
    """Which client sent `content`.

    Raises:
        MessageError: Where it does not say.
    """
    return _count(_record(content.metric_records, METRICS).get("partition-id"), "partition-id")


def content_bytes(message: Message) -> int:
    """Bytes of what `message` carries: arrays as serialized, 8 a number, 1 a character, names included.

    An error counts as nothing, and so does what only the report needs.
    """
    if not message.has_content():
        return 0
    records = [record for name, record in message.content.items() if name != REPORT]
    return sum(len(name) + _value_bytes(value) for record in records for name, value in record.items())


def _check_fit(record: ArrayRecord, like: State) -> None:
    """Raise MessageError where names or shapes differ."""
    if record.keys() != like.keys():
        odd = sorted(record.keys() ^ like.keys())
        raise MessageError(f"another model was received: {len(odd)} names differ, first {odd[0]}")
    for name, tensor in like.items():
        got, wanted = tuple(record[name].shape), tuple(tensor.shape)
        if got != wanted:
            raise MessageError(f"another model was received: {name} has shape {got}, not {wanted}")


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as `dtype`; to the nearest integer where a fraction has to go."""
    if tensor.is_floating_point() and not dtype.is_floating_point:
        tensor = tensor.round()
    return tensor.to(dtype)


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise MessageError(f"the metric {name} is {value!r}, not an integer >= 0")
    return value


def _record(records: Mapping[str, Record], name: str) -> Record:
    if name not in records:
        raise MessageError(f"the record {name} is missing")
    return records[name]


def _unpack(reply: Message) -> Update:
    metrics = _record(reply.content.metric_records, METRICS)
    counts = metrics.get("class-counts")
    if counts is not None and not isinstance(counts, list):
        raise MessageError(f"the metric class-counts is {counts!r}, not a list")
    arrays = reply.content.array_records
    private = from_record(arrays[REPORT]) if REPORT in arrays else {}
    return Update(
        client=partition_id(reply.content),
        num_examples=_count(metrics.get("num-examples"), "num-examples"),
        class_counts=None
        if counts is None
        else torch.tensor([_count(n, "class-counts") for n in counts]).long(),
        state={**from_record(_record(arrays, ARRAYS)), **private},
        extra=received_records(reply.content),
        private=frozenset(private),
    )


def _value_bytes(value: object) -> int:
    if isinstance(value, Array):
        return num_bytes(value)
    if isinstance(value, list):
        return sum(_value_bytes(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8
