"""Whether several groups differ at all: Kruskal-Wallis (independent groups), Friedman (paired).

Both take p from permutations of the ranks (all of them if they are few, else 9,999 random ones),
because chi squared is far off for a few units: for three completely separated groups of three it
gives .027, and the exact p is .0036. So ties need no correction. There is no interval: the effects
are 0 only if all groups are exactly alike, so their bootstrap intervals start above the truth.
"""

import math
from collections import Counter

import numpy as np
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import exact, shuffle
from sharpjax.protocol.tests.question import Question
from sharpjax.protocol.tests.result import TestResult

_SHUFFLED = 500  # up to so many units, ranks are shuffled; chi squared is good far below


def kruskal_wallis(question: Question) -> TestResult:
    """Kruskal-Wallis test; the effect is epsilon squared, H / (N - 1).

    It is the share of the variance of the mid-ranks that lies between the groups: 0 for equal mean
    ranks, 1 if each group has a single value. Above 500 units, p is from chi squared.

    Raises:
        UserError: a direction.
    """
    _check(question)
    groups, sizes = question.groups, question.sizes
    ranks = stats.rankdata(np.concatenate(groups))
    ranks -= ranks.mean()
    total = float((ranks**2).sum())
    # If groups of one size change places, constant groups stay as extreme.
    same = math.prod(math.factorial(count) for count in Counter(sizes).values())
    least = shuffle.least(exact.arrangements(sizes) / same)
    if total == 0:
        return TestResult(0.0, _no_interval, 1.0, 1.0, least, sizes, "all values are alike")
    starts = np.cumsum((0, *sizes[:-1]))

    def between(ordered: np.ndarray) -> np.ndarray:
        return (np.add.reduceat(ordered, starts, axis=-1) ** 2 / sizes).sum(-1)

    observed = float(between(ranks))
    if ranks.size > _SHUFFLED:
        p = float(stats.chi2.sf((ranks.size - 1) * observed / total, len(groups) - 1))
    else:
        index, are_all = shuffle.orders(ranks.size, question.seed)
        p = max(least, shuffle.tails(between(ranks[index]), observed, are_all)[0])
    return TestResult(observed / total, _no_interval, p, p, least, sizes)


def friedman(question: Question) -> TestResult:
    """Friedman test over units that all groups share; the effect is Kendall's W.

    W = chi^2 / (n (k - 1)), corrected for ties: 1 if all units rank the groups alike, 0 if the mean
    ranks are equal. Above 500 values, p is from chi squared.

    Raises:
        UserError: a direction.
    """
    _check(question)
    k, n, sizes = len(question.groups), question.units, question.sizes
    ranks = 2 * stats.rankdata(np.stack(question.groups, axis=1), axis=1) - (k + 1)
    # The order of one unit is arbitrary; all others must agree with it.
    least = shuffle.least(math.exp(min((n - 1) * math.lgamma(k + 1), 600.0)))
    most = n * float((ranks**2).sum())
    if most == 0:
        return TestResult(0.0, _no_interval, 1.0, 1.0, least, sizes, "all values are alike")

    def agreement(*groups: np.ndarray, axis: int) -> np.ndarray:
        return np.sum([group.sum(axis) ** 2 for group in groups], axis=0)

    observed = float(agreement(*ranks.T, axis=-1))
    effect = observed / most
    if ranks.size > _SHUFFLED:
        p = float(stats.chi2.sf(n * (k - 1) * effect, k - 1))
    elif n == 1:
        p = 1.0
    else:
        shuffled = stats.permutation_test(
            *(list(ranks.T), agreement),
            permutation_type="samples",
            vectorized=True,
            n_resamples=shuffle.NUM_ORDERS,
            alternative="greater",
            rng=question.seed,
        )
        p = max(least, float(shuffled.pvalue))
    return TestResult(effect, _no_interval, p, p, least, sizes)


def _no_interval(confidence: float) -> tuple[float, float]:
    return math.nan, math.nan


def _check(question: Question) -> None:
    if question.alternative != "two-sided":
        raise UserError(
            f"alternative={question.alternative!r}; that groups differ has no direction: give "
            "'two-sided', or take jonckheere or page for an order of groups."
        )
