"""Checkpoints and messages from elsewhere: one typed error for whatever is wrong, no code run, no memory wasted."""

import io
import json
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tiny import network
from torch import Tensor

from fl_cmi.flower.arrays import MessageError, values_of
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.records import from_record, pack_update, partition_id, to_record, unpack_updates
from fl_cmi.models.checkpoint import load_weights
from fl_cmi.types import ConfigError, Update

quick = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

MODEL = network()
STATE = {name: value.clone() for name, value in MODEL.state_dict().items()}
GOOD = save(STATE)
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]

edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)
"""Places, as shares of the length, and what their bytes are changed by."""


def load(data: bytes) -> dict[str, Tensor]:
    """The weights that a file of these bytes leaves in a model."""
    model = network(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(data)
        try:
            load_weights(model, str(path), "teacher.checkpoint")
        except ConfigError as error:
            assert error.key == "teacher.checkpoint"
            assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
            raise
    return dict(model.state_dict())


def flipped(data: bytes, places: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for where, by in places:
        changed[int(where * len(data))] ^= by
    return bytes(changed)


def refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        load(data)


def test_a_good_checkpoint_is_loaded() -> None:
    assert all(torch.equal(STATE[name], value) for name, value in load(GOOD).items())


@quick
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused(share: float) -> None:
    refused(GOOD[: int(share * len(GOOD))])


@quick
@given(st.binary(max_size=300))
def test_garbage_is_no_checkpoint(data: bytes) -> None:
    refused(data)


@quick
@given(edits)
def test_flipped_bytes_are_refused_or_other_weights(places: list[tuple[float, int]]) -> None:
    """Of the same shapes and finite; that values are the right ones is what digests are for."""
    try:
        found = load(flipped(GOOD, places))
    except ConfigError:
        return
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in STATE.items()}
    assert all(value.isfinite().all() for value in found.values())


@quick
@given(st.sampled_from(sorted(STATE)), st.sampled_from(DTYPES))
def test_other_types_are_refused(name: str, dtype: torch.dtype) -> None:
    if STATE[name].dtype != dtype:
        refused(save({**STATE, name: STATE[name].to(dtype)}))


@quick
@given(
    st.sampled_from(sorted(n for n in STATE if STATE[n].is_floating_point())),
    st.sampled_from(["nan", "inf", "-inf"]),
)
def test_numbers_that_are_not_finite_are_refused(name: str, number: str) -> None:
    bad = STATE[name].clone()
    bad.view(-1)[0] = float(number)
    refused(save({**STATE, name: bad}))


@quick
@given(st.sampled_from(sorted(STATE)), st.text(max_size=20))
def test_missing_and_additional_tensors_are_refused(name: str, other: str) -> None:
    refused(save({key: value for key, value in STATE.items() if key != name}))
    if other not in STATE and other != "__metadata__":
        refused(save({**STATE, other: torch.zeros(3)}))


@quick
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**62), max_size=4))
def test_sizes_that_are_only_declared_are_refused(length: int, shape: list[int]) -> None:
    header = {"classifier.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, length]}}
    body = json.dumps(header).encode()
    refused(struct.pack("<Q", len(body)) + body + bytes(16))
    refused(struct.pack("<Q", length) + body + bytes(16))


class Runs:
    """Unpickled, it leaves a mark."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Runs, "ran", True)


def test_nothing_is_ever_unpickled() -> None:
    buffer = io.BytesIO()
    torch.save(Runs(), buffer)
    for data in (pickle.dumps(Runs()), buffer.getvalue()):
        refused(data)
    objects = io.BytesIO()
    np.save(objects, np.array([Runs()], dtype=object), allow_pickle=True)
    for dtype in ("object", "float32"):
        for data in (objects.getvalue(), pickle.dumps(Runs())):
            with pytest.raises(MessageError):
                values_of(Array(dtype, (1,), "numpy.ndarray", data))
    assert not Runs.ran
    pickle.loads(pickle.dumps(Runs()))
    assert Runs.ran, "it would have"


# Messages


@quick
@given(
    st.sampled_from(["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.booleans(),
)
def test_every_honest_array_is_read_as_it_was(dtype: str, shape: list[int], columns_first: bool) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    values = np.asfortranarray(values) if columns_first else values
    found = values_of(Array(values))
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)
    assert found.strides == Array(values).numpy().strides
    if found.size:
        found.flags.writeable = True
        found.flat[0] = 0  # memory of its own
        assert np.array_equal(values_of(Array(values)), values)


WEIGHTS = np.random.default_rng(1).normal(size=(3, 5)).astype("float32")


@quick
@given(edits)
def test_flipped_bytes_are_an_error_or_an_array_of_the_size(places: list[tuple[float, int]]) -> None:
    good = Array(WEIGHTS)
    # Most of the bytes are the header's.
    try:
        found = values_of(Array(good.dtype, good.shape, good.stype, flipped(good.data, places)))
    except MessageError:
        return
    assert found.shape == (3, 5)
    assert found.dtype == np.float32


@quick
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=200))
def test_truncated_long_and_made_up_arrays_are_refused(share: float, more: bytes) -> None:
    good = Array(WEIGHTS)
    for data in (good.data[: int(share * len(good.data))], good.data + more, more):
        with pytest.raises(MessageError):
            values_of(Array(good.dtype, good.shape, good.stype, data))


@quick
@given(
    st.lists(st.integers(-(2**63), 2**63), min_size=1, max_size=4),
    st.sampled_from(["<f4", "<i8", "|O", ">f4", "<U9", "V4"]),
)
def test_huge_and_odd_headers_are_refused_before_anything_is_allocated(shape: list[int], descr: str) -> None:
    header = repr({"descr": descr, "fortran_order": False, "shape": tuple(shape)}).encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    # The product of sizes, some of them negative, may well be 8 bytes.
    if descr == "<f4" and shape in ([2], [1, 2], [2, 1]) or (descr == "<i8" and set(shape) == {1}):
        return
    with pytest.raises(MessageError):
        values_of(Array(str(np.dtype(descr)), tuple(shape), "numpy.ndarray", data))


def test_other_serializations_are_refused() -> None:
    good = Array(WEIGHTS)
    for dtype, shape, stype in (
        (good.dtype, good.shape, "pickle"),
        ("float64", good.shape, good.stype),
        (good.dtype, (5, 3), good.stype),
    ):
        with pytest.raises(MessageError):
            values_of(Array(dtype, shape, stype, good.data))


@quick
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([(2,), (2, 3), (0,), (3, 2)])))
def test_a_model_of_other_names_or_shapes_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    like = {"a": torch.zeros(2), "b": torch.zeros(2, 3)}
    record = to_record({name: torch.ones(shape) for name, shape in shapes.items()})
    if shapes == {"a": (2,), "b": (2, 3)}:
        assert from_record(record, like).keys() == like.keys()
    else:
        with pytest.raises(MessageError, match="another model"):
            from_record(record, like)


def reply_with(content: RecordDict) -> Message:
    LocalGrid(ClientApp(), 1)  # tells Flower who sends messages here
    asked = Message(RecordDict({"config": ConfigRecord()}), 1, MessageType.TRAIN)
    return Message(content, reply_to=asked)


numbers = st.one_of(
    st.integers(-(2**64), 2**64), st.floats(), st.lists(st.integers(-3, 9)), st.lists(st.floats(), min_size=1)
)


@quick
@given(
    st.dictionaries(st.sampled_from(["partition-id", "num-examples", "class-counts", "loss"]), numbers),
    st.booleans(),
    st.booleans(),
)
def test_an_update_is_read_or_refused(metrics: dict[str, Any], model: bool, told: bool) -> None:
    content = RecordDict()
    if model:
        content["arrays"] = to_record({"w": torch.ones(2)})
    if told:
        content["metrics"] = MetricRecord(metrics)
    try:
        (update,) = unpack_updates([reply_with(content)])
    except MessageError:
        return
    assert model
    assert told
    assert update.client >= 0
    assert update.num_examples >= 0
    assert update.class_counts is None or (update.class_counts >= 0).all()


def test_an_honest_update_arrives() -> None:
    sent = Update(3, 9, torch.tensor([4, 5]), {"w": torch.ones(2)})
    content = pack_update(sent, {"loss": 0.5})
    assert partition_id(content) == 3
    (found,) = unpack_updates([reply_with(content)])
    assert (found.client, found.num_examples) == (3, 9)
    assert found.class_counts is not None
    assert found.class_counts.tolist() == [4, 5]
    assert torch.equal(found.state["w"], torch.ones(2))


def test_a_record_with_one_bad_array_is_refused_whole() -> None:
    good = Array(WEIGHTS)
    bad = Array(good.dtype, good.shape, good.stype, good.data[:-1])
    with pytest.raises(MessageError):
        from_record(ArrayRecord({"a": good, "b": bad}))
