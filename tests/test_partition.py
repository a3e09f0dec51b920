"""Every partition procedure: each index once, stable hashes, errors that name their key."""

import hashlib
import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from partition_cases import ALPHAS, CONF, FILES, OVERLAP, PARTS, WHOLE, balanced, named, rng

from fl_cmi import partition
from fl_cmi.types import ConfigError

# --- What holds for every procedure ---


@pytest.mark.parametrize(("procedure", "params"), WHOLE, ids=named)
@pytest.mark.parametrize("num_images", [1000, 1437])
def test_every_index_exactly_once(
    procedure: Callable[..., partition.Partition], params: dict, num_images: int
) -> None:
    part = procedure(balanced(num_images), 7, rng(), **params)
    assert np.array_equal(np.sort(np.concatenate(part.indices)), np.arange(num_images))
    assert part.num_clients == 7
    assert sum(part.sizes) == num_images
    assert part.notes == ()


@pytest.mark.parametrize(("procedure", "params"), PARTS, ids=named)
def test_no_index_twice_and_the_notes_count_the_rest(
    procedure: Callable[..., partition.Partition], params: dict
) -> None:
    part = procedure(balanced(1437), 7, rng(), **params)
    dealt = np.concatenate(part.indices)
    assert len(np.unique(dealt)) == len(dealt)
    left = 1437 - len(dealt) - (0 if part.held_out is None else len(part.held_out))
    assert any(f"{left} of 1437 images are held by no client" in note for note in part.notes) == (left > 0)


@pytest.mark.parametrize(("procedure", "params"), [*WHOLE, *PARTS, OVERLAP], ids=named)
def test_same_seed_same_hash_and_other_seed_other_hash(
    procedure: Callable[..., partition.Partition], params: dict
) -> None:
    labels = balanced(1437)
    first, again, other = (procedure(labels, 7, rng(seed), **params) for seed in (3, 3, 4))
    assert first.hash == again.hash != other.hash
    assert all(np.array_equal(a, b) for a, b in zip(first.indices, again.indices, strict=True))
    assert first.manifest() == again.manifest()
    assert first.name == procedure.__name__


@pytest.mark.parametrize(("procedure", "params"), [*WHOLE, *PARTS, OVERLAP], ids=named)
def test_clients_are_shuffled(procedure: Callable[..., partition.Partition], params: dict) -> None:
    labels = balanced(1437)
    part = procedure(labels, 7, rng(), **params)
    assert any((np.diff(labels[own]) < 0).any() for own in part.indices)


@pytest.mark.parametrize(("procedure", "params"), [*WHOLE, *PARTS, OVERLAP], ids=named)
@pytest.mark.parametrize("num_clients", [0, -1, 21])
def test_impossible_number_of_clients(
    procedure: Callable[..., partition.Partition], params: dict, num_clients: int
) -> None:
    with pytest.raises(ConfigError, match=rf"^num_clients={num_clients}: .*(>= 1|at most 20)"):
        procedure(balanced(20), num_clients, rng(), **params)


@pytest.mark.parametrize("procedure", ALPHAS, ids=named)
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive(procedure: Callable[..., partition.Partition], alpha: float) -> None:
    with pytest.raises(ConfigError, match=rf"^partition.alpha={alpha}: a number > 0"):
        procedure(balanced(500), 5, rng(), alpha=alpha)


@pytest.mark.parametrize("file", FILES)
def test_every_yaml_builds_and_splits(file: str) -> None:
    procedure = instantiate(OmegaConf.load(CONF / f"{file}.yaml"))
    if file.startswith("flower_"):
        pytest.importorskip("flwr_datasets")
    part = procedure(balanced(50_000), 5, rng())
    assert part.num_clients == 5
    aliases = {"dirichlet": "dirichlet_class", "dense_cifar10": "fixed_counts"}
    assert part.name == ("flower_datasets" if file.startswith("flower_") else aliases.get(file, file))
    assert (CONF / f"{file}.yaml").read_text().startswith("# ")


def test_every_procedure_has_a_yaml() -> None:
    procedures = {getattr(partition, name).__name__ for name in partition.__all__} - {
        "Partition",
        "client_tests",
        "flower_datasets",
        "hold_out",
    }
    assert procedures <= set(FILES)


# --- The manifest ---


def test_hash_is_sha256_over_sorted_little_endian_indices() -> None:
    part = partition.Partition("hand", {}, (np.array([2, 0]), np.array([1, 3])))
    # 0, 2 then 1, 3 as eight-byte little-endian integers, written out by hand.
    message = b"".join(bytes([n]) + bytes(7) for n in (0, 2, 1, 3))
    assert message == struct.pack("<4q", 0, 2, 1, 3)
    assert part.hash == hashlib.sha256(message).hexdigest()
    assert part.hash == "270880408f621afcdac5746cf5533e2b8401ea562fd868ffc805571b7b64765f"


def test_counts_and_manifest() -> None:
    labels = np.array([0, 1, 1, 2])
    part = partition.Partition("hand", {"alpha": 1.0}, (np.array([0, 1]), np.array([2, 3])), notes=("x",))
    assert part.counts(labels, 4).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    expected = {"name": "hand", "params": {"alpha": 1.0}, "hash": part.hash, "sizes": [2, 2], "notes": ["x"]}
    assert part.manifest() == expected


# Derivation: default_rng(0) on labels i mod 10, i < 1000, 4 clients, alpha .3, numpy 2.4. `iid` is derived
# again below; the laws of the other two are checked against the published loops.
GOLDEN = {
    partition.iid: "c8a7586c34b1a240d288c46c925cc247b2744f0701894eb7683022a866b70dcc",
    partition.dirichlet_class: "c2466d21d130c9696ceb7179d582043fce642fe8837f0b62d999dec6ad635150",
    partition.dirichlet_client: "8ae0c054352cfeda06d740c4b87e57fd7a71ddad1f50e8089640473b8dc866f0",
}


@pytest.mark.parametrize("procedure", GOLDEN, ids=named)
def test_golden_hashes(procedure: Callable[..., partition.Partition]) -> None:
    """A change here changes published splits: say so in the change log."""
    params = {} if procedure is partition.iid else {"alpha": 0.3}
    assert procedure(np.arange(1000) % 10, 4, rng(), **params).hash == GOLDEN[procedure]


def test_golden_iid_derivation() -> None:
    """The golden hash of `iid` from its definition: one permutation, four quarters."""
    quarters = rng().permutation(1000).reshape(4, 250)
    message = struct.pack("<1000q", *itertools.chain.from_iterable(sorted(map(int, own)) for own in quarters))
    assert hashlib.sha256(message).hexdigest() == GOLDEN[partition.iid]


def test_edge_cases_are_noted() -> None:
    labels = np.array([0, 0, 0, 2, 2, 2])  # nothing of class 1
    part = partition.quantity_explicit(labels, 2, rng(), sizes=[1, 5])
    assert part.notes == ("class 1: no image in the data", "client 0: one image only")
    for procedure in (partition.dirichlet_class, partition.dirichlet_class_uncapped):
        assert sum(procedure(labels, 2, rng(), alpha=1.0, min_size=1).sizes) == 6
    assert sum(partition.dirichlet_client(labels, 2, rng(), alpha=1.0).sizes) == 6
    assert partition.iid(labels, 6, rng()).sizes == (1,) * 6
    assert partition.iid(labels, 1, rng()).sizes == (6,)
