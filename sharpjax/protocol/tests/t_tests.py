"""Tests of means by Student's t: of difference, of equivalence, of non-inferiority."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.tests import exact
from sharpjax.protocol.tests.question import (
    RESOLUTION,
    RESOLUTION_OF_FLOAT32,
    Question,
    conclude,
)
from sharpjax.protocol.tests.result import TestResult


def paired_t(question: Question) -> TestResult:
    """Paired t test: t = (mean of d - null) / (s / sqrt(n)) on n - 1 degrees of freedom.

    The effect is the mean difference, first group less second; a single group holds the differences
    themselves. With K clusters, the standard error is that of their sums, on at most K - 1 degrees
    of freedom (see `of_pairs`). With one unit, p = 1. If the differences have no spread, p is that
    of the sign-flip test: 2^-n in the direction that they have (see `Location`).
    """
    return _against(question, of_pairs(question))


def welch(question: Question) -> TestResult:
    """Welch's t test: variances are not assumed equal, degrees of freedom by Satterthwaite.

    The effect is the difference of means, first group less second. With a group of one unit, p = 1.
    If neither group has any spread, p is that of the permutation test: 1 / C(n1 + n2, n1) in the
    direction of the difference (see `Location`).
    """
    return _against(question, of_two_groups(question))


def tost(question: Question) -> TestResult:
    """Two one-sided Welch tests: are the means of two groups closer than `margin`?

    p is the larger of the two one-sided p against null - margin and null + margin (Schuirmann
    1987). So p <= alpha means that the interval at confidence 1 - 2 alpha lies inside the margin.
    opposite_p is for a difference beyond the margin. It is twice the smaller outward one-sided p,
    so it is at most alpha if the interval at confidence 1 - alpha lies wholly outside. `null` is
    the centre.

    Raises:
        UserError: a direction.
    """
    if question.alternative != "two-sided":
        raise UserError(
            f"alternative={question.alternative!r}; equivalence is 'two-sided', and for one side "
            "there is non-inferiority."
        )
    mean = of_two_groups(question)
    low, high = question.null - question.margin, question.null + question.margin
    p = max(mean.greater(low), mean.less(high))
    beyond = min(1.0, 2 * min(mean.greater(high), mean.less(low)))
    return _against(question, mean)._replace(p=p, opposite_p=beyond)


def non_inferiority(question: Question) -> TestResult:
    """One-sided Welch test that the first group is not worse than the second by the margin.

    'greater' means that larger is better: p is against a difference of null - margin, and is small
    if the first group is not lower by that much. 'less' means that smaller is better: p is against
    null + margin. opposite_p is for the first group being worse by more than the margin.

    Raises:
        UserError: the alternative 'two-sided'.
    """
    return _against(_at_margin(question), of_two_groups(question))


def paired_non_inferiority(question: Question) -> TestResult:
    """One-sided paired t test that the first group is not worse than the second by the margin.

    p is as in `non_inferiority`; the mean and its clusters are as in `paired_t`.

    Raises:
        UserError: the alternative 'two-sided'.
    """
    return _against(_at_margin(question), of_pairs(question))


class Location(NamedTuple):
    """An estimate with a standard error on `df` degrees of freedom.

    If the values do not spread at all, t has no scale, and its limit, p = 0, would claim certainty
    from two equal numbers. Then the tails are those of the permutation (sign-flip) test of the same
    data: `floor` for an estimate on the right side of the null, 1 for the others.

    Attributes:
        error: 0 if there is no spread; infinite if it cannot be estimated (one unit).
        floor: if there is no spread, the one-sided p of a permutation test of these sizes.
        resolution: differences below this are rounding.
    """

    estimate: float
    error: float
    df: float
    floor: float
    resolution: float

    def greater(self, null: float) -> float:
        """P of an estimate this large or larger if the true one is `null`."""
        return self._above(self.estimate - null)

    def less(self, null: float) -> float:
        """P of an estimate this small or smaller if the true one is `null`."""
        return self._above(null - self.estimate)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided; infinite if no spread is known."""
        half = float(special.stdtrit(self.df, 0.5 + confidence / 2)) * self.error
        return self.estimate - half, self.estimate + half

    @property
    def least(self) -> float:
        """The smallest p that data of these sizes can give: 0, or 1 if no spread is known."""
        return 1.0 if math.isinf(self.error) else 0.0

    def _above(self, excess: float) -> float:
        if math.isinf(self.error):
            return 1.0
        if self.error == 0:
            return self.floor if excess > self.resolution else 1.0
        return float(special.stdtr(self.df, -excess / self.error))


