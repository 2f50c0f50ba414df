"""Two concentric circles: sharpness against how tight the boundary must be (arXiv 2510.12451)."""
