"""Splits by label, by quantity, and those of single papers."""

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from partition_cases import CONF, balanced, rng

from fl_cmi import partition
from fl_cmi.types import ConfigError

# --- By label ---


def test_shards_are_pure_and_the_remainder_is_dropped() -> None:
    labels = balanced(1000)
    part = partition.shards(
        labels, 10, rng(), shards_per_client=2
    )  # 20 shards of 50, each within one class of 100
    assert part.sizes == (100,) * 10
    assert ((part.counts(labels, 10) > 0).sum(axis=1) <= 2).all()
    assert partition.shards(balanced(1007), 10, rng(), shards_per_client=2).notes == (
        "7 of 1007 images are held by no client",
    )
    with pytest.raises(ConfigError, match=r"^partition.shards_per_client=101: at most 100"):
        partition.shards(labels, 10, rng(), shards_per_client=101)


def test_labels_per_client() -> None:
    labels = balanced(1000)
    for num_labels in (1, 2, 9, 10):
        part = partition.labels_per_client(labels, 12, rng(), num_labels=num_labels)
        owns = part.counts(labels, 10) > 0
        assert (owns.sum(axis=1) == num_labels).all()
        assert all(owns[k, k % 10] for k in range(12))
        counts = part.counts(labels, 10)
        for c in range(10):
            held = counts[owns[:, c], c]
            assert held.sum() == 100
            assert held.max() - held.min() <= 1
    lost = partition.labels_per_client(labels, 2, rng(), num_labels=1)
    assert lost.notes[0] == "classes 2, 3, 4, 5, 6 and 3 more: held by no client"
    with pytest.raises(ConfigError, match=r"^partition.num_labels=11: at most 10"):
        partition.labels_per_client(labels, 5, rng(), num_labels=11)
    with pytest.raises(ConfigError, match=r"^num_clients=6: fewer, because labels_per_client leaves client"):
        partition.labels_per_client(np.array([0, 1, 1, 1, 1, 1, 1]), 6, rng(), num_labels=1)


def test_label_distribution_keeps_the_prescribed_mixes() -> None:
    labels = balanced(1000, 4)
    mixes = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.25, 0.5]]
    part = partition.label_distribution(labels, 2, rng(), distribution=mixes)
    # Column sums .5, .75, .25, .5: the second class, 250 images, allows 250 / .75 = 333 per client.
    assert part.counts(labels, 4).tolist() == [[166, 166, 0, 0], [0, 83, 83, 166]]
    thirds = partition.label_distribution(labels, 2, rng(), distribution=[[1.0, 1.0, 1.0, 1.0]] * 2)
    assert thirds.sizes == (500, 500)
    with pytest.raises(ConfigError, match=r"^partition.size=336: 333 or less, because a class runs out"):
        partition.label_distribution(labels, 2, rng(), distribution=mixes, size=336)
    with pytest.raises(ConfigError, match=r"^partition.distribution=.*a positive sum in every row"):
        partition.label_distribution(labels, 2, rng(), distribution=[[0.0] * 4, [1.0] * 4])


