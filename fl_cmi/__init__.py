"""Federated learning with data-free knowledge distillation by contrastive model inversion."""

__version__ = "0.1.0"
