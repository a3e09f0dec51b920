"""Compress a trained model without data."""
