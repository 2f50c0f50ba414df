"""The Hilbert-Schmidt independence criterion of linear kernels, in whichever form is smaller.

With K = X X' and L = Y Y' for centred X, [N, d], and Y, [N, e], the estimates need only

    <K, L> = sum_ij K_ij L_ij = ||X'Y||_F^2,     p_i = K_ii,  q_i = L_ii

A matrix with more features than examples is stored as its Gram matrix, [N, N]; other matrices are
stored as they are.
"""

from typing import NamedTuple

import numpy as np


class Kernel(NamedTuple):
    """A linear kernel of centred features.

    Attributes:
        matrix: the features [N, d], or the Gram matrix [N, N].
        is_gram: whether `matrix` is the Gram matrix.
        squares: [N], the squared norms of the rows of the features.
        own: <K, K>.
    """

    matrix: np.ndarray
    is_gram: bool
    squares: np.ndarray
    own: float


def kernel(x: np.ndarray) -> Kernel:
    """The kernel of centred features [N, d].

    Cost: N^2 d multiplications if N < d, else N d^2.
    """
    squares = np.einsum("ij,ij->i", x, x)
    is_gram = x.shape[0] < x.shape[1]
    found = Kernel(x @ x.T if is_gram else x, is_gram, squares, 0.0)
    return found._replace(own=inner(found, found))


def inner(a: Kernel, b: Kernel) -> float:
    """<K, L>. Cost: N^2 multiplications for two Gram matrices, N d e for features."""
    if a.is_gram and b.is_gram:
        return float(np.vdot(a.matrix, b.matrix))
    if a.is_gram or b.is_gram:
        gram, x = (a, b) if a.is_gram else (b, a)
        return float(np.vdot(x.matrix, gram.matrix @ x.matrix))
    product = a.matrix.T @ b.matrix
    return float(np.vdot(product, product))


def biased(a: Kernel, b: Kernel) -> float:
    """<K, L> / (N - 1)^2 (Gretton et al., 2005)."""
    return inner(a, b) / (len(a.squares) - 1) ** 2


def unbiased(a: Kernel, b: Kernel) -> float:
    """The unbiased estimate (Song et al., 2012, JMLR 13), for N >= 4. Its mean is 0 if the two are
    independent.

    It is the sum over i != j of U_ij V_ij / (N (N - 3)). U and V are K and L with the diagonal set
    to 0, then U-centred. For centred features that is

        (<K, L> - N/(N - 2) sum_i p_i q_i + sum_i p_i sum_i q_i / ((N - 1)(N - 2))) / (N (N - 3))

    For a matrix with itself it is a sum of squares: it may be 0, and only rounding makes it
    negative.
    """
    n, p, q = len(a.squares), a.squares, b.squares
    diagonal = n / (n - 2) * np.dot(p, q) - p.sum() * q.sum() / ((n - 1) * (n - 2))
    return float(inner(a, b) - diagonal) / (n * (n - 3))
