"""Losses: their parts, what they read, and the checks before a result relies on them."""