def test_fixed_counts_and_the_split_that_dense_prints() -> None:
    labels = balanced(50_000)
    part = instantiate(OmegaConf.load(CONF / "dense_cifar10.yaml"))(labels, 5, rng())
    assert sum(part.sizes) == 50_000
    assert part.notes == ()
    assert part.counts(labels, 10)[0].tolist() == [156, 709, 301, 2629, 20, 651, 915, 113, 180, 2133]
    assert part.counts(labels, 10)[4].tolist() == [28, 1006, 1576, 35, 456, 1444, 690, 130, 1531, 507]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, 1]], r"1 rows: 2 rows, one per client"),
        ([[1, 1], [1]], r"rows of length \[2, 1\]: 2 numbers in each row"),
        ([[1, 1], [1, -1]], r"numbers >= 0"),
        ([[1, 3], [1, 3]], r"6 images of class 1: at most 5"),
        ([[1, 1, 0], [1, 1, 1]], r"1 images of class 2: at most 0"),
    ],
)
def test_fixed_counts_errors(counts: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^partition.counts=.*{message}"):
        partition.fixed_counts(balanced(10, 2), 2, rng(), counts=counts)


# --- By quantity and quality ---


def test_quantity_sizes() -> None:
    labels = balanced(1000)
    # 1000 k / 10, 1000 k^2 / 30, 1000 e^(k-4) / (1 + 1/e + 1/e^2 + 1/e^3), floored, the rest to the last.
    assert partition.quantity_linear(labels, 4, rng()).sizes == (100, 200, 300, 400)
    assert partition.quantity_square(labels, 4, rng()).sizes == (33, 133, 300, 534)
    assert partition.quantity_exponential(labels, 4, rng()).sizes == (32, 87, 236, 645)
    part = partition.quantity_explicit(labels, 3, rng(), sizes=[500, 100, 1])
    assert part.sizes == (500, 100, 1)
    assert part.notes == ("client 2: one image only", "399 of 1000 images are held by no client")
    with pytest.raises(
        ConfigError, match=r"^num_clients=20: fewer, because quantity_exponential leaves clients 0"
    ):
        partition.quantity_exponential(labels, 20, rng())
    for sizes, message in (
        ([5, 5], "3 whole numbers"),
        ([5, 5, 0], "3 whole numbers"),
        ([500, 500, 1], "at most 1000"),
    ):
        with pytest.raises(ConfigError, match=rf"^partition.sizes=.*: {message}"):
            partition.quantity_explicit(labels, 3, rng(), sizes=sizes)


def test_feature_noise_is_iid_with_rising_noise() -> None:
    labels = balanced(1000)
    part = partition.feature_noise(labels, 5, rng(), noise=0.2)
    assert part.noise_sd == pytest.approx((0.0, 0.05, 0.1, 0.15, 0.2))
    assert part.hash == partition.iid(labels, 5, rng()).hash
    assert partition.feature_noise(labels, 1, rng(), noise=0.2).noise_sd == (0.0,)
    with pytest.raises(ConfigError, match=r"^partition.noise=0.0: a number > 0"):
        partition.feature_noise(labels, 5, rng(), noise=0.0)


# --- Splits of single papers ---


def test_fedgen_keeps_a_quarter_of_mnist() -> None:
    mnist = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # training images per digit
    labels = np.repeat(np.arange(10), mnist)
    part = partition.fedgen(labels, 20, rng(), alpha=0.1)
    assert sum(part.sizes) == 15_000  # min(.5 * 60000/20, .5 N_c) = 1500 of each
    assert part.counts(labels, 10).sum(axis=0).tolist() == [1500] * 10
    assert min(part.sizes) >= 10
    assert max(part.sizes) < 1500 + 1500  # below the cap r N/K, then one class at most
    assert sum(partition.fedgen(labels, 20, rng(), alpha=1.0, ratio=1.0).sizes) == 60_000
    with pytest.raises(ConfigError, match=r"^partition.ratio=1.5: a number in \(0, 1\]"):
        partition.fedgen(labels, 20, rng(), alpha=0.1, ratio=1.5)


def test_fedgen_client_tests_follow_the_owned_classes() -> None:
    labels, test_labels = balanced(1000), balanced(203)
    part = partition.fedgen(labels, 4, rng(), alpha=0.1)
    tests = partition.client_tests(part, labels, test_labels)
    owns = part.counts(labels, 10) > 0
    for k, own in enumerate(tests):
        per_class = np.bincount(test_labels[own], minlength=10)
        assert np.array_equal(per_class, owns[k] * (np.bincount(test_labels) // 4))
    dealt = np.concatenate(tests)
    assert len(np.unique(dealt)) == len(dealt)
    first_owner = int(np.flatnonzero(owns[:, 0])[0])
    zeros = np.flatnonzero(test_labels == 0)
    assert np.isin(zeros[:5], tests[first_owner]).all()  # 21 test images of class 0, five to each owner


def test_feddf_minimum_groups_and_held_out_data() -> None:
    labels = balanced(10_000)
    part = partition.feddf(labels, 23, rng(), alpha=0.1)
    assert len(part.held_out) == 1000
    everything = np.concatenate([*part.indices, part.held_out])
    assert np.array_equal(np.sort(everything), np.arange(10_000))
    sizes = np.array(part.sizes)
    step = int(10 / 23 * 9000)
    for group, total in ((sizes[:10], step), (sizes[10:20], step), (sizes[20:], 9000 - 2 * step)):
        assert group.sum() == total
        assert group.min() >= int(0.5 * total / len(group))
    assert partition.feddf(labels, 5, rng(), alpha=0.1, holdout=0.0).notes == ()
    with pytest.raises(ConfigError, match=r"^partition.holdout=1.0: a number in \[0, 1\)"):
        partition.feddf(labels, 5, rng(), alpha=0.1, holdout=1.0)
    with pytest.raises(ConfigError, match=r"^num_clients=19: at most 18, the training images not held out"):
        partition.feddf(balanced(20), 19, rng(), alpha=0.1)


def test_n_cls_gives_consecutive_classes_to_five_clients() -> None:
    labels = balanced(1000)
    part = partition.n_cls(labels, 5, rng(), num_labels=2)
    owns = part.counts(labels, 10) > 0
    assert all(np.flatnonzero(owns[k]).tolist() == [2 * k, 2 * k + 1] for k in range(5))
    many = partition.n_cls(labels, 20, rng(), num_labels=3)
    assert many.sizes == (50,) * 20
    with pytest.raises(ConfigError, match=r"^partition.num_labels=0: a whole number >= 1"):
        partition.n_cls(labels, 5, rng(), num_labels=0)
