"""Correlations of two quantities over units, and differences of correlations.

**Independent units.** p against no association is a permutation p: exact up to 8 units (Spearman,
Pearson, and Kendall with ties), exact up to 170 (Kendall without ties), else by 9,999 random
orders; for Kendall beyond 170 units (100 with ties) it is normal. The interval, and p against any
other null, come from Fisher's z = artanh(r), whose variance is 1/(n - 3) for Pearson,
(1 + rho^2 / 2)/(n - 3) for Spearman (Bonett and Wright, Sample size requirements, Psychometrika 65,
2000) and .437/(n - 4) for Kendall (Fieller, Hartley and Pearson, Biometrika 44, 1957), more with
ties. A perfect rank correlation is taken half a step below 1, so that its interval is not a point.

**Clusters** (layers of a seed; arms that share seeds). Units of a cluster are not exchangeable, and
what holds between the layers, or the arms, of every seed is the very association in question. So
nothing is permuted, and the claim is about new seeds of these arms, not about other arms (for those
there is `spearman_over_arms`). Clusters are drawn with all their units; interval and p are those of
`protocol.tests.bootstrap`. The same holds for all differences of correlations: their units, or
clusters, are drawn once for both.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from sharpjax.protocol.tests import association, bootstrap, shuffle
from sharpjax.protocol.tests.question import Question, conclude, nothing_known, tied
from sharpjax.protocol.tests.result import Alternative, TestResult


class _Coefficient(NamedTuple):
    """One coefficient.

    Attributes:
        of: from x, y to the function of counts.
        tails: from x, y, seed to p against no association: greater, less.
        lost: z has the variance of n - `lost` units.
        variance: from coefficient, x, y to the variance of z times (n - lost).
        step: from n to the distance between the two largest values.
    """

    of: Callable[[np.ndarray, np.ndarray], bootstrap.Statistic]
    tails: Callable[[np.ndarray, np.ndarray, int], tuple[float, float]]
    lost: int
    variance: Callable[[float, np.ndarray, np.ndarray], float]
    step: Callable[[int], float]


def spearman(question: Question) -> TestResult:
    """Spearman's rank correlation of the first group with the second; null 0."""
    return _test(question, _SPEARMAN)


def spearman_over_arms(question: Question) -> TestResult:
    """Spearman's rho of the means of arms, each over its seeds, layers and so on; null 0.

    An arm is one unit. p permutes arms, exactly up to 8 of them, and is right if the arms are drawn
    at random. `spearman` with the seeds as clusters takes the arms as given. If both quantities
    differ between arms, independently, it rejects at .05 (two-sided) in .21 (differences of 1
    standard deviation of a seed) to .66 (of 3) of 2,000 simulated studies of 8 arms and 10 seeds.
    This test rejects in .046 and .048 (standard error .005). Units without arms are an arm each.
    """
    arms = np.arange(question.sizes[0]) if question.arms is None else question.arms
    count = np.bincount(arms)
    means = tuple(tied(np.bincount(arms, weights=x) / count) for x in question.groups)
    over = dataclasses.replace(question, groups=means, units=count.size, clusters=None)
    return _test(over, _SPEARMAN)


def kendall(question: Question) -> TestResult:
    """Kendall's tau-b of the first group with the second; null 0."""
    return _test(question, _KENDALL)


def pearson(question: Question) -> TestResult:
    """Pearson's correlation of the first group with the second; null 0."""
    return _test(question, _PEARSON)


def fit_error(question: Question) -> TestResult:
    """RMSE of the line that predicts the second group from the first, over the RMSE of its mean.

    It is sqrt(1 - r^2): 1 if the first group predicts nothing, which is the null; 'less' asks
    whether it predicts. Everything is derived from what `pearson` says about r: the effect is below
    e if r is above sqrt(1 - e^2) or below its negative.
    """
    r0 = math.sqrt(1 - question.null * question.null)

    def of_r(direction: Alternative, bound: float) -> TestResult:
        wanted = {"alternative": direction, "null": bound, "bounds": (-1.0, 1.0)}
        return pearson(dataclasses.replace(question, **wanted))

    if not r0:
        either = of_r("two-sided", 0.0)
        below, above, floor = either.p, 1.0, either.min_attainable_p
    else:
        up, down = of_r("greater", r0), of_r("less", -r0)
        # |r| this large under r = +-r0: the near tail, and the far one of the other sign.
        below = min(1.0, up.p + down.opposite_p, down.p + up.opposite_p)
        above = max(up.opposite_p, down.opposite_p)
        either, floor = up, up.min_attainable_p
    effect = _left_over(either.effect)
    if either.nothing:
        return nothing_known(question, effect, either.nothing, floor)

    def interval(confidence: float) -> tuple[float, float]:
        low, high = either.interval(confidence)
        nearest = 0.0 if low < 0 < high else min(abs(low), abs(high))
        return _left_over(max(abs(low), abs(high))), _left_over(nearest)

    return conclude(question, effect, interval, above, below, floor)


