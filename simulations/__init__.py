"""Comparisons: many runs by one command, and a table of what came out. Not part of the installed package."""
