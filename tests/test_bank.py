"""The ring of features and the pool of images: nothing lost, nothing invented, the oldest overwritten."""

import pytest
import torch
from tiny import pixels, rng
from torch import Tensor

from fl_cmi.bank import Bank, Pool


def numbered(start: int, stop: int, width: int = 2) -> Tensor:
    """Rows that say when they were written."""
    return torch.arange(start, stop).float()[:, None].expand(-1, width)


def contents(bank: Bank) -> list[int]:
    return sorted(int(v) for v in bank.draw(10**6, rng())[:, 0])


def test_an_empty_bank_has_nothing_to_draw() -> None:
    bank = Bank(4)
    assert len(bank) == bank.num_bytes == 0
    with pytest.raises(ValueError, match="empty"):
        bank.draw(1, rng())


def test_only_filled_rows_are_drawn() -> None:
    bank = Bank(10)
    bank.add(numbered(1, 4))
    assert len(bank) == 3
    assert contents(bank) == [1, 2, 3]


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_a_bank_filled_exactly_returns_all_its_rows(batch: int) -> None:
    """The released code draws none here, and its loss is NaN from then on."""
    bank = Bank(8)
    for start in range(0, 8, batch):
        bank.add(numbered(start, start + batch))
    assert bank.written == bank.capacity == len(bank)
    assert contents(bank) == list(range(8))


@pytest.mark.parametrize("batch", [1, 3, 5, 7, 8, 9, 15, 16, 20])
def test_the_oldest_rows_go_first_at_any_batch_size(batch: int) -> None:
    bank = Bank(7)
    for number in range(5):
        bank.add(numbered(number * batch, (number + 1) * batch))
        written = (number + 1) * batch
        assert contents(bank) == list(range(max(0, written - 7), written))


def test_a_batch_larger_than_the_ring_leaves_it_in_order() -> None:
    bank = Bank(7)
    bank.add(numbered(0, 10))
    bank.add(numbered(10, 13))
    assert contents(bank) == list(range(6, 13))


def test_draws_are_without_replacement_and_from_the_stream() -> None:
    bank = Bank(50)
    bank.add(numbered(0, 50))
    drawn = bank.draw(20, rng(1))[:, 0].tolist()
    assert len(set(drawn)) == 20
    assert drawn == bank.draw(20, rng(1))[:, 0].tolist()
    assert drawn != bank.draw(20, rng(2))[:, 0].tolist()
    assert drawn != sorted(drawn)


def test_every_row_is_drawn_equally_often() -> None:
    bank = Bank(10)
    bank.add(numbered(0, 10))
    draws = rng()
    counts = torch.zeros(10)
    for _ in range(2000):
        counts[bank.draw(3, draws)[:, 0].long()] += 1
    # 600 each; the standard deviation of a binomial count is 20.5.
    assert ((counts - 600).abs() < 5 * 20.5).all()


def test_memory_is_capacity_times_two_widths_of_floats() -> None:
    bank, width = Bank(64), 12
    bank.add(torch.zeros(3, 2 * width))
    assert bank.num_bytes == 64 * 2 * width * 4


def test_rows_enter_without_gradient() -> None:
    bank = Bank(4)
    bank.add(torch.ones(2, 3, requires_grad=True) * 2)
    assert not bank.draw(2, rng()).requires_grad


def test_rows_are_copies() -> None:
    bank, rows = Bank(4), torch.ones(2, 3)
    bank.add(rows)
    rows.zero_()
    assert (bank.draw(2, rng()) == 1).all()


def fill(pool: Pool, *batches: int, value: float = 0.5) -> None:
    start = pool.written
    for batch in batches:
        y = torch.arange(start, start + batch)
        pool.add(torch.full((batch, 1, 2, 2), value), y, torch.zeros(batch, 3), client=batch)
        start += batch


def test_pool_rounds_to_the_nearest_level() -> None:
    pool = Pool()
    levels = torch.tensor([0.0, 0.4, 0.6, 1.49, 127.5001, 254.49, 254.51, 255.0]) / 255
    pool.add(levels.view(8, 1, 1, 1), torch.zeros(8, dtype=torch.int64), torch.zeros(8, 2))
    assert pool.pixels.flatten().tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_pool_adds_no_bias() -> None:
    """Truncation, as in the released code, darkens images by half a level on average."""
    pool, x = Pool(), pixels(200)
    pool.add(x, torch.zeros(200, dtype=torch.int64), torch.zeros(200, 2))
    error = (pool.get(torch.arange(200)).x - x) * 255
    # The error of a pixel is uniform in +-.5, its mean over 12,800 pixels has a standard deviation of .0026.
    assert abs(error.mean().item()) < 5 * 0.0026
    assert error.abs().max() <= 0.5 + 1e-3


