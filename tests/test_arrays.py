"""Arrays that hold their numbers: the same as Flower's to everybody who looks, and nobody else's memory."""

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from tiny import network
from torch import Tensor

from fl_cmi.flower.arrays import MessageError, Values, num_bytes, values_of
from fl_cmi.flower.records import from_record, load_record, to_record

TENSORS = {
    "rows": torch.arange(6.0).view(2, 3),
    "columns": torch.arange(6.0).view(2, 3).t(),
    "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "every_other": torch.arange(10)[::2],
    "counter": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "half": torch.ones(3, dtype=torch.float16),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_values_are_flowers_array_to_everybody(tensor: Tensor) -> None:
    plain, values = Array(tensor.numpy()), Values.of(tensor)
    assert (values.dtype, values.shape, values.stype) == (plain.dtype, plain.shape, plain.stype)
    assert values.data == plain.data
    assert num_bytes(values) == num_bytes(plain) == len(plain.data)
    assert values.object_id == plain.object_id
    assert values.deflate() == plain.deflate()
    assert np.array_equal(values.numpy(), plain.numpy())
    assert values.numpy().strides == plain.numpy().strides
    assert np.array_equal(values_of(values), values_of(plain))


def test_values_travel_without_being_copied_into_the_pickle() -> None:
    values = Values.of(TENSORS["channels_last"])
    beside: list[pickle.PickleBuffer] = []
    within = pickle.dumps(values, protocol=5, buffer_callback=beside.append)
    assert len(within) < 500
    assert [buffer.raw().nbytes for buffer in beside] == [4 * 3 * 5 * 5 * 4]
    there = pickle.loads(within, buffers=beside)
    assert there.data == values.data


def test_what_was_packed_stays_as_it_was() -> None:
    tensor = torch.zeros(3)
    record = to_record({"w": tensor})
    tensor += 1
    got = from_record(record)["w"]
    got += 2
    record["w"].numpy()[:] = 3
    assert from_record(record)["w"].tolist() == [0, 0, 0]


def test_what_is_no_models_is_refused() -> None:
    with pytest.raises(MessageError, match="complex64"):
        values_of(Values(np.zeros(2, dtype=np.complex64)))
    lying = Values(np.zeros(2, dtype=np.float32))
    lying.shape = (3,)
    with pytest.raises(MessageError, match="says that it is one of"):
        values_of(lying)


def test_a_record_is_loaded_in_place_as_it_would_be_read() -> None:
    sent = network(1).to(memory_format=torch.channels_last).state_dict()
    record = to_record(sent)
    counter = next(name for name, value in sent.items() if not value.is_floating_point())
    record[counter] = Array(np.asarray(2.6))  # as Flower's FedAvg leaves it
    model = network(2)
    expected = from_record(record, like=model.state_dict())
    load_record(record, model.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.state_dict()[counter] == 3
    with pytest.raises(MessageError, match="names differ"):
        load_record(ArrayRecord(), model.state_dict())
