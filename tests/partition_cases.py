"""The partition procedures with arguments that suit 7 clients, and labels to split."""

from pathlib import Path
from typing import Any

import numpy as np

from fl_cmi import partition

CONF = Path(__file__).parents[1] / "conf" / "partition"
FILES = sorted(path.stem for path in CONF.glob("*.yaml"))

WHOLE = [  # procedures that give every image to exactly one client, whatever N and K
    (partition.iid, {}),
    (partition.dirichlet_class, {"alpha": 0.5}),
    (partition.dirichlet_class_uncapped, {"alpha": 0.5}),
    (partition.dirichlet_client, {"alpha": 0.3}),
    (partition.dirichlet_client, {"alpha": 0.3, "sigma": 0.7}),
    (partition.quantity_dirichlet, {"beta": 1.0}),
    (partition.quantity_linear, {}),
    (partition.quantity_square, {}),
    (partition.feature_noise, {"noise": 0.1}),
]
PARTS = [  # procedures that may leave images out
    (partition.shards, {"shards_per_client": 2}),
    (partition.labels_per_client, {"num_labels": 3}),
    (partition.n_cls, {"num_labels": 2}),
    (partition.fedgen, {"alpha": 1.0}),
    (partition.feddf, {"alpha": 0.5}),
    (partition.quantity_explicit, {"sizes": [40, 30, 20, 10, 5, 1, 7]}),
    (partition.label_distribution, {"distribution": [[1.0 + (k == c) for c in range(10)] for k in range(7)]}),
    (partition.fixed_counts, {"counts": [[k + c for c in range(10)] for k in range(7)]}),
]
OVERLAP = (partition.dirichlet_client_overlap, {"alpha": 0.3})
ALPHAS = [
    partition.dirichlet_class,
    partition.dirichlet_class_uncapped,
    partition.dirichlet_client,
    partition.fedgen,
    partition.feddf,
    OVERLAP[0],
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def balanced(num_images: int, num_classes: int = 10) -> np.ndarray:
    """Shuffled labels, as many of each class as possible."""
    return rng(99).permutation(np.arange(num_images) % num_classes)


def named(case: Any) -> str:
    return case.__name__ if callable(case) else ""
