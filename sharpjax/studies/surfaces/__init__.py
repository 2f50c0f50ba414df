"""Seven surfaces that a small net regresses, and how sharp it is on the way."""
