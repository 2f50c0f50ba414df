"""Turns p-values and intervals into verdicts."""
