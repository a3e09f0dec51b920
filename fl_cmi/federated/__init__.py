"""Federated methods, free of Flower: what clients do beside plain training, and the server's formulas."""
