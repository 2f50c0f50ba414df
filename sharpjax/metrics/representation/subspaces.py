"""How well the features of one span those of the other: canonical correlations, regression."""

import math
from typing import Any, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.metrics.representation.measure import Measure, centred, of_unit_norm


def svcca(a: Any, b: Any, *, share: float = 0.99) -> float:
    """The mean canonical correlation of the largest principal components, in [0, 1]
    (Raghu et al., 2017, arXiv 1706.05806).

    Each matrix of centred features is reduced to the fewest principal components that hold `share`
    of its variance, with orthonormal bases U, [N, m], and V, [N, n]. The result is the mean of the
    singular values of U'V. It is informative only if m + n is well below N. For independent
    features with m = n it is some 0.85 sqrt(m / N), and if m + n exceeds N - 1, correlations of 1
    are forced. NaN for constant features.

    Cost: an SVD of each matrix, some 10 N d min(N, d) multiplications.

    Args:
        a: [N, d].
        b: [N, e].
        share: share of the variance, in (0, 1].

    Raises:
        UserError: not two matrices of the same examples; `share` is not in (0, 1]; a feature is not
            finite; inside a trace.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> round(svcca(x, 3 * x[:, ::-1] - 1), 12)
    1.0
    """
    return SVCCA(a, b, share=share)


def linear_regression(a: Any, b: Any) -> float:
    """The share of the variance of `b` that a linear map of `a` explains, in [0, 1].

    R^2 = 1 - min_W ||b - a W||_F^2 / ||b||_F^2 of centred columns, measured on the examples of the
    fit. So with as many features in `a` as examples it is 1. It is not symmetric: an invertible map
    of `a` does not change it, one of `b` does. NaN if `b` is constant.

    Cost: an SVD of each matrix, and N d e multiplications.

    Args:
        a: [N, d].
        b: [N, e].

    Raises:
        UserError: not two matrices of the same examples; a feature is not finite; inside a trace.

    >>> x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> [round(r, 12) for r in (linear_regression(x, x[:, :1]), linear_regression(x[:, :1], x))]
    [1.0, 0.5]
    """
    return REGRESSION(a, b)


class _Centred(NamedTuple):
    basis: np.ndarray
    features: np.ndarray


def _basis(x: np.ndarray, share: float = 1.0) -> np.ndarray:
    """The fewest orthonormal columns, [N, m], that hold `share` of the variance of `x`, centred."""
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"metrics.representation.svcca: share={share!r}; give a share in (0, 1].")
    left, values, _ = np.linalg.svd(of_unit_norm(x), full_matrices=False)
    rank = np.count_nonzero(values > max(x.shape) * np.finfo(float).eps * values[0])
    held = np.cumsum(values**2)
    enough = np.searchsorted(held, share * held[-1] * (1 - 1e-12)) + 1
    return left[:, : min(rank, int(enough))]


def _prepare_svcca(x: np.ndarray, share: float = 0.99) -> np.ndarray:
    return _basis(centred(x), share)


def _svcca(a: np.ndarray, b: np.ndarray) -> float:
    if not (a.size and b.size):
        return math.nan
    return float(np.mean(np.linalg.svd(a.T @ b, compute_uv=False)))


def _prepare_regression(x: np.ndarray) -> _Centred:
    x = of_unit_norm(centred(x))
    return _Centred(_basis(x), x)


def _regression(a: _Centred, b: _Centred) -> float:
    if not b.features.any():
        return math.nan
    return float(np.sum(np.square(a.basis.T @ b.features)))


SVCCA = Measure(
    "svcca", _prepare_svcca, _svcca,
    larger_is_more_similar=True, symmetric=True, is_metric=False,
    invariances=frozenset({"permutation", "orthogonal", "scale", "translation"}),
)  # fmt: skip
REGRESSION = Measure(
    "linear_regression", _prepare_regression, _regression,
    larger_is_more_similar=True, symmetric=False, is_metric=False,
    invariances=frozenset({"permutation", "orthogonal", "scale", "translation"}),
)  # fmt: skip
