"""The terms of an inversion loss, one idea a file."""
