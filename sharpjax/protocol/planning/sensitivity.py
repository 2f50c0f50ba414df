"""Power, number of seeds and detectable effect of any test in `protocol.tests.catalog`.

By formula where `power_formulas` has one, else by simulation. Effects are in standard deviations,
as `generative` defines them for each kind of test; of tests that show the absence of an effect (the
catalog's `margin`), the effect is the margin, and the truth is nought.
"""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.planning import generative, simulation
from sharpjax.protocol.planning.formulas import FORMULAS, Plan, kendall_tau, spearman_rho
from sharpjax.protocol.planning.noncentral_t import LARGEST_EFFECT, MOST_SEEDS
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Alternative, Samples

LOOKED_AT = 60  # units: the smallest p of more is smaller yet, and far below any alpha
# Where power is simulated, it is interpolated between these effects.
GRID = (0.5, 0.8, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0)


def method(test: str) -> str:
    """How the power of a test is found."""
    if test in FORMULAS:
        return "formula"
    if test in simulation.NO_MODEL:
        return "none"
    studies = simulation.default_studies(test)
    return f"simulation of {studies:,} studies"


def is_quick(test: str) -> bool:
    """Whether that takes milliseconds: by formula, or simulated all at once."""
    return test in FORMULAS or test in simulation.AT_ONCE


def power_of(test: str, effect: float, plan: Plan, *, pilot: Samples | None = None) -> float:
    """The chance that a test rejects.

    Cost: microseconds by formula; 4000 studies in some 20 ms for rank tests; else 100 calls of the
    test, and a standard error of up to 0.05. Simulated ones are kept.

    Args:
        test: a name in `catalog.TESTS`.
        effect: in standard deviations, in the direction of the alternative.
        plan: sizes, direction and alpha (after correction, where there is one).
        pilot: samples whose units replace normal noise; then all is simulated.

    Returns:
        NaN for tests in which there is no chance, or no model of an effect.

    Raises:
        UserError: the test is not known, alpha is not in (0, 1), or the pilot is of no use.

    >>> round(power_of("wilcoxon", 1.0, Plan((10, 10))), 1)
    0.8
    >>> power_of("wilcoxon", 9.0, Plan((5, 5)))  # its smallest p is 0.0625
    0.0
    """
    entry = simulation.lookup(test)
    if not 0 < plan.alpha < 1:
        raise UserError(f"power: alpha must be in (0, 1), got {plan.alpha!r}.")
    if test in simulation.NO_MODEL:
        return math.nan
    if smallest_p(test, plan) > plan.alpha:
        return 0.0
    if test in FORMULAS and pilot is None:
        return FORMULAS[test](effect, plan)
    drawn = simulation.outcomes(
        test,
        0.0 if entry.margin else effect,
        plan.sizes,
        alternative=plan.alternative,
        margin=effect if entry.margin else None,
        null=plan.null,
        pilot=pilot,
    )
    return float((drawn.p <= plan.alpha).mean())


def smallest_p(test: str, plan: Plan) -> float:
    """The smallest p that data of these sizes could give, as the test itself says.

    >>> smallest_p("wilcoxon", Plan((5, 5))), smallest_p("mann-whitney", Plan((3, 3), "greater"))
    (0.0625, 0.05)
    """
    return _smallest_p(test, plan._replace(alpha=0.05))


@functools.lru_cache(maxsize=4096)
def _smallest_p(test: str, plan: Plan) -> float:
    entry = simulation.lookup(test)
    null = entry.null if plan.null is None else plan.null
    # A proportion's own floor falls slowly where the null lies near 0 or 1.
    most = max(plan.sizes) if entry.kind == "one" else LOOKED_AT
    sizes = tuple(min(n, most) for n in plan.sizes)
    batch = generative.draw(entry.kind, 0.5, sizes, num_studies=1, null=null)
    result = catalog.run(
        test,
        next(batch.samples()),
        alternative=plan.alternative,
        margin=1.0 if entry.margin else 0.0,
        null=plan.null,
    )
    return result.min_attainable_p


