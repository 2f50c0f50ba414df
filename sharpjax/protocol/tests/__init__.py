"""Statistical tests: pure functions of samples, and the catalog that names them."""
