"""Rank tests of one or two groups, each with a rank effect (`protocol.tests.rank_effects`)."""

import math

import numpy as np
from scipy import special

from sharpjax.protocol.tests import exact, rank_effects
from sharpjax.protocol.tests.question import Question, cluster_codes, conclude, nothing_known
from sharpjax.protocol.tests.result import TestResult
from sharpjax.protocol.tests.t_tests import differences

ONE_CLUSTER = "all units of a group are of one cluster, whose spread nobody knows"


def wilcoxon(question: Question) -> TestResult:
    """Wilcoxon signed-rank test with the matched-pairs rank-biserial correlation.

    The effect is r = (R+ - R-) / (R+ + R-), with R+ and R- the sums of the ranks of |d| over
    positive and negative differences (Kerby 2014); -1 to 1. For many pairs it is
    P(d1 + d2 > 0) - P(d1 + d2 < 0) of two differences.

    p is exact, ties included, up to n = 199 (150 with ties): with midranks for equal |d|, every
    pattern of signs is equally likely under the null. Zeros are left out before ranking, as
    Wilcoxon did. If all differences are zero, r = 0 in (-1, 1) and p = 1. Numbers that differ only
    by rounding are equal, so 0.3 - 0.2 and 0.2 - 0.1 tie. Clusters change sign as a whole, by the
    sums of their signed ranks (also exact, 2^-K at best).

    The interval is from `rank_effects`, by score under a normal shift. It contains 0 whenever the
    exact test does not reject at its level. With clusters it is that of as many independent units
    as there are clusters, the widest that dependence can make it. A `null` other than 0 is tested
    by the same score, which is approximate.
    """
    ranks = _doubled_signed_ranks(*differences(question))
    total = int(np.abs(ranks).sum())
    floor = 2.0**-question.units
    if not total:
        return nothing_known(question, 0.0, "all differences are zero", floor)
    sums = np.rint(question.totals(ranks)).astype(np.int64)
    return rank_effects.answer(
        question,
        int(ranks[ranks > 0].sum()) / total,
        exact.sign_flips(np.abs(sums), int(sums[sums > 0].sum())),
        floor,
        sizes=(int(np.count_nonzero(question.totals(np.abs(ranks)))),),
        differences=True,
    )


def _doubled_signed_ranks(differences: np.ndarray, resolution: float) -> np.ndarray:
    """Twice the midrank of |d| with the sign of d: whole numbers; 0 for a difference of zero.

    >>> _doubled_signed_ranks(np.array([-1.0, 0.0, 1.0, 3.0]), 1e-15).tolist()
    [-3, 0, 3, 6]
    """
    size = np.abs(differences)
    nonzero = np.flatnonzero(size > resolution)
    signed = np.zeros(differences.size, np.int64)
    if not nonzero.size:
        return signed
    order = nonzero[np.argsort(size[nonzero])]
    rises = np.flatnonzero(np.diff(size[order]) > resolution) + 1
    edges = np.concatenate(([0], rises, [order.size]))
    signed[order] = np.repeat(edges[:-1] + edges[1:] + 1, np.diff(edges))
    return np.where(differences < 0, -signed, signed)


def mann_whitney(question: Question) -> TestResult:
    """Mann-Whitney U test with Cliff's delta.

    The effect is delta = P(x > y) - P(x < y) over pairs of one unit from each group, -1 to 1.

    p is exact, ties included, up to two groups of 33 (25 with ties): under the null (both groups
    from one distribution) every choice of the first group's units is equally likely. Two-sided p is
    twice the smaller tail. If all values are equal, delta = 0 and p = 1.

    The interval is from `rank_effects`, by score under a normal shift. If the placements of the
    units vary more than in that model (unequal spreads), its variance is raised to theirs (DeLong
    1988). It contains 0 whenever the exact test does not reject at its level. A `null` other than 0
    is tested by the same score, which is approximate.
    """
    return _rank_sum(question, differences=True)


