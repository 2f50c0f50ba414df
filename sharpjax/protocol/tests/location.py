"""Means, their standard errors, and what the t distribution says of them.

Shared by the t tests and by the tests of equivalence.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from sharpjax.protocol.tests import exact
from sharpjax.protocol.tests.arguments import read_groups, read_pairs
from sharpjax.protocol.tests.result import Samples

_EPS = float(np.finfo(np.float64).eps)


class Location(NamedTuple):
    """An estimate with a standard error on `df` degrees of freedom.

    Where the values do not spread at all, t has no scale and its limit, p = 0, would claim
    certainty from two equal numbers. There the tails are those of the permutation (sign-flip)
    test of the same data: `floor` for an estimate on the right side of the null, 1 for the others.

    Attributes:
        error: 0 where there is no spread; infinite where it cannot be estimated (one unit).
        floor: the smallest one-sided p of a permutation test of these sizes.
        resolution: differences below this are rounding.
    """

    estimate: float
    error: float
    df: float
    floor: float
    resolution: float
    n: tuple[int, ...]

    def greater(self, null: float) -> float:
        """P of an estimate this large or larger if the true one is `null`."""
        return self._above(self.estimate - null)

    def less(self, null: float) -> float:
        """P of an estimate this small or smaller if the true one is `null`."""
        return self._above(null - self.estimate)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided; infinite where no spread is known, a point where there is none to speak of."""
        tail = (1 - confidence) / 2
        if math.isinf(self.error) or (self.error == 0 and self.floor > tail):
            return -math.inf, math.inf
        half = float(special.stdtrit(self.df, 1 - tail)) * self.error if self.error else 0.0
        return self.estimate - half, self.estimate + half

    @property
    def attainable(self) -> float:
        """The smallest p that data of these sizes can give: no floor once spread is known."""
        return 1.0 if math.isinf(self.error) else 0.0

    def _above(self, excess: float) -> float:
        if math.isinf(self.error):
            return 1.0
        if self.error == 0:
            return self.floor if excess > self.resolution else 1.0
        return float(special.stdtr(self.df, -excess / self.error))


def of_pairs(test: str, samples: Samples) -> Location:
    """Mean of the differences, each cluster one unit for its error.

    error^2 = K/(K-1) sum_k (sum over cluster k of d_i - mean)^2 / n^2 on K - 1 degrees of freedom,
    which is s^2 / n on n - 1 where units are independent.

    >>> mean = of_pairs("paired-t", Samples((np.array([1.0, 2.0, 6.0]),)))
    >>> mean.estimate, round(mean.error, 4), mean.df
    (3.0, 1.5275, 2.0)
    """
    pairs = read_pairs(test, samples)
    d, k = pairs.differences, pairs.num_clusters
    mean = float(d.mean())
    if k == 1:
        return Location(mean, math.inf, 0.0, 1.0, pairs.resolution, pairs.n)
    sums = pairs.totals(d - mean)
    error = math.sqrt(k / (k - 1) * float(sums @ sums)) / d.size
    if error <= pairs.resolution:
        error = 0.0
    return Location(mean, error, k - 1.0, 2.0**-k, pairs.resolution, pairs.n)


def of_two_groups(test: str, samples: Samples) -> Location:
    """First mean less second, variances not assumed equal (Welch-Satterthwaite)."""
    x, y = read_groups(test, samples, 2, 2)
    n = (x.size, y.size)
    difference = float(x.mean() - y.mean())
    resolution = 8 * _EPS * float(max(np.abs(x).max(), np.abs(y).max()))
    if min(n) == 1:
        return Location(difference, math.inf, 0.0, 1.0, resolution, n)
    a, b = float(x.var(ddof=1)) / n[0], float(y.var(ddof=1)) / n[1]
    error = math.sqrt(a + b)
    floor = exact.share_of_one_choice(*n)
    if error <= resolution:
        return Location(difference, 0.0, n[0] + n[1] - 2.0, floor, resolution, n)
    share = a / (a + b)  # squares of tiny variances would underflow
    df = 1.0 / (share**2 / (n[0] - 1) + (1 - share) ** 2 / (n[1] - 1))
    return Location(difference, error, df, floor, resolution, n)
