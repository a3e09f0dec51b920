"""What is fast, by how much: timings of two ways to do the same, taken in turn."""
