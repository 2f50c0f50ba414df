"""What SAM finds, and how sharp it is."""
