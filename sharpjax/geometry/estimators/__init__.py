"""Traces, diagonals and norms by random probes, with what is known taken out."""
