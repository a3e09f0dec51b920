"""Clients that do harm on purpose: what they train on and what they send. The server is told nothing."""