def num_seeds(
    effect: float,
    power: float = 0.8,
    *,
    test: str = "welch",
    alternative: Alternative = "two-sided",
    alpha: float = 0.05,
    groups: int | None = None,
) -> int:
    """The least number of units a group with which a test reaches `power`.

    By doubling and bisection; where power is simulated, good to its standard error.

    Args:
        groups: how many there are; None: the fewest that the test takes, or two.

    Raises:
        UserError: `effect` is not above 0, `power` not in (alpha, 1), or even a million units (512
            where power is simulated) are too few.

    >>> num_seeds(1.0), num_seeds(0.5, test="paired-t"), num_seeds(1.0, test="wilcoxon") <= 12
    (17, 34, True)
    """
    entry = simulation.lookup(test)
    if not (math.isfinite(effect) and effect > 0):
        raise UserError(f"number of seeds: effect must be above 0, got {effect!r}.")
    if not alpha < power < 1:
        raise UserError(f"number of seeds: power must be in (alpha, 1), got {power!r}.")
    groups = max(entry.groups[0], 2 if entry.kind != "one" else 1) if groups is None else groups

    def reached(n: int) -> bool:
        return power_of(test, effect, Plan((n,) * groups, alternative, alpha)) >= power

    low, high, most = 1, 2, MOST_SEEDS if test in FORMULAS else 512
    while not reached(high):
        low, high = high, 2 * high
        if high > most:
            raise UserError(
                f"number of seeds: {test} cannot see an effect of {effect:g} standard deviations "
                f"with {low:,} units a group; name a larger one."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def detectable_effect(
    test: str, plan: Plan, power: float = 0.8, *, pilot: Samples | None = None
) -> float:
    """The effect, in standard deviations, that is seen with chance `power`; NaN where none is.

    Simulated power is interpolated on the probit scale, up to 10 standard deviations, or 2.5 where
    the test must be called again and again.

    >>> round(detectable_effect("welch", Plan((10, 10))), 2)
    1.32
    """
    if pilot is not None:
        return _detectable_effect(test, plan, power, pilot)
    return _kept(test, plan, power)


def _detectable_effect(test: str, plan: Plan, power: float, pilot: Samples | None = None) -> float:
    def reached(effect: float) -> float:
        return power_of(test, effect, plan, pilot=pilot)

    if test in FORMULAS and pilot is None:
        low, high = 0.0, LARGEST_EFFECT
        if not reached(high) >= power:
            return math.nan
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if reached(middle) >= power else (middle, high)
        return high
    lower, below = 0.0, plan.alpha
    for upper in GRID if is_quick(test) else GRID[:5]:
        above = reached(upper)
        if above >= power:
            ends = special.ndtri(np.clip([below, above], 1e-3, 1 - 1e-3))
            share = float(np.interp(special.ndtri(power), ends, [0, 1]))
            return lower + share * (upper - lower)
        lower, below = upper, above
    return math.nan


_kept = functools.lru_cache(maxsize=4096)(_detectable_effect)


def in_units_of(
    test: str,
    effect: float,
    plan: Plan,
    *,
    samples: Samples | None = None,
) -> float:
    """An effect of d standard deviations in the units of the test's own effect.

    Of tests whose effect is in the units of the metric, `samples` tell the standard deviation (and,
    of ratios, the mean). Of tests that need a margin: the margin. NaN where it is not known.

    >>> round(in_units_of("mann-whitney", 1.0, Plan((10, 10))), 2)  # 2 Phi(d / sqrt(2)) - 1
    0.52
    """
    sign = -1 if plan.alternative == "less" else 1
    if test in _DIMENSIONLESS:
        return _DIMENSIONLESS[test](sign * effect, plan)
    if test == "binomial":
        return generative.proportion(sign * effect, 0.5 if plan.null is None else plan.null)
    entry = simulation.lookup(test)
    if samples is None or entry.kind not in ("paired", "independent"):
        return math.nan
    scale = generative.spread(samples, paired=entry.kind == "paired")
    if entry.margin:
        return effect * scale
    if "ratio" in test:
        scale /= abs(float(np.mean(samples.groups[-1]))) or math.nan
    return (entry.null if plan.null is None else plan.null) + sign * effect * scale


def _rank_biserial(effect: float, plan: Plan) -> float:
    """Its mean over normal differences: pairs i < j are positive with chance Phi(sqrt(2) d)."""
    n = plan.sizes[0]
    positive = (n - 1) * special.ndtr(math.sqrt(2) * effect) + 2 * special.ndtr(effect)
    return float(2 * positive / (n + 1) - 1)


def _cliffs_delta(effect: float, plan: Plan) -> float:
    return float(2 * special.ndtr(effect / math.sqrt(2)) - 1)


_DIMENSIONLESS: Mapping[str, Callable[[float, Plan], float]] = {
    "wilcoxon": _rank_biserial,
    "mann-whitney": _cliffs_delta,
    "auc": lambda effect, plan: (1 + _cliffs_delta(effect, plan)) / 2,
    "log-rank": lambda effect, plan: math.exp(effect),
    "spearman": lambda effect, plan: spearman_rho(effect),
    "kendall": lambda effect, plan: kendall_tau(effect),
    "pearson": lambda effect, plan: generative.correlation(effect),
}
