"""Named streams: the same name, the same numbers; any other name, others."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from fl_cmi.rng import numpy_stream, stream, stream_seed

NAMES = [
    ("client", 1),
    ("client", "1"),
    ("client", 2),
    ("client", 1, "round", 1),
    ("client", 11),
    ("client", 1, 1),
    ("a", "bc"),
    ("ab", "c"),
    ("abc",),
    (),
]


def test_the_same_name_gives_the_same_numbers() -> None:
    assert torch.equal(torch.rand(5, generator=stream(3, "a", 1)), torch.rand(5, generator=stream(3, "a", 1)))
    assert np.array_equal(numpy_stream(3, "a", 1).random(5), numpy_stream(3, "a", 1).random(5))


def test_every_name_and_every_seed_has_its_own() -> None:
    seeds = {stream_seed(seed, *name) for seed in (0, 1, -1, 2**40) for name in NAMES}
    assert len(seeds) == 4 * len(NAMES)


def test_the_seed_is_the_documented_hash_and_fits_63_bits() -> None:
    digest = hashlib.sha256(b"(7, 'client', 3)").digest()
    assert stream_seed(7, "client", 3) == int.from_bytes(digest[:8], "big") >> 1
    assert all(0 <= stream_seed(0, *name) < 2**63 for name in NAMES)


def test_streams_do_not_depend_on_each_other() -> None:
    alone = torch.rand(3, generator=stream(0, "b"))
    torch.rand(100, generator=stream(0, "a"))
    assert torch.equal(torch.rand(3, generator=stream(0, "b")), alone)


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_draw_on_the_cpu() -> None:
    assert stream(0, "x").device.type == "cpu"


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same(hash_seed: str) -> None:
    """Python's own `hash` would differ between processes."""
    code = "from fl_cmi.rng import stream_seed; print(stream_seed(5, 'client', 2))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed},
    )
    assert int(out.stdout) == stream_seed(5, "client", 2)


def test_neighbouring_streams_are_uncorrelated() -> None:
    draws = np.stack([numpy_stream(0, "client", k).standard_normal(2000) for k in range(20)])
    correlation = np.corrcoef(draws) - np.eye(20)
    # 190 pairs, each with a standard deviation of 1 / sqrt(2000) = .022.
    assert np.abs(correlation).max() < 5 * 0.0224
