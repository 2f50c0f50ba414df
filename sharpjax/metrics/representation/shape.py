"""Distances after the best orthogonal map (Williams et al., 2021, arXiv 2110.14739)."""

import math
from typing import Any

import numpy as np

from sharpjax.metrics.representation.measure import Measure, centred, of_unit_norm


def procrustes(a: Any, b: Any) -> float:
    """The size-and-shape distance, min_Q ||a - b Q||_F over orthogonal Q, of centred columns.

    Its square is ||a||_F^2 + ||b||_F^2 - 2 ||b'a||_*, with the nuclear norm. It is computed as the
    norm of the difference itself, because the square root of a small difference of large numbers
    would be right only to 1e-8. It is in the units of the features, and grows as sqrt(N). The
    narrower matrix is padded with features that are 0. A metric.

    Cost: an SVD of a D x D matrix, D = min(N, max(d, e)), and N D^2 multiplications.

    Args:
        a: [N, d].
        b: [N, e].

    Raises:
        UserError: not two matrices of the same two or more examples; a feature is not finite;
            inside a trace.

    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> procrustes(x, 2 * x[:, ::-1]), procrustes(x, x + 5)
    (1.4142135623730951, 0.0)
    """
    return PROCRUSTES(a, b)


def normalized_procrustes(a: Any, b: Any) -> float:
    """`procrustes` of centred features divided by their Frobenius norm, sqrt(2 - 2 ||b'a||_*), in
    [0, sqrt 2]; NaN for constant features. A metric. Cost and errors are those of `procrustes`.

    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> normalized_procrustes(x, 2 * x[:, ::-1])
    0.0
    """
    return NORMALIZED(a, b)


def angular_distance(a: Any, b: Any) -> float:
    """The angular shape metric arccos ||b'a||_* of centred features of unit norm, in [0, pi / 2].

    It is computed as 2 arcsin(d / 2) with d = `normalized_procrustes`; NaN for constant features. A
    metric. Cost and errors are those of `procrustes`.

    >>> one, other = np.array([[1.0], [-1.0], [0.0]]), np.array([[0.5], [0.5], [-1.0]])
    >>> round(angular_distance(one, other), 6)
    1.570796
    """
    return ANGULAR(a, b)


def _prepare(x: np.ndarray) -> np.ndarray:
    """Centred features; if d > N, replaced by N features with the same Gram matrix."""
    x = centred(x)
    return np.asarray(np.linalg.qr(x.T, mode="r")).T if x.shape[0] < x.shape[1] else x


def _prepare_normalized(x: np.ndarray) -> np.ndarray:
    return of_unit_norm(_prepare(x))


def _compare(a: np.ndarray, b: np.ndarray) -> float:
    width = max(a.shape[1], b.shape[1])
    a, b = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (a, b))
    left, _, right = np.linalg.svd(b.T @ a)
    return float(np.linalg.norm(a - b @ (left @ right)))


def _compare_normalized(a: np.ndarray, b: np.ndarray) -> float:
    return _compare(a, b) if a.any() and b.any() else math.nan


def _compare_angular(a: np.ndarray, b: np.ndarray) -> float:
    half = _compare_normalized(a, b) / 2
    return 2 * math.asin(min(half, 1.0)) if half == half else math.nan


PROCRUSTES = Measure(
    "procrustes", _prepare, _compare,
    larger_is_more_similar=False, symmetric=True, is_metric=True,
    invariances=frozenset({"permutation", "orthogonal", "translation"}),
)  # fmt: skip
NORMALIZED = Measure(
    "normalized_procrustes", _prepare_normalized, _compare_normalized,
    larger_is_more_similar=False, symmetric=True, is_metric=True,
    invariances=frozenset({"permutation", "orthogonal", "scale", "translation"}),
)  # fmt: skip
ANGULAR = Measure(
    "angular_distance", _prepare_normalized, _compare_angular,
    larger_is_more_similar=False, symmetric=True, is_metric=True,
    invariances=frozenset({"permutation", "orthogonal", "scale", "translation"}),
)  # fmt: skip
