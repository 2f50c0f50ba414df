"""Operators: Hessians, Gauss-Newton and Fisher matrices, blocks, sums, means over data sets."""
