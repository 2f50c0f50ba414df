"""Whether a margin can be met: the chance that an interval lies within it, and the units needed.

`equivalent` and claims that an effect lies `within` its margin rest on the interval at confidence
1 - 2 alpha. Everything here is for a true effect that is the null; for others the chance is
smaller.
"""

import bisect
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from scipy import special, stats

from sharpjax.protocol.planning import formulas
from sharpjax.protocol.planning.formulas import FISHER, PAIRS, POWER, TWO_GROUPS, Plan
from sharpjax.protocol.planning.sensitivity import least, smallest_p, solve
from sharpjax.protocol.planning.simulation import lookup
from sharpjax.protocol.tests import rank_effects

MOST_UNITS = 20_000
_RANKS = {"wilcoxon": 2.0, "mann-whitney": 2.0, "auc": 1.0}  # units of the effect per unit of theta


class Reach(NamedTuple):
    """Whether a margin can be met.

    Attributes:
        chance: at the sizes of the plan.
        possible: the smallest number of units per group at which it can be met; None: more than
            20,000.
        likely: the smallest number at which the chance is 0.8; None: more than 20,000.
    """

    chance: float
    possible: int | None
    likely: int | None


@functools.lru_cache(maxsize=1024)
def reach(test: str, plan: Plan, margin: float) -> Reach | None:
    """The `Reach` of a margin in the units of the test's effect; None if `chance` is NaN.

    Args:
        plan: its alpha is that of one interval.

    >>> reach("wilcoxon", Plan((8, 8), alpha=0.0125), 0.3)
    Reach(chance=0.0, possible=67, likely=172)
    """

    def at(n: int) -> float:
        return chance(test, plan._replace(sizes=(n,) * len(plan.sizes)), margin)

    here = chance(test, plan, margin)
    if math.isnan(here):
        return None
    possible = least(lambda n: at(n) > 0, MOST_UNITS)
    likely = None if possible is None else least(lambda n: at(n) >= POWER, MOST_UNITS, possible)
    return Reach(here, possible, likely)


def chance(test: str, plan: Plan, margin: float) -> float:
    """The chance that the interval at 1 - 2 alpha lies within `margin` of the null.

    It is NaN unless the test is in `formulas.FISHER`, a rank test of one or two groups, or
    'binomial'.
    """
    null = lookup(test).null if plan.null is None else plan.null
    if test not in (*FISHER, *_RANKS, "binomial"):
        return math.nan
    if are_too_few(test, plan):
        return 0.0
    if test in FISHER:
        return _fisher(test, plan, null, margin)
    return _binomial(plan, null, margin) if test == "binomial" else _ranks(test, plan, null, margin)


def are_too_few(test: str, plan: Plan) -> bool:
    """Whether the interval at 1 - 2 alpha excludes nothing, since p cannot be small enough."""
    both = plan._replace(alternative="two-sided")
    return test != "binomial" and smallest_p(test, both) / 2 > plan.alpha


def least_margin(test: str, plan: Plan) -> float:
    """The margin, in standard deviations, that is met with chance 0.8; NaN: not known."""
    return solve(lambda deviations: of_means(test, plan, deviations), POWER, 20.0)


def of_means(test: str, plan: Plan, deviations: float) -> float:
    """The chance for a margin in standard deviations, for tests of means; NaN for other tests."""
    if test not in TWO_GROUPS + PAIRS:
        return math.nan
    if are_too_few(test, plan):
        return 0.0
    return formulas.tost(deviations, plan, paired=test in PAIRS)


def _ranks(test: str, plan: Plan, null: float, margin: float) -> float:
    """The chance that the score interval lies inside, if the estimate is normal."""
    scale = _RANKS[test]
    centre, room = (null + scale - 1) / scale, margin / scale
    units = plan.cluster if test == "auc" else 1
    sizes = tuple(n * units for n in (plan.sizes[:1] if test == "wilcoxon" else plan.sizes))
    quantile = -float(special.ndtri(plan.alpha))
    if units > 1:
        quantile = -float(special.stdtrit(min(plan.sizes) - 1, plan.alpha))
    if min(sizes) < 2 or math.isnan(quantile):
        return 0.0

    def end(side: int, theta: float) -> float:
        return rank_effects.interval(theta, sizes, quantile)[side]

    low = _crossing(lambda theta: end(0, theta) > centre - room)
    high = _crossing(lambda theta: end(1, theta) >= centre + room)
    if not low < high:
        return 0.0
    spread = rank_effects.deviation(centre, sizes)
    return float(special.ndtr((high - centre) / spread) - special.ndtr((low - centre) / spread))


def _crossing(holds: Callable[[float], bool]) -> float:
    """The point in [0, 1] from which on `holds` is true."""
    return bisect.bisect_left(range(2**24), True, key=lambda i: holds(i / 2**24)) / 2**24


def _fisher(test: str, plan: Plan, null: float, margin: float) -> float:
    spread, freedom = FISHER[test].scale(null, plan)
    most = 1 - 1e-12
    ends = [math.atanh(min(max(r, -most), most)) for r in (null - margin, null + margin)]
    half = special.stdtrit(freedom, 1 - plan.alpha) * spread if freedom >= 1 else math.inf
    low, high = ((end - math.atanh(null)) / spread for end in (ends[0] + half, ends[1] - half))
    return float(max(special.ndtr(high) - special.ndtr(low), 0.0)) if low < high else 0.0


def _binomial(plan: Plan, null: float, margin: float) -> float:
    """The sum over all counts, by the test's own interval."""
    n = plan.sizes[0]

    def end(side: int, count: int) -> float:
        return formulas.of_count(count, n, null, "two-sided").interval(1 - 2 * plan.alpha)[side]

    counts, low, high = range(n + 1), null - margin, null + margin
    first = bisect.bisect_left(counts, True, key=lambda count: end(0, count) > low)
    beyond = bisect.bisect_left(counts, True, key=lambda count: end(1, count) >= high)
    return float(max(stats.binom.cdf(beyond - 1, n, null) - stats.binom.cdf(first - 1, n, null), 0))
