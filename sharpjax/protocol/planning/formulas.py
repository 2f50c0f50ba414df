r"""Power of tests whose law under an effect is known.

Each function takes an effect and a `Plan`, and gives the chance of rejection.
Effects are in standard deviations, as `planning.generative` defines them, and positive in the
direction of the alternative. Of tests that show the absence of an effect, "effect" is the margin
in standard deviations, and the true effect is nought.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from sharpjax.protocol.planning.generative import correlation, proportion
from sharpjax.protocol.planning.noncentral_t import t_power
from sharpjax.protocol.tests.result import Alternative


class Plan(NamedTuple):
    """A test as it is going to be used: `sizes` are the numbers of units in each group."""

    sizes: tuple[int, ...]
    alternative: Alternative = "two-sided"
    alpha: float = 0.05
    null: float | None = None


def welch(effect: float, plan: Plan) -> float:
    """Two groups, noncentral t. The bootstrap of means comes near it.

    >>> round(welch(1.0, Plan((17, 17))), 3)
    0.807
    """
    return float(t_power(effect, *plan.sizes, alternative=plan.alternative, alpha=plan.alpha))


def paired_t(effect: float, plan: Plan) -> float:
    """Pairs, noncentral t."""
    options = {"alternative": plan.alternative, "alpha": plan.alpha}
    return float(t_power(effect, plan.sizes[0], paired=True, **options))


def non_inferiority(margin: float, plan: Plan) -> float:
    """One-sided t test against the margin, where the groups are alike."""
    return float(t_power(margin, *plan.sizes, alternative="greater", alpha=plan.alpha))


def paired_non_inferiority(margin: float, plan: Plan) -> float:
    """The same for pairs."""
    options = {"alternative": "greater", "alpha": plan.alpha}
    return float(t_power(margin, plan.sizes[0], paired=True, **options))


def tost(margin: float, plan: Plan) -> float:
    """Two one-sided t tests against +-margin, where the groups are alike."""
    first, second = plan.sizes
    units = first * second / (first + second)
    return _tost(margin, units, first + second - 2, plan.alpha)


def paired_tost(margin: float, plan: Plan) -> float:
    """The same for pairs."""
    return _tost(margin, plan.sizes[0], plan.sizes[0] - 1, plan.alpha)


def _tost(margin: float, units: float, freedom: float, alpha: float) -> float:
    """E over s of P(|D| < margin - t s / sqrt(units)) with D ~ N(0, 1 / units).

    Phillips (1990), J. Pharmacokinetics and Biopharmaceutics 18; s^2 ~ chi^2_f / f. Integrated over
    the quantiles of s by Gauss-Legendre, up to where the margin no longer leaves room.
    """
    if freedom < 1:
        return math.nan
    critical = special.stdtrit(freedom, 1 - alpha)
    room = margin * math.sqrt(units)
    most = special.chdtr(freedom, freedom * (room / critical) ** 2)  # P(s leaves room)
    nodes, weights = _quadrature()
    quantile = most * (nodes + 1) / 2
    s = np.sqrt(special.chdtri(freedom, 1 - quantile) / freedom)
    inside = 2 * special.ndtr(room - critical * s) - 1
    return float(np.sum(weights / 2 * most * np.maximum(inside, 0)))


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)


def binomial(effect: float, plan: Plan) -> float:
    """Exact binomial test of a proportion Cohen's h = effect away from the null."""
    null = 0.5 if plan.null is None else plan.null
    n, counts = plan.sizes[0], np.arange(plan.sizes[0] + 1)
    truth = proportion(-effect if plan.alternative == "less" else effect, null)
    rejected = binomial_p(counts, n, null, plan.alternative) <= plan.alpha
    return float(stats.binom.pmf(counts, n, truth)[rejected].sum())


def binomial_p(counts: np.ndarray, n: int, null: float, alternative: Alternative) -> np.ndarray:
    """Exact p values of `counts` out of n; two-sided: all outcomes that are no likelier."""
    if alternative == "greater":
        return stats.binom.sf(counts - 1, n, null)
    if alternative == "less":
        return stats.binom.cdf(counts, n, null)
    chances = stats.binom.pmf(np.arange(n + 1), n, null)
    rising = np.sort(chances)
    total = np.concatenate([[0.0], np.cumsum(rising)])
    likely = np.searchsorted(rising, chances[counts] * (1 + 1e-7), side="right")
    return np.minimum(total[likely], 1.0)


def spearman(effect: float, plan: Plan) -> float:
    """Fisher's z with variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright, 2000)."""
    rho = spearman_rho(effect)
    return _fisher(rho, (1 + rho**2 / 2) / max(plan.sizes[0] - 3, 1e-9), plan)


