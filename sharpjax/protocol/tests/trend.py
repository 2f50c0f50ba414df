"""Trends along ordered groups: Jonckheere and Terpstra's for independent ones, Page's for paired.

'greater' says that the first group is the largest and that values fall from group to group, 'less'
that they rise, as everywhere in `protocol` a direction is that of the first group against those
after it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import special, stats

from sharpjax.protocol.tests import association, bootstrap, exact, independence, shuffle
from sharpjax.protocol.tests.question import Question, conclude
from sharpjax.protocol.tests.result import Interval, TestResult

_EXACT_PAIRS = 3_000  # pairs of units of different groups up to which orders are counted
_EXACT_GROUPS = 8  # up to which all orders within a unit are listed
_EXACT_UNITS = 200


def jonckheere(question: Question) -> TestResult:
    """Jonckheere-Terpstra test; the effect is the mean of Cliff's delta over pairs of groups.

        delta = sum over g < h of #(x_g > x_h) - #(x_g < x_h), over the number of such pairs

    so 1 where every value lies above all those of later groups; null 0. It is Kendall's S of value
    and group. p is exact without ties (Mann-Whitney distributions of each group against those
    before it, which are independent, convolved); with ties the values are shuffled over the groups.
    Censored times enter as ties at the end of the budget, if that is the same for all. The interval
    is the bootstrap's, each group drawn by itself; so is p against another null.
    """
    groups, sizes = question.groups, question.sizes
    values = np.concatenate(groups)
    label = np.repeat(np.arange(len(groups)), sizes)
    # Pairs once, the earlier group first.
    order = np.sign(values[:, None] - values[None, :]) * (label[:, None] < label[None, :])
    pairs = (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2
    excess = float(order.sum())
    floor = 1 / exact.arrangements(sizes)
    drawn = _resampled(question, min(sizes), _delta(order), floor, sizes)
    if question.null == 0:
        if np.unique(values).size == values.size and pairs <= _EXACT_PAIRS:
            greater, less = _counted(sizes, round((pairs + excess) / 2))
        else:
            greater, less = independence.kendall(-label.astype(float), values, question.seed)
    else:
        _, greater, less = drawn()
    return conclude(question, excess / pairs, _later(drawn), greater, less, floor)


def page(question: Question) -> TestResult:
    """Page's L for groups of the same units; the effect is the mean rank correlation of a unit.

    Each unit ranks its groups, and is correlated with the order (first group highest): the mean is
    linear in L, 1 where every unit shows the whole trend; null 0. p is exact with and without ties:
    all orders of each unit's own ranks, convolved over units (up to 8 groups and 200 units; normal
    with the same variance beyond). Interval, and p against another null or of clusters, come from
    the bootstrap over units.
    """
    k = len(question.groups)
    # Twice the mid-ranks, centred: whole numbers.
    table = np.stack(question.groups, axis=1)
    ranks = np.rint(2 * stats.rankdata(table, axis=1) - (k + 1)).astype(int)
    weights = k - 1 - 2 * np.arange(k)
    scores = ranks @ weights
    correlations = scores / float((weights**2).sum())
    by_bootstrap = question.clusters is not None or question.null != 0
    floor = max(math.exp(-question.units * math.lgamma(k + 1)), 1e-300)
    if by_bootstrap:
        floor = bootstrap.units_floor(question.units)
    statistic = bootstrap.weighted_mean(correlations)
    drawn = _resampled(question, question.units, statistic, floor)
    if by_bootstrap:
        _, greater, less = drawn()
    elif k <= _EXACT_GROUPS and len(scores) <= _EXACT_UNITS:
        greater, less = _convolved(ranks, int(scores.sum()))
    else:
        variance = float((ranks**2).sum() * (weights**2).sum() / (k - 1))
        # Scores of untied ranks move in steps of 4: half of one for continuity.
        steps = np.array([-1, 1]) * scores.sum() + 2
        z = steps / math.sqrt(variance) if variance else [9.0, 9.0]
        greater, less = (float(special.ndtr(side)) for side in z)
    return conclude(question, float(correlations.mean()), _later(drawn), greater, less, floor)


def _anything(confidence: float) -> tuple[float, float]:
    return -1.0, 1.0


_Drawn = Callable[[], tuple[Interval, float, float]]


def _resampled(question: Question, fewest: int, *given) -> _Drawn:
    """Interval and both tails of the bootstrap, which is drawn once, and where it is asked for."""

    @functools.cache
    def drawn() -> tuple[Interval, float, float]:
        if fewest == 1:
            return _anything, 1.0, 1.0
        upward = dataclasses.replace(question, alternative="greater")
        result = association.resampled(upward, *given)
        return result.interval, result.p, result.opposite_p

    return drawn


def _later(drawn: _Drawn) -> Interval:
    return lambda confidence: drawn()[0](confidence)


def _delta(order: np.ndarray) -> bootstrap.Statistic:
    def statistic(*counts: np.ndarray) -> np.ndarray:
        drawn = bootstrap.joined(counts)
        # As in the samples, but where the jackknife leaves a unit out.
        pairs = (drawn.sum(-1) ** 2 - sum(c.sum(-1) ** 2 for c in counts)) / 2
        return (drawn @ order * drawn).sum(-1) / pairs

    return statistic


def _counted(sizes: tuple[int, ...], concordant: int) -> tuple[float, float]:
    """P(J >= concordant) and P(J <= concordant), J the pairs in the order of the trend."""
    law = _jonckheere_law(sizes)
    greater, less = law[concordant:].sum(), law[: concordant + 1].sum()
    return min(1.0, float(greater)), min(1.0, float(less))


@functools.lru_cache(maxsize=32)
def _jonckheere_law(sizes: tuple[int, ...]) -> np.ndarray:
    law, before = np.ones(1), sizes[0]
    for size in sizes[1:]:
        law = np.convolve(law, _mann_whitney_law(size, before))
        before += size
    return law


@functools.lru_cache(maxsize=64)
def _mann_whitney_law(first: int, second: int) -> np.ndarray:
    """P(U = u): the largest value is one of `first`, and exceeds all of `second`, or is not."""
    rows = [np.ones(1) for _ in range(second + 1)]
    for m in range(1, first + 1):
        previous, rows = rows, [np.ones(1)]
        for n in range(1, second + 1):
            law = np.zeros(m * n + 1)
            law[n:] += previous[n] * (m / (m + n))
            law[: m * (n - 1) + 1] += rows[n - 1] * (n / (m + n))
            rows.append(law)
    return rows[second]


def _convolved(ranks: np.ndarray, total: int) -> tuple[float, float]:
    law = np.ones(1)
    for pattern in map(tuple, np.sort(ranks, axis=1).tolist()):
        law = np.convolve(law, _page_law(pattern))
    middle = law.size // 2
    greater = float(law[middle + total :].sum())
    return min(1.0, greater), min(1.0, float(law[: middle + total + 1].sum()))


@functools.lru_cache(maxsize=256)
def _page_law(pattern: tuple[int, ...]) -> np.ndarray:
    """The law of one unit's score over all orders of its ranks; score 0 in the middle."""
    k = len(pattern)
    weights = k - 1 - 2 * np.arange(k)
    scores = np.array(pattern)[shuffle.orders(k, 0).index] @ weights
    most = int((weights**2).sum())
    return np.bincount(scores + most, minlength=2 * most + 1) / len(scores)
