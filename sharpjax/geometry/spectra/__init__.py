"""Densities of eigenvalues and log-determinants, by quadrature."""