def kendall(effect: float, plan: Plan) -> float:
    """Fisher's z with variance 0.437 / (n - 4) (Fieller, Hartley and Pearson, 1957)."""
    tau = kendall_tau(effect)
    return _fisher(tau, 0.437 / max(plan.sizes[0] - 4, 1e-9), plan)


def pearson(effect: float, plan: Plan) -> float:
    """Fisher's z with variance 1 / (n - 3)."""
    return _fisher(correlation(effect), 1 / max(plan.sizes[0] - 3, 1e-9), plan)


def fit_error(effect: float, plan: Plan) -> float:
    """A line predicts better than the mean where the correlation is not nought, of either sign."""
    if plan.alternative != "less" or plan.null not in (None, 1.0):
        return math.nan
    return pearson(effect, plan._replace(alternative="two-sided", null=None))


def spearman_rho(effect: float) -> float:
    """Spearman's rho of a bivariate normal law: 6 / pi asin(r / 2)."""
    return 6 / math.pi * math.asin(correlation(effect) / 2)


def kendall_tau(effect: float) -> float:
    """Kendall's tau of a bivariate normal law: 2 / pi asin(r)."""
    return 2 / math.pi * math.asin(correlation(effect))


def within(
    test: str, plan: Plan, *, deviations: float | None = None, margin: float | None = None
) -> float:
    """The chance that the interval at 1 - 2 alpha lies within a margin of the null, which is true.

    Args:
        deviations: the margin in standard deviations, for tests of means.
        margin: the same in units of the test's effect, for proportions and correlations.

    Returns:
        NaN where the test's margin is not in the unit that is given.
    """
    null = plan.null or 0.0
    if test in _TWO_GROUPS and deviations is not None:
        return tost(deviations, plan)
    if test in _PAIRS and deviations is not None:
        return paired_tost(deviations, plan)
    if margin is None or test not in ("binomial", "spearman", "kendall", "pearson"):
        return math.nan
    if test == "binomial":
        return _binomial_within(margin, plan)
    n = plan.sizes[0]
    variance = 0.437 / max(n - 4, 1e-9) if test == "kendall" else 1 / max(n - 3, 1e-9)
    room = math.atanh(min(abs(null) + margin, 1 - 1e-12)) - math.atanh(abs(null))
    spare = room / math.sqrt(variance) - special.ndtri(1 - plan.alpha)
    return float(max(2 * special.ndtr(spare) - 1, 0.0))


def _binomial_within(margin: float, plan: Plan) -> float:
    """Clopper and Pearson's interval at 1 - 2 alpha, over all outcomes."""
    null = 0.5 if plan.null is None else plan.null
    n, counts = plan.sizes[0], np.arange(plan.sizes[0] + 1)
    low = np.nan_to_num(stats.beta.ppf(plan.alpha, counts, n - counts + 1), nan=0.0)
    high = np.nan_to_num(stats.beta.ppf(1 - plan.alpha, counts + 1, n - counts), nan=1.0)
    inside = (low > null - margin) & (high < null + margin)
    return float(stats.binom.pmf(counts, n, null)[inside].sum())


def _fisher(truth: float, variance: float, plan: Plan) -> float:
    null = (plan.null or 0.0) * (-1 if plan.alternative == "less" else 1)
    distance = math.atanh(min(truth, 1 - 1e-12)) - math.atanh(null)
    return _normal(distance / math.sqrt(variance), plan)


def _normal(shift: float, plan: Plan) -> float:
    """P(Z + shift beyond the critical value)."""
    if plan.alternative != "two-sided":
        return float(special.ndtr(shift - special.ndtri(1 - plan.alpha)))
    critical = special.ndtri(1 - plan.alpha / 2)
    return float(special.ndtr(shift - critical) + special.ndtr(-shift - critical))


_TWO_GROUPS = ("welch", "mean-difference", "ratio-of-means")
_PAIRS = ("paired-t", "mean", "paired-ratio-of-means")

FORMULAS: Mapping[str, Callable[[float, Plan], float]] = {
    "welch": welch,
    "mean-difference": welch,
    "ratio-of-means": welch,
    "paired-ratio-of-means": paired_t,
    "paired-t": paired_t,
    "mean": paired_t,
    "non-inferiority": non_inferiority,
    "paired-non-inferiority": paired_non_inferiority,
    "tost": tost,
    "binomial": binomial,
    "spearman": spearman,
    "kendall": kendall,
    "pearson": pearson,
    "fit-error": fit_error,
}
