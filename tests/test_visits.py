"""What a client remembers of its last visit."""

from functools import partial

import pytest
import torch
from by_hand import train_messages
from small_federation import PARTITION, SIZES, Federation, flat

from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.client import client_app
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.flower.records import unpack_updates
from fl_cmi.training import LocalTraining


def test_the_rate_falls_with_the_round_or_with_the_clients_last_visit() -> None:
    def lengths(decay_by: str) -> list[float]:
        """How far a client goes that comes in rounds 3, 5 and 6."""
        optimizer = partial(torch.optim.SGD, lr=0.1)
        local = LocalTraining(optimizer, steps=1, batch_size=100, round_decay=0.5, decay_by=decay_by)  # type: ignore[arg-type]
        made = Federation(Sharing(), local)
        grid = LocalGrid(client_app("{}", PARTITION, made.side), len(SIZES), reraise=True)
        sent, found = made.make().state_dict(), []
        for server_round in (3, 5, 6):
            replies = grid.send_and_receive(train_messages([2], sent, server_round=server_round, mu=0.0))
            (update,) = unpack_updates(replies)
            found.append(float((flat(update.state) - flat(sent)).norm()))
        return found

    by_round, by_visit = lengths("round"), lengths("last_visit")
    assert [length / by_visit[0] for length in by_round] == pytest.approx([0.25, 0.0625, 0.03125], rel=1e-4)
    assert [length / by_visit[0] for length in by_visit] == pytest.approx([1, 0.25, 0.0625], rel=1e-4)
