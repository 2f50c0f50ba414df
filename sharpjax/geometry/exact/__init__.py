"""Exact traces and diagonals, by the structure of the model."""
