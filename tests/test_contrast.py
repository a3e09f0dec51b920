"""The contrastive term: its head, its bank, and whom its gradient reaches."""

from typing import Any

import pytest
import reference
import torch
from tiny import (
    COUNTS,
    SHAPE,
    TASK,
    WIDTH,
    contrast,
    ensemble,
    head_of,
    inversion,
    network,
    rng,
    rows,
)
from torch import Tensor

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import pack, unpack
from fl_cmi.models.lenet import LeNet
from fl_cmi.synthesis.contrast import Contrast
from fl_cmi.synthesis.synthesizers import Joint
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.types import ConfigError

CPU = torch.device("cpu")
Y = torch.tensor([0, 0, 1, 1, 3, 3])


def double_contrast(old: int, weight: float = 0.8) -> Contrast:
    """A head in double precision and a bank with `old` rows, all of which are drawn."""
    made = Contrast(weight=weight, temperature=0.3, bank_size=50, num_negatives=50, head_width=3)
    made.begin(ensemble(), WIDTH, rng(8))
    assert made.head is not None
    made.head.double()
    if old:
        made.remember(rows(old, seed=1), rows(old, seed=2))
    return made


def drawn(made: Contrast, old: int) -> tuple[Tensor, Tensor]:
    """The bank rows in the order in which a stream like `rng(0)` draws them."""
    if not old:
        return rows(0, seed=0), rows(0, seed=0)
    local, global_ = made.bank.draw(made.num_negatives, rng(0)).chunk(2, dim=1)
    return local, global_


@pytest.mark.parametrize("old", [0, 4])
def test_split_head_equals_the_joint_form_in_value_and_gradients(old: int) -> None:
    made = double_contrast(old)
    local, global_ = rows(3, seed=3).requires_grad_(), rows(3, seed=4).requires_grad_()
    head = head_of(made)
    found = made(local, global_, rng(0))
    expected = reference.contrast(local, global_, head, 0.3, *drawn(made, old))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)
    wanted = (local, *head)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)
        assert ours.abs().sum() > 0


@pytest.mark.parametrize("old", [0, 4])
def test_global_features_get_exactly_no_gradient(old: int) -> None:
    local, global_ = rows(3, seed=3).requires_grad_(), rows(3, seed=4).requires_grad_()
    found = double_contrast(old)(local, global_, rng(0))
    gradient = torch.autograd.grad(found, global_, allow_unused=True)[0]
    assert gradient is None or not gradient.any()


def test_bank_rows_give_no_gradient_to_the_images_they_came_from() -> None:
    made = double_contrast(0)
    earlier = rows(4, seed=1).requires_grad_()
    made.remember(earlier * 2, earlier * 3)
    found = made(rows(3, seed=3).requires_grad_(), rows(3, seed=4), rng(0))
    assert torch.autograd.grad(found, earlier, allow_unused=True)[0] is None


def test_the_second_mean_trains_the_head_alone() -> None:
    made = double_contrast(4)
    local, global_ = rows(3, seed=3).requires_grad_(), rows(3, seed=4)
    old_local, old_global = drawn(made, 4)
    head = head_of(made)
    first = torch.autograd.grad(made(local, global_, rng(0)), local)[0]
    queries = torch.stack([reference.embed(head, row) for row in [*local, *old_local]])
    keys = torch.stack([reference.embed(head, row) for row in [*global_, *old_global]]).detach()
    new = torch.stack(reference.info_nce(queries, keys, 0.3)[:3]).mean()
    torch.testing.assert_close(torch.autograd.grad(new, local)[0], first, rtol=0.0, atol=1e-6)


def test_gradient_of_the_contrast_equals_finite_differences() -> None:
    made, global_ = double_contrast(4), rows(3, seed=4)
    assert torch.autograd.gradcheck(lambda x: made(x, global_, rng(0)), [rows(3, seed=3).requires_grad_()])


def test_contrast_of_matching_views_is_lower() -> None:
    made, features_ = double_contrast(4), 3 * rows(5, seed=3)
    assert made(features_, features_, rng(0)) < made(features_, features_.flip(0), rng(0))


def test_embeddings_have_length_one() -> None:
    torch.testing.assert_close(double_contrast(0).embed(rows(5, seed=3)).norm(dim=1), torch.ones(5).double())


def test_head_persists_and_comes_from_the_stream() -> None:
    made, team = contrast(), ensemble()
    made.begin(team, WIDTH, rng(1))
    head = made.head
    made.remember(torch.zeros(2, WIDTH), torch.zeros(2, WIDTH))
    made.begin(team, WIDTH, rng(2))
    assert made.head is head
    assert len(made.bank) == 2
    other = contrast()
    other.begin(team, WIDTH, rng(1))
    assert all(torch.equal(a, b) for a, b in zip(head_of(made), head_of(other), strict=True))


@pytest.mark.parametrize("counts", [COUNTS, COUNTS[:2]])
def test_other_teachers_start_the_contrast_afresh(counts: Any) -> None:
    """Also where the clients are the same and their features as wide."""
    first, second = (Joint(inversion(contrastive=contrast()), 6) for _ in range(2))
    team = ensemble(counts)
    first(ensemble(), network(9), TASK, rng())
    again, new = (made(team, network(9), TASK, rng(1)) for made in (first, second))
    assert torch.equal(again.x, new.x)
    assert first.inversion.contrast is not None
    assert len(first.inversion.contrast.bank) == len(Y)


def test_a_resumed_contrast_goes_on_alike_within_a_round_and_between_two() -> None:
    first, second, student = ensemble(), ensemble(), network(9)
    going = Joint(inversion(contrastive=contrast()), 6)
    going(first, student, TASK, rng())
    for layers, team in (({}, second), (second.layers, second)):
        scene, resumed = Scene(TASK, CPU, layers), Joint(inversion(contrastive=contrast()), 6)
        # As it is on disk.
        resumed.load_state_dict(unpack(*pack(going.state_dict(scene))), scene)
        expected, found = (made(team, student, TASK, rng(5)) for made in (going, resumed))
        assert torch.equal(found.x, expected.x)
        assert found.losses == expected.losses


def test_contrast_needs_batch_norm_in_every_teacher() -> None:
    team = ensemble(make=lambda k: LeNet(SHAPE, 4, (0.5,), (0.25,)))
    with pytest.raises(ConfigError, match=r"contrast.*client 0's model \(LeNet\)"):
        inversion(terms={"oh": OneHot()}, contrastive=contrast()).check(team)
    inversion(terms={"oh": OneHot()}, contrastive=contrast(weight=0.0)).check(team)


def test_bank_memory_of_a_run() -> None:
    made, team = contrast(bank_size=20), ensemble()
    inversion(steps=1, contrastive=made)(team, network(9), Y, TASK, rng())
    width = 3 * (2 + 4 + 8)
    assert made.bank.num_bytes == 20 * 2 * width * 4
    assert len(made.bank) == len(Y)
