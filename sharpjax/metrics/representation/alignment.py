"""Centred kernel alignment of linear kernels (Kornblith et al., 2019, arXiv 1905.00414)."""

import math
from typing import Any

import numpy as np

from sharpjax.metrics.representation import hsic
from sharpjax.metrics.representation.measure import Measure, centred, of_unit_norm

# The self-similarity that is left of the biased one: below, rounding has taken five digits.
ROUNDING = 1e-10


def cka(a: Any, b: Any, *, biased: bool = False) -> float:
    """Linear CKA, HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), in [-1, 1]; 1: equal up to an
    orthogonal map, scale and translation.

    HSIC is the unbiased estimate of Song et al. (`hsic.unbiased`): of independent features CKA is 0
    in the mean to O(1/N). With `biased` it is ||b'a||_F^2 / (||a'a||_F ||b'b||_F) of centred
    columns, in [0, 1], which for independent Gaussian features is about d / (N + d): 0.6 of 64
    examples with 100 features. Independent networks seem alike by it whenever N is not much
    larger than d.

    Cost: in features N (d^2 + e^2 + d e) multiplications, or in Gram matrices N^2 (d + e + 1),
    matrix by matrix by what is smaller. The error is some 1e-15 over the share of HSIC(a, a) that
    the unbiased estimate leaves of the biased one; where that is below 1e-10 the result is NaN, as
    it is of constant features, or of features that are constant but for one example.

    Args:
        a: [N, d].
        b: [N, e].
        biased: whether the biased estimate is taken.

    Raises:
        UserError: not two matrices of the same examples; fewer than 4 (biased: 2).

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> rotated = x @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> round(cka(x, 3 * rotated + 1), 12)
    1.0
    """
    return (BIASED if biased else UNBIASED)(a, b)


def ratio(products: Any, own: Any, other: Any) -> Any:
    """Products over the square root of `own` times `other`, NaN where one of these is not > 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((own > 0) & (other > 0), products / np.sqrt(own * other), np.nan)


def self_similarity(a: hsic.Kernel) -> float:
    """HSIC(a, a), unbiased; NaN where rounding is all that is left of it."""
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
