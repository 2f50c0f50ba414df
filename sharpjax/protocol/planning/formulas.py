r"""Power of tests whose distribution under an effect is known.

Each function of `FORMULAS` takes an effect and a `Plan`, and gives the probability of rejection.
Effects are in standard deviations, as `simulation` defines them, and positive in the direction of
the alternative. For tests that show the absence of an effect, "effect" is the margin in standard
deviations, and the true effect is zero. All take microseconds, except the binomial: milliseconds.
"""

import bisect
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from sharpjax.protocol.planning import simulation
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult

Formula = Callable[[float, "Plan"], float]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
POWER = 0.8  # an effect or a margin counts as detected at this power


class Plan(NamedTuple):
    """A test as it will be used.

    Attributes:
        sizes: the independent units of each group; if the units of a seed are a cluster (layers,
            pooled arms), the seeds.
        alpha: what p must not exceed.
        cluster: how many units each of them has.
    """

    sizes: tuple[int, ...]
    alternative: Alternative = "two-sided"
    alpha: float = 0.05
    null: float | None = None
    cluster: int = 1


def of_means(effect: float, plan: Plan, *, paired: bool = False) -> float:
    """The power of a t test. Under an effect of d standard deviations, t is noncentral with

        two groups   df = n1 + n2 - 2,   noncentrality d sqrt(n1 n2 / (n1 + n2))
        pairs        df = n - 1,         noncentrality d sqrt(n), d in sd of the differences

    (Cohen, Statistical Power Analysis, 1988, chapter 2). Welch's test has nearly the same power if
    the groups have the same size and spread, and the bootstrap of means comes close. NaN if there
    is no degree of freedom.

    >>> [round(of_means(1.0, Plan((n, n))), 3) for n in (3, 5, 10)]
    [0.159, 0.286, 0.562]
    """
    units, freedom = _scale(plan, paired)
    return _rejects(effect * math.sqrt(units), freedom, plan)


def _scale(plan: Plan, paired: bool) -> tuple[float, float]:
    """1 / variance of the mean at standard deviation 1, and its degrees of freedom."""
    first, second = plan.sizes[0], plan.sizes[-1]
    if paired:
        return first, first - 1
    return first * second / (first + second), first + second - 2


def _rejects(shift: float, freedom: float, plan: Plan) -> float:
    """P(T beyond the critical value), with T noncentral t and `shift` its noncentrality."""
    if freedom < 1:
        return math.nan
    sides = 2 if plan.alternative == "two-sided" else 1
    critical = special.stdtrit(freedom, 1 - plan.alpha / sides)
    power = special.nctdtr(freedom, -shift, -critical)  # P(T > c) = P(-T < -c)
    if sides == 2:
        # scipy gives NaN for this tail once it is below 1e-15.
        power += np.nan_to_num(special.nctdtr(freedom, shift, -critical), nan=0.0)
    return float(min(power, 1.0))


def tost(margin: float, plan: Plan, *, paired: bool = False) -> float:
    """The power of two one-sided t tests against +-margin if the groups do not differ.

    It is E over s of P(|D| < margin - t s / sqrt(units)) with D ~ N(0, 1 / units),
    s^2 ~ chi^2_f / f: Phillips (1990), J. Pharmacokinetics and Biopharmaceutics 18. The integral
    over the quantiles of s is by Gauss-Legendre, up to the s at which the margin leaves no room.

    >>> round(tost(1.0, Plan((20, 20))), 3)
    0.856
    """
    units, freedom = _scale(plan, paired)
    if freedom < 1:
        return math.nan
    critical, room = special.stdtrit(freedom, 1 - plan.alpha), margin * math.sqrt(units)
    most = special.chdtr(freedom, freedom * (room / critical) ** 2)  # P(s leaves room)
    s = np.sqrt(special.chdtri(freedom, 1 - most * (_NODES + 1) / 2) / freedom)
    inside = 2 * special.ndtr(room - critical * s) - 1
    return float(np.sum(_WEIGHTS / 2 * most * np.maximum(inside, 0)))


def binomial(effect: float, plan: Plan) -> float:
    """The chance of the test's own rejection region at a truth Cohen's h = effect from the null."""
    null = 0.5 if plan.null is None else plan.null
    n, way = plan.sizes[0], plan.alternative
    truth, middle = (
        simulation.proportion(-effect if way == "less" else effect, null),
        round(n * null),
    )

    def rejected(count: int) -> bool:
        return of_count(count, n, null, way).p <= plan.alpha

    power = 0.0
    if way != "less":
        least = middle + bisect.bisect_left(range(middle, n + 1), True, key=rejected)
        power += stats.binom.sf(least - 1, n, truth)
    if way != "greater":
        kept = bisect.bisect_left(range(middle + 1), True, key=lambda count: not rejected(count))
        power += stats.binom.cdf(kept - 1, n, truth)
    return float(power)


@functools.lru_cache(maxsize=4096)
def of_count(count: int, n: int, null: float, alternative: Alternative) -> TestResult:
    """The binomial test of `count` ones among n."""
    ones = Samples(((np.arange(n) < count).astype(float),))
    return catalog.run("binomial", ones, alternative=alternative, null=null)


class Fisher(NamedTuple):
    """Fisher's z of a correlation: nearly normal, with variance `factor(r)` / (n - lost).

    Each covariate (a group beyond two) takes one more off n.
    """

    truth: Callable[[float], float]
    lost: int
    factor: Callable[[float], float]

    def scale(self, r: float, plan: Plan) -> tuple[float, float]:
        """Standard deviation of z, and its degrees of freedom: clusters less one, or infinite."""
        lost = self.lost + max(len(plan.sizes) - 2, 0)
        units = max(plan.sizes[0] * plan.cluster - lost, 1e-9)
        freedom = plan.sizes[0] - 1 if plan.cluster > 1 else _NORMAL
        return math.sqrt(self.factor(r) / units), freedom

    def __call__(self, effect: float, plan: Plan) -> float:
        truth = self.truth(effect)
        null = (plan.null or 0.0) * (-1 if plan.alternative == "less" else 1)
        distance = math.atanh(min(truth, 1 - 1e-12)) - math.atanh(null)
        spread, freedom = self.scale(truth, plan)
        return _rejects(distance / spread, freedom, plan)


_NORMAL = 1e9  # degrees of freedom at which t is normal
# Bonett and Wright, Psychometrika 65 (2000); Fieller, Hartley and Pearson, Biometrika 44 (1957).
_SPEARMAN = Fisher(simulation.spearman_rho, 3, lambda rho: 1 + rho**2 / 2)
_KENDALL = Fisher(simulation.kendall_tau, 4, lambda tau: 0.437)
_PEARSON = Fisher(simulation.correlation, 3, lambda r: 1.0)
FISHER: Mapping[str, Fisher] = {
    "spearman": _SPEARMAN,
    "spearman-over-arms": _SPEARMAN,
    "kendall": _KENDALL,
    "pearson": _PEARSON,
    "partial-spearman": _SPEARMAN,
    "partial-kendall": _KENDALL,
    "partial-pearson": _PEARSON,
}


TWO_GROUPS = ("welch", "mean-difference", "ratio-of-means")
PAIRS = ("paired-t", "mean", "paired-ratio-of-means")
FORMULAS: Mapping[str, Formula] = {
    **dict.fromkeys((*TWO_GROUPS, "non-inferiority"), of_means),
    **dict.fromkeys((*PAIRS, "paired-non-inferiority"), functools.partial(of_means, paired=True)),
    "tost": tost,
    "binomial": binomial,
    **FISHER,
}
