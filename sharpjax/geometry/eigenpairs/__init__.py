"""Extreme eigenpairs: searches, when they have converged, warm starts, overlaps."""
