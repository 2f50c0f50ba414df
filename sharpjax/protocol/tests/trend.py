"""Trends along ordered groups: Jonckheere-Terpstra (independent groups) and Page (paired ones).

'greater' means that the first group is the largest and values fall from group to group; 'less'
means that they rise. As everywhere in `protocol`, a direction is that of the first group against
the later ones. The interval is from the bootstrap, which is drawn only when it is asked for.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import special, stats

from sharpjax.protocol.tests import association, bootstrap, exact, shuffle
from sharpjax.protocol.tests.question import Question, conclude
from sharpjax.protocol.tests.result import TestResult

_EXACT_PAIRS = 3_000  # up to so many pairs of units of different groups, orders are counted
_EXACT_GROUPS = 8  # up to so many groups, all orders within a unit are listed
_EXACT_UNITS = 200


def jonckheere(question: Question) -> TestResult:
    """Jonckheere-Terpstra test; the effect is the mean of Cliff's delta over pairs of groups.

        delta = sum over g < h of #(x_g > x_h) - #(x_g < x_h), over the number of such pairs

    It is 1 if every value lies above all those of later groups; null 0. It is Kendall's S of value
    and group. Without ties, up to 3,000 such pairs, p is exact: the Mann-Whitney distributions of
    each group against those before it are independent, and are convolved. Otherwise p is that of
    Kendall's tau (`shuffle.of_kendall`). Censored times count as ties at the end of the budget, if
    that is the same for all. Against another null, p is from the bootstrap, with each group drawn
    by itself.
    """
    sizes, values = question.sizes, np.concatenate(question.groups)
    label = np.repeat(np.arange(len(sizes)), sizes)
    # Pairs once, the earlier group first.
    order = np.sign(values[:, None] - values[None, :]) * (label[:, None] < label[None, :])
    pairs = (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2
    excess = float(order.sum())
    floor = 1 / exact.arrangements(sizes)
    drawn = _drawn(question, _delta(order), floor, sizes)
    if question.null != 0:
        tails = drawn().p, drawn().opposite_p
    elif np.unique(values).size == values.size and pairs <= _EXACT_PAIRS:
        law, concordant = _jonckheere_law(sizes), round((pairs + excess) / 2)
        tails = float(law[concordant:].sum()), float(law[: concordant + 1].sum())
    else:
        tails = shuffle.of_kendall(-label.astype(float), values, question.seed)
    return conclude(question, excess / pairs, lambda c: drawn().interval(c), *tails, floor)


def page(question: Question) -> TestResult:
    """Page's L for groups of the same units; the effect is the mean rank correlation of a unit.

    Each unit ranks its groups, and these ranks are correlated with the order (first group highest).
    The mean correlation is linear in L, and 1 if every unit shows the whole trend; null 0. p is
    exact with and without ties: all orders of each unit's own ranks, convolved over units (up to 8
    groups and 200 units; beyond, normal with the same variance). Against another null, or for
    clusters, p is from the bootstrap over units.
    """
    k, units = len(question.groups), question.units
    # Twice the mid-ranks, centred: whole numbers.
    table = np.stack(question.groups, axis=1)
    ranks = np.rint(2 * stats.rankdata(table, axis=1) - (k + 1)).astype(int)
    weights = k - 1 - 2 * np.arange(k)
    scores = ranks @ weights
    correlations = scores / float((weights**2).sum())
    by_bootstrap = question.clusters is not None or question.null != 0
    floor = max(math.exp(-units * math.lgamma(k + 1)), 1e-300)
    if by_bootstrap:
        floor = bootstrap.units_floor(units)
    drawn = _drawn(question, bootstrap.weighted_mean(correlations), floor)
    if by_bootstrap:
        tails = drawn().p, drawn().opposite_p
    elif k <= _EXACT_GROUPS and units <= _EXACT_UNITS:
        tails = _convolved(ranks, int(scores.sum()))
    else:
        deviation = math.sqrt(float((ranks**2).sum() * (weights**2).sum() / (k - 1)))
        # Scores of untied ranks move in steps of 4; half a step is the continuity correction.
        total = float(scores.sum())
        z = [(side * total + 2) / deviation if deviation else 9.0 for side in (-1, 1)]
        tails = float(special.ndtr(z[0])), float(special.ndtr(z[1]))
    effect = float(correlations.mean())
    return conclude(question, effect, lambda c: drawn().interval(c), *tails, floor)


def _drawn(question: Question, *given) -> Callable[[], TestResult]:
    """The bootstrap of `given`, drawn once, at the first call."""
    upward = dataclasses.replace(question, alternative="greater")
    return functools.cache(lambda: association.resampled(upward, *given))


def _delta(order: np.ndarray) -> bootstrap.Statistic:
    def statistic(*counts: np.ndarray) -> np.ndarray:
        drawn = bootstrap.joined(counts)
        # As in the samples, except if the jackknife leaves a unit out.
        pairs = (drawn.sum(-1) ** 2 - sum(c.sum(-1) ** 2 for c in counts)) / 2
        return (drawn @ order * drawn).sum(-1) / pairs

    return statistic


@functools.lru_cache(maxsize=32)
def _jonckheere_law(sizes: tuple[int, ...]) -> np.ndarray:
    """P(J = j), with J the number of pairs in the order of the trend."""
    law, before = np.ones(1), sizes[0]
    for size in sizes[1:]:
        law = np.convolve(law, exact.mann_whitney_law(size, before))
        before += size
    return law


def _convolved(ranks: np.ndarray, total: int) -> tuple[float, float]:
    law = np.ones(1)
    for pattern in map(tuple, np.sort(ranks, axis=1).tolist()):
        law = np.convolve(law, _page_law(pattern))
    middle = law.size // 2
    greater = float(law[middle + total :].sum())
    return min(1.0, greater), min(1.0, float(law[: middle + total + 1].sum()))


@functools.lru_cache(maxsize=256)
def _page_law(pattern: tuple[int, ...]) -> np.ndarray:
    """The distribution of one unit's score over all orders of its ranks; score 0 in the middle."""
    k = len(pattern)
    weights = k - 1 - 2 * np.arange(k)
    scores = np.array(pattern)[shuffle.orders(k, 0).index] @ weights
    most = int((weights**2).sum())
    return np.bincount(scores + most, minlength=2 * most + 1) / len(scores)
