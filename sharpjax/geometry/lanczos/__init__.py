"""Lanczos processes, with a basis and without, and their Ritz values."""
