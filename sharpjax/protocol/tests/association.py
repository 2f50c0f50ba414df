"""Correlation coefficients of resamples: functions of how often each unit was drawn.

Each takes counts, [..., n], and returns [...]; NaN where a variable is constant. A unit drawn
twice is a tie with itself, as in the resample written out.
"""

import numpy as np

from sharpjax.protocol.tests import bootstrap
from sharpjax.protocol.tests.bootstrap import Statistic
from sharpjax.protocol.tests.question import Question
from sharpjax.protocol.tests.result import TestResult, nothing_known


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
        # What is left of equal values after the subtraction is rounding.
        constant = (variances[0] <= 1e-12 * squares[0]) | (variances[1] <= 1e-12 * squares[1])
        product = np.where(constant, np.nan, variances[0] * variances[1])
        return np.clip(covariance / np.sqrt(product), -1, 1)

    return coefficient


def spearman(x: np.ndarray, y: np.ndarray) -> Statistic:
    """Spearman's rho: r of the mid-ranks within the resample. Cost: n^2 a resample.

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
    """Kendall's tau-b. Cost: n^2 a resample.

    >>> x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    >>> round(float(kendall(x, y)(np.ones(4))), 6)
    0.666667
    """
    sign_x, sign_y = (np.sign(v[:, None] - v[None, :]) for v in (x, y))
    concordance = sign_x * sign_y
    differs_x, differs_y = np.abs(sign_x), np.abs(sign_y)

    def pairs(counts: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        return (counts @ matrix * counts).sum(-1)

    def coefficient(counts: np.ndarray) -> np.ndarray:
        product = pairs(counts, differs_x) * pairs(counts, differs_y)
        root = np.sqrt(np.where(product > 0, product, np.nan))
        return np.clip(pairs(counts, concordance) / root, -1, 1)

    return coefficient


def resampled(
    question: Question,
    statistic: Statistic,
    floor: float,
    *,
    strata: tuple[int, ...] | None = None,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> TestResult:
    """Interval and p of a statistic within bounds, by drawing units, or clusters of them.

    Where every resample is at a bound, as with a perfect rank correlation in each seed, units
    astray may have gone unseen (`_unseen`), each of which takes off as much as there is.

    Args:
        floor: the smallest one-sided p.
        strata: sizes, as in `bootstrap.bca`; None: units are the same in all groups.
    """
    clusters = question.clusters
    strata, few = (question.sizes[:1], question.units) if strata is None else (strata, min(strata))
    drawn = bootstrap.bca(statistic, strata, clusters=clusters, seed=question.seed)
    if drawn.undefined == 1:
        return nothing_known(drawn.estimate, question.sizes)
    result = bootstrap.infer(question, drawn, floor, bounds=bounds)

    def interval(confidence: float) -> tuple[float, float]:
        low, high = result.interval(confidence)
        reach = (bounds[1] - bounds[0]) * _unseen(few, confidence)
        if low == high == bounds[1]:
            low = high - reach
        elif low == high == bounds[0]:
            high = low + reach
        return low, high

    return result._replace(interval=interval)


def _unseen(num_units: int, confidence: float) -> float:
    """The largest share of stray units that is compatible with none among `num_units`.

    Clopper and Pearson's 1 - (alpha / 2)^(1 / n). Where groups are wholly apart all resamples say
    so, and a bootstrap interval has no width.

    >>> round(_unseen(10, 0.95), 3)
    0.308
    """
    return 1 - ((1 - confidence) / 2) ** (1 / num_units)
