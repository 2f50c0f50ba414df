"""Whether several groups differ at all: Kruskal and Wallis for independent ones, Friedman for
paired.

Both take p from permutations of the ranks (all of them for Kruskal and Wallis up to 8 units, 9,999
random ones otherwise), since chi squared is far off for a few units (three groups of three wholly
apart: .027, exactly .0036). Ties need no correction then. No interval is given: the effects are 0
only if all groups are alike to the last unit, and their bootstrap intervals start above the truth.
"""

import functools
import math
from collections import Counter

import numpy as np
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import exact, shuffle
from sharpjax.protocol.tests.arguments import MANY, check_options, read_aligned, read_groups
from sharpjax.protocol.tests.result import UNKNOWN, Alternative, Samples, TestResult

_SHUFFLED = 500  # units up to which ranks are shuffled; chi squared is good far below that


def kruskal_wallis(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Kruskal-Wallis test; the effect is epsilon squared, H / (N - 1).

    That is the share of the variance of the mid-ranks that lies between the groups: 0 for equal
    mean ranks, 1 where each group is one value. p is chi squared's above 500 units.

    Raises:
        UserError: see `arguments.read_groups`; a direction, or a null other than 0.

    >>> groups = (np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]), np.array([7.0, 8.0, 9.0]))
    >>> result = kruskal_wallis(Samples(groups), alternative="two-sided")
    >>> round(result.effect, 6), round(result.min_attainable_p, 6)
    (0.9, 0.003571)
    """
    _check("kruskal_wallis", alternative, null, confidence)
    groups = read_groups("kruskal_wallis", samples, 2, MANY)
    sizes = tuple(group.size for group in groups)
    ranks = stats.rankdata(np.concatenate(groups))
    ranks -= ranks.mean()
    total = float((ranks**2).sum())
    least = shuffle.least(exact.arrangements(sizes) / _ways_apart(sizes))
    if total == 0:
        return TestResult(0.0, UNKNOWN, 1.0, 1.0, least, sizes)
    starts = np.cumsum((0, *sizes[:-1]))

    def between(ordered: np.ndarray) -> np.ndarray:
        return (np.add.reduceat(ordered, starts, axis=-1) ** 2 / sizes).sum(-1)

    observed = float(between(ranks))
    if ranks.size > _SHUFFLED:
        p = float(stats.chi2.sf((ranks.size - 1) * observed / total, len(groups) - 1))
    else:
        index, are_all = shuffle.orders(ranks.size, seed)
        p = max(least, shuffle.tails(between(ranks[index]), observed, are_all)[0])
    return TestResult(observed / total, UNKNOWN, p, p, least, sizes)


def friedman(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Friedman test over units that all groups share; the effect is Kendall's W.

    W = chi^2 / (n (k - 1)), corrected for ties: 1 where all units rank the groups alike, 0 where
    the mean ranks are equal. p is chi squared's above 500 values.

    Raises:
        UserError: see `arguments.read_groups`; groups of different lengths; a direction, or a null
            other than 0.

    >>> groups = (np.array([1.0, 2.0, 3.0, 2.0]), np.array([4.0, 5.0, 6.0, 9.0]), np.full(4, 9.5))
    >>> result = friedman(Samples(groups), alternative="two-sided")
    >>> result.effect, round(result.min_attainable_p * 216)
    (1.0, 1)
    """
    _check("friedman", alternative, null, confidence)
    read_groups("friedman", samples, 2, MANY)  # which refuses clusters
    groups, _, num_units = read_aligned("friedman", samples, 2, MANY)
    k, sizes = len(groups), tuple(group.size for group in groups)
    ranks = 2 * stats.rankdata(np.stack(groups, axis=1), axis=1) - (k + 1)
    # One unit's order may be any: all others must agree with it.
    least = shuffle.least(math.exp(min((num_units - 1) * math.lgamma(k + 1), 600.0)))
    most = num_units * float((ranks**2).sum())
    if most == 0:
        return TestResult(0.0, UNKNOWN, 1.0, 1.0, least, sizes)

    def agreement(shuffled: np.ndarray) -> np.ndarray:
        return (shuffled.sum(-2) ** 2).sum(-1)

    observed = float(agreement(ranks))
    effect = observed / most
    if ranks.size > _SHUFFLED:
        p = float(stats.chi2.sf(num_units * (k - 1) * effect, k - 1))
    else:
        index = _within(num_units, k, seed, shuffle.NUM_ORDERS)
        shuffled = np.take_along_axis(ranks[None], index, axis=-1)
        p = max(least, shuffle.tails(agreement(shuffled), observed, exact=False)[0])
    return TestResult(effect, UNKNOWN, p, p, least, sizes)


def _check(test: str, alternative: Alternative, null: float | None, confidence: float) -> None:
    check_options(test, alternative, confidence)
    if alternative != "two-sided":
        raise UserError(
            f"{test}: alternative={alternative!r}; that groups differ has no direction: give "
            "'two-sided', or take jonckheere or page for an order of groups."
        )
    if null:
        raise UserError(f"{test}: null={null}; that all groups are alike is its only null, 0.")


def _ways_apart(sizes: tuple[int, ...]) -> int:
    """How many arrangements are as extreme as constant groups: those that swap groups of a size."""
    return math.prod(math.factorial(count) for count in Counter(sizes).values())


@functools.lru_cache(maxsize=4)
def _within(num_units: int, num_groups: int, seed: int, number: int) -> np.ndarray:
    """Random orders of the groups within each unit, [orders, units, groups]."""
    index = np.tile(np.arange(num_groups, dtype=np.int32), (number, num_units, 1))
    return np.random.default_rng(seed).permuted(index, axis=-1)
