"""Power, number of seeds and detectable effect of any test in `protocol.tests.catalog`.

They come from a formula if `formulas` has one, else from simulation; `formulas` defines effects.
"""

import bisect
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.planning import simulation
from sharpjax.protocol.planning.formulas import FISHER, FORMULAS, POWER, Plan
from sharpjax.protocol.tests import catalog
from sharpjax.protocol.tests.result import Samples

LARGEST_EFFECT = 100.0
MOST_SEEDS = 1_000_000
LOOKED_AT = 60  # units: with more, the smallest p is smaller still, far below any alpha
# Simulated power is interpolated between these effects.
GRID = (0.5, 0.8, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0)


def method(test: str) -> str:
    """How the power of a test is found."""
    if test in FORMULAS:
        return "formula"
    if test in simulation.NO_MODEL:
        return "none"
    return f"simulation of {simulation.num_studies(test):,} studies"


def power_of(test: str, effect: float, plan: Plan) -> float:
    """The chance that a test rejects.

    Cost: microseconds by formula; about .1 s for rank tests, with a standard error of at most .016;
    else 100 calls of the test, with one of up to .05. Simulated studies are cached.

    Args:
        test: a name in `catalog.TESTS`.
        effect: in standard deviations, in the direction of the alternative.
        plan: sizes, direction and alpha (after correction, if there is one).

    Returns:
        NaN for tests without chance in them, or without a model of an effect.

    Raises:
        UserError: the test is unknown or cannot take such units, or alpha is not in (0, 1).

    >>> round(power_of("wilcoxon", 1.0, Plan((10, 10))), 1)
    0.8
    >>> power_of("wilcoxon", 9.0, Plan((5, 5)))  # its smallest p is 0.0625
    0.0
    """
    kind = simulation.lookup(test).kind
    if not 0 < plan.alpha < 1:
        raise UserError(f"power: alpha must be in (0, 1), got {plan.alpha!r}.")
    if test in simulation.NO_MODEL:
        return math.nan
    if smallest_p(test, plan) > plan.alpha:
        return 0.0
    if test in FORMULAS:
        return FORMULAS[test](effect, plan)
    # In other kinds, such as paired tests, each cluster is one unit.
    cluster = plan.cluster if kind in ("correlation", "independent") else 1
    options = {"alternative": plan.alternative, "null": plan.null, "cluster": cluster}
    p = simulation.p_values(test, effect, plan.sizes, **options)
    return float((p <= plan.alpha).mean())


@functools.lru_cache(maxsize=4096)
def smallest_p(test: str, plan: Plan) -> float:
    """The smallest p that data of these sizes, in these clusters, could give, as the test says.

    >>> smallest_p("wilcoxon", Plan((5, 5))), smallest_p("mann-whitney", Plan((3, 3), "greater"))
    (0.0625, 0.05)
    >>> smallest_p("spearman", Plan((8, 8), "greater", cluster=40)) == 2**-8
    True
    """
    # The floor of a proportion falls slowly with n if the null lies near 0 or 1.
    entry = simulation.lookup(test)
    sizes = plan.sizes if entry.kind == "one" else tuple(min(n, LOOKED_AT) for n in plan.sizes)
    least_plan = plan._replace(sizes=sizes, alpha=0.05, cluster=min(plan.cluster, 2))
    if least_plan != plan:
        return smallest_p(test, least_plan)
    rng, options = np.random.default_rng(0), {"null": plan.null, "cluster": plan.cluster}
    samples = simulation.draw(test, 0.5, plan.sizes, rng, **options)
    margin = 1.0 if entry.margin else 0.0
    result = catalog.run(test, samples, alternative=plan.alternative, margin=margin, null=plan.null)
    return result.min_attainable_p


