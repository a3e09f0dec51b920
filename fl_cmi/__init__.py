"""Federated learning with data-free knowledge distillation by contrastive model inversion."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fl_cmi")
except PackageNotFoundError:  # a source tree that is on the path but not installed
    __version__ = "unknown"
