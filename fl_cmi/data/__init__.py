"""Data sets: one file per family, each with a function that returns a `Dataset`."""
