"""Centred kernel alignment of linear kernels (Kornblith et al., 2019, arXiv 1905.00414)."""

import math
from typing import Any

import numpy as np

from sharpjax.metrics.representation import hsic
from sharpjax.metrics.representation.measure import Measure, centred, of_unit_norm

# Least ratio of unbiased to biased self-similarity: below it, rounding has cost five digits.
ROUNDING = 1e-10


def cka(a: Any, b: Any, *, biased: bool = False) -> float:
    """Linear CKA, HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), in [-1, 1]. It is 1 if the features are
    equal up to an orthogonal map, scale and translation.

    HSIC is the unbiased estimate of Song et al. (`hsic.unbiased`). For independent features the
    mean of CKA is 0 to O(1/N). With `biased`, CKA is ||b'a||_F^2 / (||a'a||_F ||b'b||_F) of centred
    columns, in [0, 1]. For independent Gaussian features this is about d / (N + d), for example 0.6
    for 64 examples with 100 features. So with `biased`, independent networks seem similar unless N
    is much larger than d.

    Cost: N (d^2 + e^2 + d e) multiplications in features, or N^2 (d + e + 1) in Gram matrices,
    whichever is smaller for each matrix. The error is some 1e-15 over r, with r the ratio of the
    unbiased to the biased HSIC(a, a). If r is below 1e-10 the result is NaN. It is also NaN for
    constant features, and for features that are constant except in one example.

    Args:
        a: [N, d].
        b: [N, e].
        biased: use the biased estimate.

    Raises:
        UserError: not two matrices of the same examples; fewer than 4 examples (biased: 2); a
            feature is not finite; inside a trace.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> rotated = x @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> round(cka(x, 3 * rotated + 1), 12)
    1.0
    """
    return (BIASED if biased else UNBIASED)(a, b)


def ratio(products: Any, own: Any, other: Any) -> Any:
    """products / sqrt(own other); NaN if `own` or `other` is not above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((own > 0) & (other > 0), products / np.sqrt(own * other), np.nan)


def self_similarity(a: hsic.Kernel) -> float:
    """The unbiased HSIC(a, a); NaN if it is lost in rounding."""
    n = len(a.squares)
    found = hsic.unbiased(a, a)
    return found if found > ROUNDING * a.own / (n * (n - 3)) else math.nan


def _prepare(x: np.ndarray) -> hsic.Kernel:
    return hsic.kernel(of_unit_norm(centred(x)))


def _unbiased(a: hsic.Kernel, b: hsic.Kernel) -> float:
    return float(ratio(hsic.unbiased(a, b), self_similarity(a), self_similarity(b)))


def _biased(a: hsic.Kernel, b: hsic.Kernel) -> float:
    return float(ratio(hsic.inner(a, b), a.own, b.own))


UNBIASED = Measure(
    "cka", _prepare, _unbiased,
    larger_is_more_similar=True, symmetric=True, is_metric=False,
    invariances=frozenset({"permutation", "orthogonal", "scale", "translation"}), least=4,
)  # fmt: skip
BIASED = Measure(
    "cka_biased", _prepare, _biased,
    larger_is_more_similar=True, symmetric=True, is_metric=False,
    invariances=frozenset({"permutation", "orthogonal", "scale", "translation"}),
    function="cka",
)  # fmt: skip
