"""Correlation coefficients of resamples: functions of how often each unit was drawn.

Each takes counts, [..., n], and returns [...]; NaN if a variable is constant. A unit drawn twice is
tied with itself, as in the resample written out.
"""

import numpy as np

from sharpjax.protocol.tests import bootstrap
from sharpjax.protocol.tests.bootstrap import Statistic
from sharpjax.protocol.tests.question import ONE_UNIT, Question, conclude, nothing_known
from sharpjax.protocol.tests.result import TestResult

CONSTANT = "a quantity does not vary"


def pearson(x: np.ndarray, y: np.ndarray) -> Statistic:
    """Pearson's r.

    >>> x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0])
    >>> float(pearson(x, y)(np.ones(3)).round(6)), round(float(np.corrcoef(x, y)[0, 1]), 6)
    (0.838628, 0.838628)
    """
    x, y = x - x.mean(), y - y.mean()

    def coefficient(counts: np.ndarray) -> np.ndarray:
        total = counts.sum(-1)
        mean_x, mean_y = counts @ x / total, counts @ y / total
        squares = counts @ (x * x) / total, counts @ (y * y) / total
        covariance = counts @ (x * y) / total - mean_x * mean_y
        variances = squares[0] - mean_x**2, squares[1] - mean_y**2
        # After the subtraction, equal values leave only rounding.
        constant = (variances[0] <= 1e-12 * squares[0]) | (variances[1] <= 1e-12 * squares[1])
        product = np.where(constant, np.nan, variances[0] * variances[1])
        return np.clip(covariance / np.sqrt(product), -1, 1)

    return coefficient


def spearman(x: np.ndarray, y: np.ndarray) -> Statistic:
    """Spearman's rho: r of the mid-ranks within the resample. Cost: n^2 per resample.

    >>> x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    >>> float(spearman(x, y)(np.ones(4)))
    0.8
    """
    below = [(np.sign(v[None, :] - v[:, None]) + 1) / 2 for v in (x, y)]

    def coefficient(counts: np.ndarray) -> np.ndarray:
        middle = counts.sum(-1, keepdims=True) / 2
        rank_x, rank_y = counts @ below[0] - middle, counts @ below[1] - middle
        covariance = (counts * rank_x * rank_y).sum(-1)
        product = (counts * rank_x**2).sum(-1) * (counts * rank_y**2).sum(-1)
        return np.clip(covariance / np.sqrt(np.where(product > 0, product, np.nan)), -1, 1)

    return coefficient


def kendall(x: np.ndarray, y: np.ndarray) -> Statistic:
    """Kendall's tau-b. Cost: n^2 per resample.

    >>> x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    >>> round(float(kendall(x, y)(np.ones(4))), 6)
    0.666667
    """
    signs = (np.sign(v[:, None] - v[None, :]) for v in (x, y))
    concordance = np.prod(list(signs), 0).astype(np.float32)
    equal = [_groups(v) for v in (x, y)]

    def untied(counts: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        sums = counts if groups is None else counts @ groups
        return np.asarray(counts.sum(-1) ** 2 - _dot(sums, sums), np.float64)

    def coefficient(counts: np.ndarray) -> np.ndarray:
        counts = _whole(counts)
        product = untied(counts, equal[0]) * untied(counts, equal[1])
        root = np.sqrt(np.where(product > 0, product, np.nan))
        return np.clip(_dot(counts @ concordance, counts) / root, -1, 1)

    return coefficient


def _groups(values: np.ndarray) -> np.ndarray | None:
    """Which units have each distinct value, [n, distinct]; None if no two are equal.

    >>> _groups(np.array([2.0, 1.0, 2.0]))
    array([[0., 1.],
           [1., 0.],
           [0., 1.]], dtype=float32)
    """
    distinct = np.unique(values)
    equal = (values[:, None] == distinct).astype(np.float32)
    return None if distinct.size == values.size else equal


def _whole(counts: np.ndarray) -> np.ndarray:
    """Counts in a type in which sums of products of two of them are exact: below 4,096 units in
    float32, which takes a third of the time of float64.

    >>> _whole(np.ones((2, 3))).dtype, _whole(np.full((1, 2), 3000.0)).dtype
    (dtype('float32'), dtype('float64'))
    """
    return counts.astype(np.float32) if counts.sum(-1).max(initial=0) < 2**12 else counts


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...n,...n->...", a, b)


def resampled(
    question: Question, statistic: Statistic, floor: float, strata: tuple[int, ...] | None = None
) -> TestResult:
    """Interval and p of a statistic with bounds, by drawing units, or clusters of them.

    If every resample is at a bound (a perfect rank correlation in each seed), units that deviate
    may just not be in the sample. A share s of them would change the statistic by s (high - low) at
    most, and with probability (1 - s)^n none of them is among n units (Clopper and Pearson). That
    is p of the null at that distance from the bound; p of the middle is 2^-n.

    Args:
        floor: the smallest one-sided p.
        strata: sizes, as in `bootstrap.bca`; None: units are the same in all groups.
    """
    few = question.units if strata is None else min(strata)
    drawn = bootstrap.bca(
        statistic, strata or question.sizes[:1], clusters=question.clusters, seed=question.seed
    )
    if drawn.undefined == 1:
        why = CONSTANT if few > 1 else ONE_UNIT
        return nothing_known(question, drawn.estimate, why, floor if few > 1 else 1.0)
    (low, high), replicates = question.bounds, drawn.replicates
    at = replicates[0] if replicates[0] == replicates[-1] else None
    if at not in (low, high):
        return bootstrap.infer(question, drawn, floor)
    share = (question.null - low) / (high - low)
    p = (share if at == high else 1 - share) ** few

    def interval(confidence: float) -> tuple[float, float]:
        reach = (high - low) * (1 - ((1 - confidence) / 2) ** (1 / few))
        return (high - reach, high) if at == high else (low, low + reach)

    tails = (p, 1.0) if at == high else (1.0, p)
    return conclude(question, drawn.estimate, interval, *tails, floor)
