"""The views of DeepInversion and of The Knowledge Within: what one decision holds for, and what a copy may become."""

from collections import Counter
from typing import Any

import pytest
import reference_pixels
import torch
from tiny import pixels, rng
from torch import Tensor

from fl_cmi.augment import CropFlip, Cutout, Identity, ResizedCropFlip, RollFlip, SomeOf
from fl_cmi.types import ConfigError


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9)])
def test_one_roll_and_one_flip_for_the_whole_batch(shape: tuple[int, int, int]) -> None:
    x, flips = pixels(4, shape=shape), set()
    for seed in range(12):
        found = RollFlip(4)(x, rng(seed))
        draws = rng(seed)  # in the documented order: down and right, then the flip
        down, right = torch.randint(-4, 5, (2,), generator=draws).tolist()
        flip = bool(torch.rand((), generator=draws) < 0.5)
        flips.add(flip)
        for i in range(4):
            assert torch.equal(found[i], reference_pixels.rolled(x[i], down, right, flip))
    assert flips == {False, True}


def test_every_roll_up_to_the_limit_occurs_and_no_other() -> None:
    x = pixels(1, shape=(1, 7, 7))
    allowed = {
        tuple(reference_pixels.rolled(x[0], down, right, flip).flatten().tolist())
        for down in range(-1, 2)
        for right in range(-1, 2)
        for flip in (False, True)
    }
    draws = rng()
    seen = {tuple(RollFlip(1)(x, draws).flatten().tolist()) for _ in range(300)}
    assert len(allowed) == 18
    assert seen == allowed


@pytest.mark.parametrize(("flip", "turned"), [(0.0, False), (1.0, True)])
def test_roll_flip_at_its_ends(flip: float, turned: bool) -> None:
    x = pixels(3)
    assert torch.equal(RollFlip(0, flip)(x, rng()), x.flip(3) if turned else x)


@pytest.mark.parametrize("share", [1 / 3, 0.334])
def test_holes_are_black_squares_within_their_limits(share: float) -> None:
    ones = torch.ones(400, 2, 12, 12)
    found = Cutout(holes=1, share=share)(ones, rng())
    assert torch.equal(found[:, 0], found[:, 1])
    sides, cut_off = Counter(), set()
    for image in found[:, 0]:
        hole = (image == 0).nonzero()
        assert len(hole) > 0
        height, width = (hole.max(dim=0).values - hole.min(dim=0).values + 1).tolist()
        assert len(hole) == height * width, "no rectangle"
        sides[max(height, width)] += 1
        if height < width:
            cut_off.add(hole[:, 0].min().item())
    assert set(sides) == {1, 2, 3, 4}, "floor(12 / 3) is the largest side"
    # Cut off above, or below: the last squares of 4 and of 3 or 2 pixels begin at row 9 and 10.
    assert cut_off == {0, 9, 10}


def test_the_number_of_holes_is_drawn_for_each_sample() -> None:
    """Single pixels in a large image hardly ever meet, so the black ones count the holes."""
    found = Cutout(holes=4, share=1 / 60)(torch.ones(300, 1, 60, 60), rng(2))
    numbers = Counter((image == 0).sum().item() for image in found)
    assert set(numbers) == {1, 2, 3, 4}
    assert all(45 <= number <= 105 for number in numbers.values())  # 75 each, standard deviation 7.5


def test_holes_reach_the_border_and_leave_the_rest_alone() -> None:
    x = pixels(300, shape=(1, 9, 9)) + 0.1
    found = Cutout()(x, rng())
    kept = found != 0
    assert torch.equal(found[kept], x[kept])
    assert (~kept).any(dim=0).all(), "some pixel is never hit"
    x = pixels(2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Cutout()(x, rng(2)), [x])


class Marking:
    """A view that adds its mark and counts its calls."""

    def __init__(self, mark: float) -> None:
        self.mark = mark

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return x + self.mark


def test_each_copy_is_changed_by_none_one_or_two_different_views() -> None:
    view, draws = SomeOf([Marking(1.0), Marking(10.0), Marking(100.0)]), rng()
    marks: Counter[float] = Counter()
    for _ in range(500):
        found = view(torch.zeros(3, 1, 2, 2), draws)
        assert found.shape == (12, 1, 2, 2)
        for copy in found.chunk(4):
            assert len(copy.unique()) == 1, "a choice holds for the whole copy"
            marks[copy.unique().item()] += 1
    assert set(marks) == {0, 1, 10, 100, 11, 101, 110}
    # A third of 2000 each for none, one and two; a ninth for each choice of one or of two. Five standard deviations.
    assert abs(marks[0] - 667) < 106
    assert all(abs(marks[key] - 222) < 71 for key in marks if key)


def test_copies_hold_the_samples_in_their_order() -> None:
    x = pixels(3)
    assert torch.equal(SomeOf([Identity()], most=1, copies=2)(x, rng()), torch.cat([x, x]))
    assert torch.equal(SomeOf([CropFlip(0, 1.0)], most=0, copies=1)(x, rng()), x)


def test_the_paper_s_copies_differ_and_repeat_with_the_stream() -> None:
    views = [CropFlip(0, 0.2), ResizedCropFlip(scale=(0.33, 1.0), flip=0.0), Cutout()]
    x = pixels(8).requires_grad_()
    found = SomeOf(views)(x, rng(3))
    assert torch.equal(found, SomeOf(views)(x, rng(3)))
    assert len({tuple(copy.flatten().tolist()) for copy in found.chunk(4)}) > 1
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: RollFlip(-1), "roll=-1"),
        (lambda: RollFlip(1.5), "roll=1.5"),  # type: ignore[arg-type]
        (lambda: RollFlip(flip=2.0), "flip=2.0"),
        (lambda: Cutout(holes=0), "augment.holes=0"),
        (lambda: Cutout(share=0.0), "augment.share=0.0"),
        (lambda: SomeOf([]), "global_view.views"),
        (lambda: SomeOf([Identity()], most=2), "global_view.most=2"),
        (lambda: SomeOf([Identity()], most=1, copies=0), "global_view.copies=0"),
    ],
)
def test_values_out_of_range_are_named(make: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()
