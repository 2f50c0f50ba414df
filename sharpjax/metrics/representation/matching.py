"""Whether single features can be matched one to one (Li et al., 2016, arXiv 1511.07543)."""

import math
from typing import Any

import numpy as np
from scipy import optimize

from sharpjax.metrics.representation.measure import Measure, centred


def correlation_match(a: Any, b: Any) -> float:
    """The mean correlation of features under the best one-to-one assignment, in [-1, 1].

    max_P 1/m sum_k r(a_k, b_P(k)), m = min(d, e), with r Pearson's correlation over examples. The
    correlation with a constant feature counts as 0. NaN if all features of one matrix are constant.

    Cost: N d e multiplications, and a d x e assignment problem, some m^2 max(d, e).

    Args:
        a: [N, d].
        b: [N, e].

    Raises:
        UserError: not two matrices of the same two or more examples; a feature is not finite;
            inside a trace.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0]])
    >>> round(correlation_match(x, 5 * x[:, ::-1] + 1), 12)
    1.0
    """
    return CORRELATION_MATCH(a, b)


def _prepare(x: np.ndarray) -> np.ndarray:
    """Each column centred and scaled to unit norm; 0 if it is constant."""
    x = centred(x)
    size = np.abs(x).max(axis=0)
    x = x / np.where(size > 0, size, 1.0)
    return x / np.where(size > 0, np.linalg.norm(x, axis=0), 1.0)


def _compare(a: np.ndarray, b: np.ndarray) -> float:
    if not (a.any() and b.any()):
        return math.nan
    correlation = a.T @ b
    chosen = optimize.linear_sum_assignment(correlation, maximize=True)
    return float(correlation[chosen].mean())


CORRELATION_MATCH = Measure(
    "correlation_match", _prepare, _compare,
    larger_is_more_similar=True, symmetric=True, is_metric=False,
    invariances=frozenset({"permutation", "scale", "translation"}),
)  # fmt: skip
