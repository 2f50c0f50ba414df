"""Correlations of two quantities over units, and differences of correlations.

**Independent units.** p against no association is a permutation p: exact up to 8 units (Spearman,
Pearson, and Kendall with ties), exact up to 170 (Kendall without ties), by 9,999 random orders
beyond. The interval, and p against any other null, come from Fisher's z = artanh(r), whose variance
is 1/(n - 3) for Pearson, (1 + rho^2 / 2)/(n - 3) for Spearman (Bonett and Wright, Sample size
requirements, Psychometrika 65, 2000) and .437/(n - 4) for Kendall (Fieller, Hartley and Pearson,
Biometrika 44, 1957), more with ties. A perfect rank correlation is taken half a step below 1, so
that its interval is no point.

**Clusters** (layers of a seed; arms that share seeds). Units of a cluster are not exchangeable, and
what holds between the layers, or the arms, of every seed is the very association that is asked for;
so nothing is permuted. Clusters are drawn with all their units: interval and p are those of
`protocol.bootstrap`. So are those of all differences of correlations: their units, or clusters,
are drawn once for both.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.tests import association, bootstrap, independence, shuffle
from sharpjax.protocol.tests.arguments import MANY, check_options, directed, read_aligned
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult, nothing_known

_RANGE = (-1.0, 1.0)


class _Coefficient(NamedTuple):
    """One coefficient.

    Attributes:
        of: x, y to the function of counts.
        tails: x, y, seed to p against no association: greater, less.
        lost: z has the variance of n - `lost` units.
        variance: coefficient, x, y to the variance of z times (n - lost).
        step: between the two largest values that it can take.
    """

    name: str
    of: Callable[[np.ndarray, np.ndarray], bootstrap.Statistic]
    tails: Callable[[np.ndarray, np.ndarray, int], tuple[float, float]]
    lost: int
    variance: Callable[[float, np.ndarray, np.ndarray], float]
    step: Callable[[int], float]


def spearman(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Spearman's rank correlation of the first group with the second; null 0.

    Raises:
        UserError: see `arguments.read_groups`; groups of different lengths; a null outside (-1, 1).

    >>> error = np.array([14.4, 11.1, 13.9, 18.2, 14.0, 10.6, 13.4, 16.2])
    >>> weight_norm = np.array([49.3, 51.5, 39.1, 33.2, 49.1, 49.6, 38.3, 34.4])
    >>> result = spearman(Samples((error, weight_norm)), alternative="two-sided")
    >>> round(result.effect, 3), round(result.p, 3)
    (-0.738, 0.046)
    """
    return _test(_SPEARMAN, samples, alternative, null, confidence, seed)