def differences(question: Question) -> tuple[np.ndarray, float]:
    """First group less second, or the single group; and how much of that is rounding.

    Models compute in float32. If float32 holds every value, and not all are whole numbers, the
    values are taken to be rounded to it: a difference of 3 images in 360 is .00833332 or .00833335.
    """
    groups = question.groups
    values = np.concatenate(groups)
    scale = float(np.abs(values).max())
    in_float32 = _in_float32(values) and bool((values != np.rint(values)).any())
    resolution = (RESOLUTION_OF_FLOAT32 if in_float32 else RESOLUTION) * scale
    return groups[0] if len(groups) == 1 else groups[0] - groups[1], resolution


def _in_float32(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float32) == values).all())


def of_pairs(question: Question) -> Location:
    """Mean of the differences; each cluster is one unit for its error.

    error^2 = sum_k (sum over cluster k of d_i - mean)^2 / (1 - n_k / n) / n^2, of n_k units in
    cluster k (Bell & McCaffrey 2002, Survey Methodology 28). It has K - 1 degrees of freedom if all
    clusters are of one size (`_freedom`). If units are independent, this is s^2 / n on n - 1.
    """
    (d, resolution), k = differences(question), question.units
    mean = float(d.mean())
    if k == 1:
        return Location(mean, math.inf, 1.0, 1.0, resolution)
    sizes, sums = question.totals(np.ones(d.size)), question.totals(d - mean)
    error = math.sqrt(float(np.sum(sums**2 / (1 - sizes / d.size)))) / d.size
    if error <= resolution:
        return Location(mean, 0.0, k - 1.0, 2.0**-k, resolution)
    return Location(mean, error, _freedom(sizes), 0.0, resolution)


def _freedom(sizes: np.ndarray) -> float:
    """Degrees of freedom of the squared error of a mean over clusters of these sizes.

    error^2 is a quadratic form of the clusters' sums. Its degrees of freedom, 2 mean^2 / variance,
    are those of normal units (Satterthwaite) that are independent, or equal within a cluster,
    whichever are fewer.

    >>> _freedom(np.full(4, 3.0)), round(_freedom(np.array([30.0, 1.0, 1.0, 1.0])), 1)
    (3.0, 1.0)
    """
    k = sizes.size
    if (sizes == sizes[0]).all():
        return k - 1.0
    share = sizes / sizes.sum()
    residual = np.eye(k) - np.expand_dims(share, 1)  # of the sums, from their share of the whole
    scaled = residual / np.expand_dims(np.sqrt(1 - share), 1)
    forms = (scaled * spread @ scaled.T for spread in (sizes, sizes**2))
    return min(float(np.trace(form) ** 2 / np.sum(form**2)) for form in forms)


def of_two_groups(question: Question) -> Location:
    """First mean less second, variances not assumed equal (Welch-Satterthwaite)."""
    x, y = question.groups
    n = question.sizes
    difference = float(x.mean() - y.mean())
    resolution = RESOLUTION * float(max(np.abs(x).max(), np.abs(y).max()))
    if min(n) == 1:
        return Location(difference, math.inf, 1.0, 1.0, resolution)
    a, b = float(x.var(ddof=1)) / n[0], float(y.var(ddof=1)) / n[1]
    error = math.sqrt(a + b)
    if error <= resolution:
        floor = 1 / exact.arrangements(n)
        return Location(difference, 0.0, n[0] + n[1] - 2.0, floor, resolution)
    share = a / (a + b)  # squares of tiny variances would underflow
    df = 1.0 / (share**2 / (n[0] - 1) + (1 - share) ** 2 / (n[1] - 1))
    return Location(difference, error, df, 0.0, resolution)


def _against(question: Question, mean: Location) -> TestResult:
    p, least = (mean.greater(question.null), mean.less(question.null)), mean.least
    return conclude(question, mean.estimate, mean.interval, *p, mean.floor, (least, least))


def _at_margin(question: Question) -> Question:
    """The same question, with the effect that is to be ruled out as its null."""
    if question.alternative == "two-sided":
        raise UserError(
            "alternative='two-sided'; say which side is better, 'greater' or 'less', or take tost."
        )
    side = -1 if question.alternative == "greater" else 1
    return dataclasses.replace(question, null=question.null + side * question.margin)
