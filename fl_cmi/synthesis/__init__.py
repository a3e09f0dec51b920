"""Finding images that the teachers recognize."""