def test_pool_clamps_what_lies_outside() -> None:
    pool = Pool()
    pool.add(torch.tensor([-0.1, 1.2]).view(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2))
    assert pool.pixels.flatten().tolist() == [0, 255]


def test_pool_grows_with_what_it_holds() -> None:
    pool = Pool(capacity=1000)
    assert pool.num_bytes == len(pool) == 0
    fill(pool, 5)
    row = 4 + 8 + 3 * 4 + 8  # pixels, label, three log-probabilities, client
    assert pool.num_bytes == 5 * row
    fill(pool, 3)
    assert len(pool) == 8
    assert pool.num_bytes == 8 * row
    assert pool.targets.tolist() == list(range(8))


@pytest.mark.parametrize("batches", [(4, 4, 4), (7, 7), (3, 9), (10, 1), (11,), (4, 25), (25, 3)])
def test_pool_keeps_the_newest(batches: tuple[int, ...]) -> None:
    pool = Pool(capacity=10)
    fill(pool, *batches)
    written = sum(batches)
    assert len(pool) == 10
    assert len(pool.pixels) == 10
    assert sorted(pool.targets.tolist()) == list(range(written - 10, written))


def test_pool_keeps_image_label_and_client_together() -> None:
    pool = Pool(capacity=6)
    for number in range(4):
        x = torch.full((4, 1, 2, 2), number / 255)
        pool.add(x, torch.full((4,), number), torch.full((4, 3), float(number)), client=number)
    batch = pool.get(torch.arange(6))
    number = batch.y
    assert torch.equal((batch.x[:, 0, 0, 0] * 255).round().long(), number)
    assert torch.equal(batch.labels[:, 0].long(), number)
    assert torch.equal(batch.client, number)
    assert sorted(number.tolist()) == [2, 2, 3, 3, 3, 3]


def test_pool_draws_from_the_whole_pool_by_the_stream() -> None:
    pool = Pool()
    fill(pool, 4, 4)
    batch = pool.draw(200, rng(1))
    assert set(batch.y.tolist()) == set(range(8))
    assert torch.equal(batch.index, batch.y)
    assert torch.equal(batch.y, pool.draw(200, rng(1)).y)
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x, torch.full_like(batch.x, 128 / 255))


def test_pool_takes_channels_last_images_in_the_right_order() -> None:
    x = pixels(3, shape=(3, 4, 5))
    pool = Pool()
    pool.add(
        x.contiguous(memory_format=torch.channels_last), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2)
    )
    assert torch.equal(pool.pixels, (x * 255).round().byte())


def test_pool_forgets() -> None:
    pool = Pool()
    fill(pool, 4)
    pool.clear()
    assert len(pool) == 0
    with pytest.raises(ValueError, match="empty"):
        pool.get(torch.zeros(1, dtype=torch.int64))


def test_the_surest_images_of_each_class() -> None:
    pool, y = Pool(), torch.tensor([0, 0, 0, 0, 1, 1])
    p = torch.tensor([0.9, 0.2, 0.8, 0.7, 0.1, 0.6])  # of the class that each image aims at
    labels = torch.where(torch.nn.functional.one_hot(y, 2).bool(), p[:, None], 1 - p[:, None]).log()
    pool.add(torch.rand(6, 1, 2, 2, generator=rng()), y, labels)
    assert pool.surest(0.5).tolist() == [0, 2, 5]
    assert pool.surest(0.01).tolist() == [0, 5]
    assert pool.surest(1.0).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="empty"):
        Pool().surest()


@pytest.mark.parametrize("batch", [1, 3, 5, 7, 12])
def test_serials_number_the_images_in_the_order_of_arrival(batch: int) -> None:
    """Each image's class is its own number, so the classes by slot are what the serials have to be."""
    pool = Pool(5)
    for start in range(0, 25, batch):
        y = torch.arange(start, start + batch)
        pool.add(torch.zeros(batch, 1, 1, 1), y, torch.zeros(batch, 2))
        assert torch.equal(pool.serials, pool.targets)


def test_a_batch_knows_its_pool() -> None:
    pool = Pool(4)
    pool.add(torch.zeros(3, 1, 1, 1), torch.arange(3), torch.zeros(3, 2))
    assert pool.draw(2, rng()).pool is pool