def auc(question: Question) -> TestResult:
    """Area under the ROC curve of the first group against the second: P(x > y) + P(x = y) / 2.

    The same test and interval as `mann_whitney` on the scale 0 to 1; the null is 0.5 unless given.

    Units in clusters (layers of one seed): `clusters` holds the labels of the first group's units
    and then the second's, or those of one group if both have the same units. The standard error is
    then that of the clusters' sums of placements (Obuchowski 1997), never less than that of
    independent units, with the t distribution on K - 1 degrees of freedom, for K clusters in the
    group that has fewer. No p is below that of K units in each group that are completely separate.
    If a group has one cluster, p = 1.

    Raises:
        UserError: the number of labels fits neither order.
    """
    labels, (first, second) = question.clusters, question.sizes
    if labels is not None and first == second == len(labels):
        labels = np.concatenate((labels, labels))
    codes = cluster_codes(labels, first + second)
    return _rank_sum(question) if codes is None else _clustered(question, codes)


def _placements(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each x, twice the number of y below it, with ties counted half: whole numbers."""
    ordered = np.sort(y)
    return np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")


def _rank_sum(question: Question, differences: bool = False) -> TestResult:
    (x, y), (n1, n2) = question.groups, question.sizes
    n = (n1, n2)
    above, below = _placements(x, y), _placements(y, x)
    doubled_u = int(above.sum())
    theta = doubled_u / (2 * n1 * n2)
    pooled = np.concatenate((x, y))
    tails = exact.rank_sum(_placements(pooled, pooled) + 1, n1, doubled_u + n1 * (n1 + 1))
    inflation = 1.0
    if 0 < theta < 1 and min(n) > 1:
        spread = above.var(ddof=1) / (n1 * (2 * n2) ** 2) + below.var(ddof=1) / (n2 * (2 * n1) ** 2)
        inflation = max(1.0, float(spread) / rank_effects.deviation(theta, n) ** 2)
    floor = 1 / exact.arrangements(n)
    return rank_effects.answer(
        question, theta, tails, floor, sizes=n, inflation=inflation, differences=differences
    )


def _clustered(question: Question, codes: np.ndarray) -> TestResult:
    (x, y), (n1, n2) = question.groups, question.sizes
    k = int(codes.max()) + 1
    above, below = _placements(x, y) / (2 * n2), 1 - _placements(y, x) / (2 * n1)
    theta = float(above.mean())
    number = [np.unique(codes[:n1]).size, np.unique(codes[n1:]).size]
    few = min(number)
    if few == 1:
        return nothing_known(question, theta, ONE_CLUSTER)
    # Of each group, the sums of its clusters; without a factor of its own, a group of few clusters
    # would seem to spread little, since its sums add up to zero.
    one, other = (
        math.sqrt(m / (m - 1)) * np.bincount(own, weights=(part - theta) / part.size, minlength=k)
        for m, own, part in zip(number, (codes[:n1], codes[n1:]), (above, below), strict=True)
    )
    variance = float(np.sum((one + other) ** 2))
    apart = (few, few)  # completely separate groups have no spread: as if clusters were units
    sizes, inflation = apart, 1.0
    if 0 < theta < 1:
        sizes = (n1, n2)
        inflation = max(1.0, variance / rank_effects.deviation(theta, sizes) ** 2)

    def tails(estimate: float, sizes: tuple[int, int], inflation: float) -> tuple[float, float]:
        normal = rank_effects.score_tails(estimate, question.null, sizes, inflation)
        greater, less = (float(special.stdtr(few - 1, special.ndtri(tail))) for tail in normal)
        return greater, less

    def interval(confidence: float) -> tuple[float, float]:
        quantile = -float(special.stdtrit(few - 1, (1 - confidence) / 2))
        return rank_effects.interval(theta, sizes, quantile, inflation)

    # The spread of clusters is not known from groups that hardly overlap, either.
    least = tails(1.0, apart, 1.0)[0], tails(0.0, apart, 1.0)[1]
    greater, less = map(max, tails(theta, sizes, inflation), least)
    return conclude(question, theta, interval, greater, less, least=least)
