"""Extreme eigenpairs: searches, convergence tests, warm starts, overlaps."""
