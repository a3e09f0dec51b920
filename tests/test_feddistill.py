"""FedDistill: the means, the loss, and what leaves a client."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import reference
import reference_federated
import torch
from small_federation import CLASSES, CPU, SIZES, Classifier, Federation, flat, full_batches, made_up
from torch import Tensor

from fl_cmi.federated.feddistill import LOGITS, LabelLogits, LabelSession, global_logits
from fl_cmi.federated.method import Visit
from fl_cmi.federated.sharing import Sharing
from fl_cmi.flower.feddistill import FedDistill
from fl_cmi.flower.strategies import one_architecture
from fl_cmi.types import ConfigError, State


def rows(number: int, seed: int) -> Tensor:
    return torch.randn(number, CLASSES, generator=torch.Generator().manual_seed(seed))


def session(method: LabelLogits, received: State | None = None, kept: Any = None) -> LabelSession:
    got = {} if received is None else {LOGITS: received}
    return method.begin(Visit(Classifier(), made_up(), got, {}, kept or {}, 1, torch.Generator(), CPU))


@pytest.mark.parametrize("counted", [False, True])
def test_means_are_over_all_batches_of_all_rounds(counted: bool) -> None:
    """Class 1 never comes: its row is zero."""
    method = LabelLogits(share_counts=counted)
    batches = [(rows(4, 0), [0, 2, 2, 0]), (rows(2, 1), [2, 2]), (rows(3, 2), [0, 0, 2])]
    first = session(method)
    for logits, y in batches[:2]:
        assert first.loss(logits, torch.tensor(y)) == 0.0
    made = first.finish()
    second = session(method, kept=made.kept)
    second.loss(batches[2][0], torch.tensor(batches[2][1]))
    sent = second.finish().sent[LOGITS]
    start = 0 if counted else 1
    wanted = reference_federated.label_means([(a.double(), y) for a, y in batches], CLASSES, start)
    torch.testing.assert_close(sent["mean"].double(), wanted, rtol=1e-6, atol=1e-6)
    assert sent["mean"][1].tolist() == [0.0] * CLASSES
    assert (sent["count"].tolist() == [4, 0, 5]) if counted else ("count" not in sent)


def test_the_servers_mean_is_plain_or_by_counts() -> None:
    means = [rows(CLASSES, k) for k in range(3)]
    plain = global_logits([{"mean": mean} for mean in means])
    torch.testing.assert_close(plain["mean"], sum(means) / 3)
    counts = [[4, 0, 0], [1, 0, 2], [0, 0, 3]]
    found = global_logits([{"mean": m, "count": torch.tensor(n)} for m, n in zip(means, counts, strict=True)])
    torch.testing.assert_close(found["mean"][0], (4 * means[0][0] + means[1][0]) / 5)
    torch.testing.assert_close(found["mean"][2], (2 * means[1][2] + 3 * means[2][2]) / 5)
    assert found["known"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("known", [None, [1.0, 0.0, 1.0]])
def test_the_loss_is_the_loops(known: list[float] | None) -> None:
    target, y = rows(CLASSES, 5), torch.tensor([0, 1, 1, 2])
    received: State = {"mean": target} if known is None else {"mean": target, "known": torch.tensor(known)}
    logits = rows(4, 6).requires_grad_()
    loss = session(LabelLogits(weight=0.7), received).loss(logits, y)
    weight = None if known is None else [known[int(c)] for c in y]
    wanted = 0.7 * reference.kl_divergence(target[y].double(), logits.detach().double(), 1.0, weight)
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    loss.backward()
    assert logits.grad is not None


def test_logits_alone_leave_the_client() -> None:
    method = LabelLogits()
    federation = Federation(Sharing(method), full_batches(start="own"), clients_per_round=2)
    played = federation.play(FedDistill(method, federation.server), 3)
    assert played.grid is not None
    for update in played.updates[1]:
        assert update.shared == {}
        assert update.extra.keys() == {LOGITS}
        assert update.private == frozenset(Classifier().state_dict())
    assert all(torch.equal(flat(state), flat(played.states[0])) for state in played.states)
    record = len("mean") + 128 + 4 * CLASSES**2
    sent = sum(len(name) + 8 for name in ("num-examples", "partition-id", "loss", "accuracy", "steps"))
    counts = len("class-counts") + 8 * CLASSES
    assert played.grid.bytes_up == 6 * (record + sent + counts)
    setting = len("server-round") + 8
    assert played.grid.bytes_down == 6 * setting + 4 * record


def test_own_models_of_mixed_architectures_learn_from_each_other() -> None:
    method, own = LabelLogits(), full_batches(start="own")

    def played(weight: float) -> list[Tensor]:
        client = LabelLogits(weight)
        mixed = [partial(Classifier, width=3), partial(Classifier, width=5)]
        federation = Federation(Sharing(client), own, mixed=lambda k: mixed[k % 2]())
        strategy = FedDistill(client, federation.server)
        assert strategy.mixed_architectures
        assert not one_architecture(federation.server)
        return [flat(update.state) for update in federation.play(strategy, 2).updates[1]]

    assert not torch.equal(played(1.0)[0], played(0.0)[0])
    method.check(own)


def test_plus_averages_models_too() -> None:
    method = LabelLogits(share_model=True)
    federation = Federation(Sharing(method), full_batches())
    played = federation.play(FedDistill(method, federation.server), 2)
    mean = sum(flat(u.state) * n for u, n in zip(played.updates[1], SIZES, strict=True)) / sum(SIZES)
    torch.testing.assert_close(flat(played.states[2]), mean, rtol=1e-6, atol=1e-6)
    again = federation.play(FedDistill(method, federation.server), 2)
    assert torch.equal(flat(played.states[2]), flat(again.states[2]))


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^local\.start=broadcast: own"):
        LabelLogits().check(full_batches())
    with pytest.raises(ConfigError, match=r"^local\.start=own: broadcast"):
        LabelLogits(share_model=True).check(full_batches(start="own"))
    with pytest.raises(ConfigError, match=r"^strategy\.client\.weight=-1"):
        LabelLogits(weight=-1)
    secretive = replace(Federation(Sharing(), full_batches()).server, share_label_counts=False)
    with pytest.raises(ConfigError, match=r"^strategy\.client\.share_counts=true: false"):
        FedDistill(LabelLogits(share_counts=True), secretive)
    FedDistill(LabelLogits(), secretive)
