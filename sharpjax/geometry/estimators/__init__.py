"""Traces, diagonals and norms by random probes of the part that is not known exactly."""
