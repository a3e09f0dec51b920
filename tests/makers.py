"""Workers of the server in this process, for tests: the reference of those on Ray."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from fl_cmi.synthesis.maker import Equipment, Maker, Moment, Order, Packed, Piece


class InProcess:
    """Makers that work one after the other, each with copies of its own, as if they had come from elsewhere."""

    num_gpus = 0.5

    def __init__(self, number: int) -> None:
        self.number, self.num_replaced = number, 0
        self.makers: list[Maker] = []
        self.orders: list[Order] = []

    def hired(self) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self, equipment: Equipment, states: Mapping[int, Packed]) -> None:
        told = pickle.dumps(equipment)
        cpu = torch.device("cpu")
        self.makers = [Maker(pickle.loads(told), cpu, states.get(w)) for w in range(self.number)]

    def make(self, moment: Moment, orders: Sequence[Order]) -> Iterator[Piece]:
        told = pickle.dumps(moment)
        # All are made before the first is taken, the last worker's first: nobody may rely on the order.
        done = {
            order.number: self.makers[order.worker](pickle.loads(told), order)
            for order in sorted(orders, key=lambda order: (-order.worker, order.number))
        }
        self.orders += orders
        for order in orders:
            yield done[order.number]

    def rest(self) -> None:
        self.makers = []
