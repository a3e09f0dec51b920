"""Named, paper-exact partitions of a labelled training set among clients.

A procedure maps labels (N,), the number of clients K and a numpy generator to a `Partition`; its own
parameters are keyword arguments. "Dir(alpha)" means at least five procedures in published work, so each has a
name of its own.

Shape letters: K clients, C classes, N images.
"""

from fl_cmi.partition.client_prior import dirichlet_client, dirichlet_client_overlap
from fl_cmi.partition.dirichlet import dirichlet_class, dirichlet_class_uncapped
from fl_cmi.partition.flower_adapter import flower_datasets
from fl_cmi.partition.held_out import hold_out
from fl_cmi.partition.labels import fixed_counts, label_distribution, labels_per_client, shards
from fl_cmi.partition.published import client_tests, feddf, fedgen, n_cls
from fl_cmi.partition.quantity import (
    feature_noise,
    iid,
    quantity_dirichlet,
    quantity_explicit,
    quantity_exponential,
    quantity_linear,
    quantity_square,
)
from fl_cmi.partition.types import Partition

__all__ = [
    "Partition",
    "client_tests",
    "dirichlet_class",
    "dirichlet_class_uncapped",
    "dirichlet_client",
    "dirichlet_client_overlap",
    "feature_noise",
    "feddf",
    "fedgen",
    "fixed_counts",
    "flower_datasets",
    "hold_out",
    "iid",
    "label_distribution",
    "labels_per_client",
    "n_cls",
    "quantity_dirichlet",
    "quantity_explicit",
    "quantity_exponential",
    "quantity_linear",
    "quantity_square",
    "shards",
]
