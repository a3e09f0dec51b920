"""What the server looks at before it takes an update: nothing that does not fit gets to a strategy."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fl_cmi.flower.arrays import MessageError, view_of
from fl_cmi.flower.records import ARRAYS, METRICS, REPORT, to_record
from fl_cmi.sides import ServerSide
from fl_cmi.types import State

__all__ = ["Receipt"]

Expected = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor."""


class Receipt:
    """Judges an update by the architecture that its client was given.

    The tensors' names, types and shapes are known before anything arrives, and every number has to be finite. So it is
    with records beside the model of which the method gives examples; others have to be finite too, and their shapes are
    the method's to judge.

    Args:
        side: What the server knows of the run.
    """

    def __init__(self, side: ServerSide) -> None:
        self.side = side
        self._architecture = cache(self._expected)

    def __call__(self, client: int, content: RecordDict) -> str | None:
        """What is wrong with a client's update, in one line without the client's name; None for nothing."""
        shared, private, beside = self._architecture(client % self.side.num_architectures)
        arrays = content.array_records
        if ARRAYS not in arrays:
            return "it holds no model"
        wrong = self._metrics(client, content) or misfit(arrays[ARRAYS], shared)
        for name, record in arrays.items():
            if not wrong and name != ARRAYS:
                wrong = misfit(record, private if name == REPORT else beside.get(name))
        if not wrong and beside.keys() - arrays.keys():
            return f"its record {min(beside.keys() - arrays.keys())} is missing"
        if not wrong and private and REPORT not in arrays:
            return "its private tensors, which the report needs, are missing"
        return wrong

    def _expected(self, client: int) -> tuple[Expected, Expected, Mapping[str, Expected]]:
        model = self.side.build(client)
        private = self.side.sharing.private(model)
        state = model.state_dict()
        return (
            described({name: value for name, value in state.items() if name not in private}),
            described({name: value for name, value in state.items() if name in private}),
            {
                name: described(record)
                for name, record in self.side.sharing.method.records(model, self.side.task).items()
            },
        )

    def _metrics(self, client: int, content: RecordDict) -> str | None:
        """What is wrong with the numbers that come along."""
        if METRICS not in content.metric_records:
            return "its metrics are missing"
        metrics = content.metric_records[METRICS]
        counts = ["class-counts"] if self.side.share_label_counts else []
        for name in ("partition-id", "num-examples", *counts):
            if name not in metrics:
                return f"its metric {name} is missing"
        for name, value in metrics.items():
            if not np.all(np.isfinite(value)):
                return f"its metric {name} is not finite"
        if metrics["partition-id"] != client:
            return f"it says that it comes from client {metrics['partition-id']}"
        number = metrics["num-examples"]
        if not isinstance(number, int) or number < 1:
            return f"its metric num-examples is {number}, not an integer >= 1"
        if counts:
            found, classes = metrics["class-counts"], self.side.task.num_classes
            if not isinstance(found, list) or len(found) != classes or min(found) < 0 or sum(found) != number:
                return f"its metric class-counts is not {classes} numbers with the sum {number}"
        return None


def described(state: State) -> Expected:
    """Type and shape of each tensor of a model as it is sent."""
    return {name: (array.dtype, tuple(array.shape)) for name, array in to_record(state).items()}


def misfit(record: ArrayRecord, expected: Expected | None) -> str | None:
    """Why `record` is not the tensors `expected`, by name, type, shape and finite numbers; None expects any names."""
    if expected is not None and record.keys() != expected.keys():
        odd = sorted(record.keys() ^ expected.keys())
        what = "is missing" if odd[0] in expected else "is not among its tensors"
        return f"another architecture, {len(odd)} names differ: {odd[0]} {what}"
    for name, array in record.items():
        dtype, shape = (array.dtype, tuple(array.shape)) if expected is None else expected[name]
        if tuple(array.shape) != shape:
            return f"{name} has the shape {tuple(array.shape)}, not {shape}"
        if array.dtype != dtype:
            return f"{name} is {array.dtype}, not {dtype}"
        try:
            values = view_of(array)
        except MessageError as error:
            return f"{name} cannot be read: {error}"
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            return f"{name} is not finite: {(~np.isfinite(values)).sum()} of {values.size} numbers are NaN or infinite"
    return None