def least(reached: Callable[[int], bool], most: int, first: int = 2) -> int | None:
    """The smallest number >= `first` for which `reached` holds, which then holds for larger ones.

    None if it does not hold for `most`.

    >>> least(lambda n: n * n > 50, 100), least(lambda n: n > 90, 100), least(lambda n: False, 100)
    (8, 91, None)
    """
    low, high = first - 1, first
    while not reached(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    return low + 1 + bisect.bisect_left(range(low + 1, high), True, key=reached)


def num_seeds(effect: float, power: float = 0.8, *, test: str, alpha: float = 0.05) -> int:
    """The smallest number of units per group with which a two-sided test has this `power`.

    If power is simulated, the number is as exact as its standard error.

    Raises:
        UserError: `effect` is not above 0, `power` is not in (alpha, 1), or even a million units
            (512 if power is simulated) are too few.

    >>> [num_seeds(1.0, test="welch"), num_seeds(0.5, test="paired-t")]
    [17, 34]
    """
    entry = simulation.lookup(test)
    if not 0 < effect < math.inf:
        raise UserError(f"number of seeds: effect must be above 0, got {effect!r}.")
    if not alpha < power < 1:
        raise UserError(f"number of seeds: power must be in (alpha, 1), got {power!r}.")
    groups = max(entry.groups[0], 2 if entry.kind != "one" else 1)

    def reached(n: int) -> bool:
        return power_of(test, effect, Plan((n,) * groups, alpha=alpha)) >= power

    most = MOST_SEEDS if test in FORMULAS else 512
    if (found := least(reached, most)) is None:
        raise UserError(
            f"number of seeds: {test} cannot see an effect of {effect:g} standard deviations with "
            f"{most:,} units a group; name a larger one."
        )
    return found


def solve(
    reaches: Callable[[float], float], wanted: float, most: float, least: float = 0.0
) -> float:
    """The point from `least` to `most` at which a rising function reaches `wanted`; NaN if none.

    >>> round(solve(lambda x: x * x, 2.0, 10.0), 6)
    1.414214
    """
    low, high = least, most
    if not reaches(high) >= wanted:
        return math.nan
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) >= wanted else (middle, high)
    return high


@functools.lru_cache(maxsize=4096)
def detectable_effect(test: str, plan: Plan) -> float:
    """The effect, in standard deviations, that is detected with power 0.8; NaN if none is.

    Simulated power is interpolated on the probit scale: up to 10 standard deviations for the tests
    in `simulation.QUICK`, up to 2.5 for others, whose calls are slow.

    >>> round(detectable_effect("welch", Plan((10, 10))), 2)
    1.32
    """
    if test in FORMULAS:
        nothing = 0.0
        if test in FISHER and plan.null:
            # A correlation is measured from 0, and tested against the null.
            sign = -1 if plan.alternative == "less" else 1
            nothing = solve(FISHER[test].truth, sign * plan.null, LARGEST_EFFECT, -LARGEST_EFFECT)
        return solve(lambda effect: power_of(test, effect, plan), POWER, LARGEST_EFFECT, nothing)
    lower, below = 0.0, plan.alpha
    for upper in GRID if test in simulation.QUICK else GRID[:5]:
        above = power_of(test, upper, plan)
        if above >= POWER:
            ends = special.ndtri(np.clip([below, above], 1e-3, 1 - 1e-3))
            share = float(np.interp(special.ndtri(POWER), ends, [0, 1]))
            return lower + share * (upper - lower)
        lower, below = upper, above
    return math.nan


def in_units_of(test: str, effect: float, plan: Plan, *, samples: Samples | None = None) -> float:
    """An effect of d standard deviations in the units of the test's own effect.

    If these are the units of the metric, `samples` give the standard deviation (and, for ratios,
    the mean). For tests that need a margin, the result is the margin. NaN if it is not known.

    >>> round(in_units_of("mann-whitney", 1.0, Plan((10, 10))), 2)  # 2 Phi(d / sqrt(2)) - 1
    0.52
    """
    sign = -1 if plan.alternative == "less" else 1
    if test in FISHER:
        return FISHER[test].truth(sign * effect)
    if test in _DIMENSIONLESS:
        return _DIMENSIONLESS[test](sign * effect, plan)
    entry = simulation.lookup(test)
    null = entry.null if plan.null is None else plan.null
    if test == "binomial":
        return simulation.proportion(sign * effect, null)
    if samples is None or entry.kind not in ("paired", "independent"):
        return math.nan
    first, *others = samples.groups
    if min(len(group) for group in samples.groups) < 2:
        return math.nan
    if entry.kind == "paired":
        scale = float(np.std(first - others[0] if others else first, ddof=1))
    else:  # pooled
        scale = math.sqrt(float(np.mean([np.var(group, ddof=1) for group in samples.groups])))
    if entry.margin:
        return effect * scale
    if "ratio" in test:
        scale /= abs(float(np.mean(samples.groups[-1]))) or math.nan
    return null + sign * effect * scale


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
}