def kendall(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Kendall's tau-b of the first group with the second; null 0.

    Raises:
        UserError: as `spearman`.

    >>> x, y = np.arange(6.0), np.array([0.0, 2.0, 1.0, 3.0, 5.0, 4.0])
    >>> result = kendall(Samples((x, y)), alternative="greater")
    >>> round(result.effect, 4), round(result.p * 720)
    (0.7333, 20)
    """
    return _test(_KENDALL, samples, alternative, null, confidence, seed)


def pearson(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Pearson's correlation of the first group with the second; null 0.

    Raises:
        UserError: as `spearman`.

    >>> x, y = np.arange(6.0), np.array([0.0, 2.0, 1.0, 3.0, 5.0, 4.0])
    >>> round(pearson(Samples((x, y)), alternative="greater").effect, 4)
    0.8857
    """
    return _test(_PEARSON, samples, alternative, null, confidence, seed)


def fit_error(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """RMSE of the line that predicts the second group from the first, over the RMSE of its mean.

    It is sqrt(1 - r^2): 1 where the first group predicts nothing, which is the null; 'less' asks
    whether it predicts. All of it is said of r by `pearson` and carried over: the effect is
    below e where r is above sqrt(1 - e^2) or below its negative.

    Raises:
        UserError: as `spearman`; a null outside (0, 1].

    >>> x, y = np.arange(6.0), np.array([0.0, 2.0, 1.0, 3.0, 5.0, 4.0])
    >>> result = fit_error(Samples((x, y)), alternative="less")
    >>> round(result.effect, 4), round(result.p, 4)
    (0.4642, 0.0333)
    """
    null = 1.0 if null is None else null
    check_options(
        "fit_error", alternative, confidence, null=null, within=(0.0, math.nextafter(1, 2))
    )
    r0 = math.sqrt(1 - null * null)

    def of_r(direction: Alternative, bound: float) -> TestResult:
        return _test(_PEARSON, samples, direction, bound, confidence, seed, name="fit_error")

    if not r0:
        either = of_r("two-sided", 0.0)
        below, above, least = either.p, 1.0, either.min_attainable_p
    else:
        up, down = of_r("greater", r0), of_r("less", -r0)
        # |r| this large under r = +-r0: the near tail, and the far one of the other sign.
        below = min(1.0, up.p + down.opposite_p, down.p + up.opposite_p)
        above = max(up.opposite_p, down.opposite_p)
        either, least = up, up.min_attainable_p
    effect = _left_over(either.effect)
    low, high = either.interval
    if math.isnan(low):
        return nothing_known(effect, either.n)
    p, opposite = directed(alternative, above, below)
    nearest = 0.0 if low < 0 < high else min(abs(low), abs(high))
    interval = _left_over(max(abs(low), abs(high))), _left_over(nearest)
    least = min(1.0, 2 * least) if alternative == "two-sided" else least
    return TestResult(effect, interval, p, opposite, least, either.n)


def _left_over(r: float) -> float:
    return float(np.sqrt(np.maximum(0.0, 1 - r * r)))


def kendall_difference(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """|tau(a, y)| - |tau(b, y)| for groups a, b, y over the same units: which one tracks y better.

    By the bootstrap over units, or over clusters; null 0.

    Raises:
        UserError: as `spearman`; not three groups.

    >>> y = np.arange(8.0)
    >>> a, b = -y, np.array([3.0, 1.0, 2.0, 0.0, 7.0, 5.0, 4.0, 6.0])
    >>> round(kendall_difference(Samples((a, b, y)), alternative="greater").effect, 4)
    0.6429
    """
    name, null = "kendall_difference", 0.0 if null is None else null
    check_options(name, alternative, confidence, null=null, within=(-1.0, 1.0))
    (a, b, y), clusters, independent = read_aligned(name, samples, 3, 3)
    first, second = association.kendall(a, y), association.kendall(b, y)
    return association.resampled(
        lambda counts: np.abs(first(counts)) - np.abs(second(counts)),
        (y.size,),
        clusters,
        alternative=alternative,
        null=null,
        confidence=confidence,
        seed=seed,
        floor=bootstrap.units_floor(independent),
    )._replace(n=(y.size,) * 3)


def spearman_pooled(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Spearman's rho over all pairs of groups together, less that within the first pair.

    Groups x1, y1, x2, y2, ...: the two quantities in one condition, then in the next; unit i is the
    same seed in all. Seeds are resampled, with all their conditions; null 0. A difference where
    the two have opposite signs is Simpson's paradox.

    Raises:
        UserError: as `spearman`; an odd number of groups, or fewer than four.

    >>> x, y = np.arange(5.0), np.array([0.0, 2.0, 1.0, 3.0, 4.0])
    >>> shifted = Samples((x, y, x + 10, y - 10))
    >>> round(spearman_pooled(shifted, alternative="less").effect, 3)
    -1.439
    """
    name, null = "spearman_pooled", 0.0 if null is None else null
    check_options(name, alternative, confidence, null=null, within=(-2.0, 2.0))
    groups, clusters, independent = read_aligned(name, samples, 4, MANY)
    if len(groups) % 2:
        raise UserError(f"{name}: {len(groups)} groups; it takes pairs of them: x1, y1, x2, y2.")
    conditions = len(groups) // 2
    pooled = association.spearman(np.concatenate(groups[0::2]), np.concatenate(groups[1::2]))
    within = association.spearman(groups[0], groups[1])
    return association.resampled(
        lambda counts: pooled(np.concatenate([counts] * conditions, axis=-1)) - within(counts),
        (groups[0].size,),
        clusters,
        alternative=alternative,
        null=null,
        confidence=confidence,
        seed=seed,
        floor=bootstrap.units_floor(independent),
        bounds=(-2.0, 2.0),
    )._replace(n=tuple(group.size for group in groups))


def _test(
    coefficient: _Coefficient,
    samples: Samples,
    alternative: Alternative,
    null: float | None,
    confidence: float,
    seed: int,
    name: str = "",
) -> TestResult:
    name, null = name or coefficient.name, 0.0 if null is None else null
    check_options(name, alternative, confidence, null=null, within=_RANGE)
    (x, y), clusters, independent = read_aligned(name, samples, 2, 2)
    statistic = coefficient.of(x, y)
    sizes = (x.size, y.size)
    if clusters is not None:
        return association.resampled(
            statistic,
            sizes[:1],
            clusters,
            alternative=alternative,
            null=null,
            confidence=confidence,
            seed=seed,
            floor=bootstrap.units_floor(independent),
        )._replace(n=sizes)
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = float(statistic(np.ones(x.size)))
    if math.isnan(effect):
        return nothing_known(effect, sizes)
    floor = 1 / math.factorial(min(x.size, 100))
    spread = _deviation(coefficient, effect, x, y)
    if null == 0:
        greater, less = coefficient.tails(x, y, seed)
        floor = max(floor, _floor(coefficient, x.size))
    elif spread is None:
        greater = less = 1.0
    else:
        z = (_fisher(coefficient, effect, x.size) - math.atanh(null)) / spread
        greater, less = (max(floor, float(special.ndtr(side))) for side in (-z, z))
    low, high = _RANGE
    if spread is not None:
        middle, reach = _fisher(coefficient, effect, x.size), special.ndtri(0.5 + confidence / 2)
        low = -1.0 if effect == -1 else math.tanh(middle - reach * spread)
        high = 1.0 if effect == 1 else math.tanh(middle + reach * spread)
    p, opposite = directed(alternative, greater, less)
    least = min(1.0, 2 * floor) if alternative == "two-sided" else floor
    return TestResult(effect, (low, high), p, opposite, least, sizes)


def _fisher(coefficient: _Coefficient, effect: float, num_units: int) -> float:
    most = 1 - coefficient.step(num_units) / 2
    return math.atanh(min(max(effect, -most), most))


def _deviation(
    coefficient: _Coefficient, effect: float, x: np.ndarray, y: np.ndarray
) -> float | None:
    left = x.size - coefficient.lost
    return math.sqrt(coefficient.variance(effect, x, y) / left) if left > 0 else None


def _kendall_variance(_: float, x: np.ndarray, y: np.ndarray) -> float:
    """Fieller's, times what ties add to the variance of tau-b under no association."""
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


def _floor(coefficient: _Coefficient, num_units: int) -> float:
    if coefficient is _KENDALL:  # exact where there are no ties
        return 0.0
    return shuffle.least(float(math.factorial(min(num_units, 100))))


_SPEARMAN = _Coefficient(
    "spearman",
    association.spearman,
    independence.spearman,
    lost=3,
    variance=lambda rho, x, y: 1 + rho * rho / 2,
    step=lambda n: 12 / (n**3 - n),
)
_KENDALL = _Coefficient(
    "kendall",
    association.kendall,
    independence.kendall,
    lost=4,
    variance=_kendall_variance,
    step=lambda n: 4 / (n * (n - 1)),
)
_PEARSON = _Coefficient(
    "pearson",
    association.pearson,
    independence.pearson,
    lost=3,
    variance=lambda r, x, y: 1.0,
    step=lambda _: 2e-12,
)
