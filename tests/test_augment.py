"""Augmentation: each sample its own draw, the same as the naive loops, differentiable."""

import pytest
import reference
import torch
from tiny import pixels, rng

from fl_cmi.augment import Augment, CropFlip, Identity, ResizedCropFlip
from fl_cmi.types import ConfigError

SHAPES = [(3, 8, 8), (1, 5, 9), (2, 6, 1)]


def test_identity_is_the_input_itself() -> None:
    x = pixels(2)
    assert Identity()(x, rng()) is x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_flip_equals_zero_padding_and_a_crop(shape: tuple[int, int, int], padding: int) -> None:
    x = pixels(12, shape=shape)
    found = CropFlip(padding)(x, rng(3))
    # The shifts of the documented order of draws: rows, columns, flips.
    draws = rng(3)
    top = torch.randint(2 * padding + 1, (12, 1), generator=draws).flatten().tolist()
    left = torch.randint(2 * padding + 1, (12, 1), generator=draws).flatten().tolist()
    flip = (torch.rand(12, 1, generator=draws) < 0.5).flatten().tolist()
    assert len(set(flip)) == 2
    for i in range(12):
        assert torch.equal(found[i], reference.shifted(x[i], padding, top[i], left[i], flip[i]))


def test_crop_flip_makes_every_shift_and_nothing_else() -> None:
    image = pixels(1, shape=(1, 3, 3)) + 0.1
    found = CropFlip(1)(image.expand(600, -1, -1, -1), rng(1))
    allowed = {
        tuple(reference.shifted(image[0], 1, top, left, flip).flatten().tolist())
        for top in range(3)
        for left in range(3)
        for flip in (False, True)
    }
    seen = {tuple(row.flatten().tolist()) for row in found}
    assert len(allowed) == 18
    assert seen == allowed


@pytest.mark.parametrize(("flip", "turned"), [(0.0, False), (1.0, True)])
def test_flip_probability_at_its_ends(flip: float, turned: bool) -> None:
    x = pixels(5)
    expected = x.flip(3) if turned else x
    assert torch.equal(CropFlip(0, flip)(x, rng()), expected)
    whole = ResizedCropFlip(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=flip)
    torch.testing.assert_close(whole(x, rng()), expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 32)])
def test_the_whole_image_as_box_is_the_identity(shape: tuple[int, int, int]) -> None:
    x = pixels(4, shape=shape)
    whole = ResizedCropFlip(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    torch.testing.assert_close(whole(x, rng()), x, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 10)])
def test_resized_crop_equals_the_bilinear_loops(shape: tuple[int, int, int]) -> None:
    x = pixels(10, shape=shape)
    view = ResizedCropFlip()
    found = view(x, rng(5))
    draws = rng(5)
    boxes = view.boxes(10, shape[1], shape[2], draws).int().tolist()
    flips = (torch.rand(10, generator=draws) < 0.5).tolist()
    assert len(set(flips)) == 2
    for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
        expected = reference.stretched(x[i].double(), *box, flip)
        torch.testing.assert_close(found[i].double(), expected, rtol=0.0, atol=1e-5)


def test_boxes_lie_inside_and_keep_to_scale_and_ratio() -> None:
    boxes = ResizedCropFlip(scale=(0.25, 1.0)).boxes(4000, 32, 32, rng())
    top, left, height, width = boxes.unbind(dim=1)
    assert torch.equal(boxes, boxes.round())
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    area, ratio = height * width / 32**2, width / height
    # Whole pixels: half a pixel of rounding on sides of 14 and more.
    assert area.min() > 0.25 * 0.92
    assert ratio.min() > 0.75 * 0.93
    assert ratio.max() < 4 / 3 * 1.07
    assert 0.55 < area.mean() < 0.65  # the largest boxes fit less often, so a little under .625
    reached = (top == 32 - height) & (top > 0)
    assert reached.any(), "the last row is never reached"


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    boxes = ResizedCropFlip(scale=(1.0, 1.0), ratio=(3.0, 4.0)).boxes(5, 8, 8, rng())
    assert boxes.tolist() == [[0, 0, 8, 8]] * 5


@pytest.mark.parametrize("augment", [CropFlip(2), ResizedCropFlip()], ids=["crop", "resized"])
def test_samples_are_independent_and_reproducible(augment: Augment) -> None:
    x = pixels(1).expand(8, -1, -1, -1)
    out = augment(x, rng(4))
    assert len({tuple(row.flatten().tolist()) for row in out}) > 4
    assert torch.equal(out, augment(x, rng(4)))
    assert not torch.equal(out, augment(x, rng(5)))


@pytest.mark.parametrize("augment", [CropFlip(1), ResizedCropFlip()], ids=["crop", "resized"])
def test_gradient_flows(augment: Augment) -> None:
    x = pixels(2, shape=(1, 4, 4)).double().requires_grad_()
    if isinstance(augment, CropFlip):
        assert torch.autograd.gradcheck(lambda x: augment(x, rng(2)), [x])
    out = augment(x.float(), rng(2))
    assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0


def test_channels_move_together() -> None:
    x = pixels(6).expand(-1, 3, -1, -1)
    for augment in (CropFlip(2), ResizedCropFlip()):
        out = augment(x, rng(1))
        assert torch.equal(out[:, 0], out[:, 2])


@pytest.mark.parametrize(
    ("name", "value"), [("scale", (0.0, 1.0)), ("scale", (1.0, 0.5)), ("ratio", (2, 1)), ("flip", 2.0)]
)
def test_boxes_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        ResizedCropFlip(**{name: value})  # type: ignore[arg-type]
    assert error.value.key == f"augment.{name}"


@pytest.mark.parametrize(("name", "value"), [("padding", -1), ("flip", 1.5), ("flip", -0.1)])
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"augment.{name}={value}"):
        CropFlip(**{name: value})