def _left_over(r: float) -> float:
    return float(np.sqrt(np.maximum(0.0, 1 - r * r)))


def kendall_difference(question: Question) -> TestResult:
    """|tau(a, y)| - |tau(b, y)| for groups a, b, y over the same units: which of a and b tracks y
    better.

    By the bootstrap over units, or over clusters; null 0.
    """
    a, b, y = question.groups
    first, second = association.kendall(a, y), association.kendall(b, y)
    floor = bootstrap.units_floor(question.units)
    return association.resampled(
        question, lambda counts: np.abs(first(counts)) - np.abs(second(counts)), floor
    )


def _test(question: Question, coefficient: _Coefficient) -> TestResult:
    x, y = question.groups
    statistic = coefficient.of(x, y)
    if question.clusters is not None:
        return association.resampled(question, statistic, bootstrap.units_floor(question.units))
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = float(statistic(np.ones(x.size)))
    floor = 1 / math.factorial(min(x.size, 100))
    if math.isnan(effect):
        return nothing_known(question, effect, association.CONSTANT, floor)
    left, most = x.size - coefficient.lost, 1 - coefficient.step(x.size) / 2
    spread = math.sqrt(coefficient.variance(effect, x, y) / left) if left > 0 else None
    middle = math.atanh(min(max(effect, -most), most))
    if question.null == 0:
        tails = coefficient.tails(x, y, question.seed)
        if coefficient is not _KENDALL:  # exact if there are no ties
            floor = shuffle.least(1 / floor)
    elif spread is None:
        tails = (1.0, 1.0)
    else:
        z = (middle - math.atanh(question.null)) / spread
        tails = (float(special.ndtr(-z)), float(special.ndtr(z)))

    def interval(confidence: float) -> tuple[float, float]:
        if spread is None:
            return -1.0, 1.0
        reach = special.ndtri(0.5 + confidence / 2) * spread
        low = -1.0 if effect == -1 else math.tanh(middle - reach)
        return low, 1.0 if effect == 1 else math.tanh(middle + reach)

    return conclude(question, effect, interval, *tails, floor)


def _kendall_variance(_: float, x: np.ndarray, y: np.ndarray) -> float:
    """Fieller's variance, times the factor that ties add to that of tau-b under no association."""
    n = x.size
    first, second = (np.unique(v, return_counts=True)[1].astype(np.float64) for v in (x, y))
    pairs = [float((t * (t - 1)).sum()) for t in (first, second)]
    triples = [float((t * (t - 1) * (t - 2)).sum()) for t in (first, second)]
    longer = [float((t * (t - 1) * (2 * t + 5)).sum()) for t in (first, second)]
    every = n * (n - 1)
    of_sum = (every * (2 * n + 5) - sum(longer)) / 18  # Kendall, Rank correlation methods, 4.1
    of_sum += pairs[0] * pairs[1] / (2 * every)
    of_sum += triples[0] * triples[1] / (9 * every * (n - 2))
    tied = of_sum * 4 / ((every - pairs[0]) * (every - pairs[1]))
    return 0.437 * tied / (2 * (2 * n + 5) / (9 * every))


_SPEARMAN = _Coefficient(
    association.spearman,
    shuffle.of_spearman,
    lost=3,
    variance=lambda rho, x, y: 1 + rho * rho / 2,
    step=lambda n: 12 / (n**3 - n),
)
_KENDALL = _Coefficient(
    association.kendall,
    shuffle.of_kendall,
    lost=4,
    variance=_kendall_variance,
    step=lambda n: 4 / (n * (n - 1)),
)
_PEARSON = _Coefficient(
    association.pearson,
    shuffle.of_pearson,
    lost=3,
    variance=lambda r, x, y: 1.0,
    step=lambda _: 2e-12,
)
