"""Tests of two independent groups."""

import numpy as np
from scipy import special

from sharpjax.protocol.tests import exact, location, rank_effects
from sharpjax.protocol.tests.arguments import check_options, cluster_codes, directed, read_groups
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult


def welch(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Welch's t test: variances are not assumed equal, degrees of freedom by Satterthwaite.

    The effect is the difference of means, first group less second, in the units of the values. A
    group of one unit: p = 1. No spread in either group: p is that of the permutation test,
    1 / C(n1 + n2, n1) in the direction there is (see `location.Location`). `margin` and `seed` are
    not used. Cost: .04 ms.

    Raises:
        UserError: values that are not finite, a null that is not finite, units in clusters.

    >>> samples = Samples((np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0, 8.0])))
    >>> result = welch(samples, alternative="less")
    >>> round(result.effect, 4), round(result.p, 4)
    (-3.0, 0.05)
    """
    null = 0.0 if null is None else null
    check_options("welch", alternative, confidence, null=null)
    difference = location.of_two_groups("welch", samples)
    p, opposite_p = directed(alternative, difference.greater(null), difference.less(null))
    return TestResult(
        difference.estimate,
        difference.interval(confidence),
        p,
        opposite_p,
        difference.attainable,
        difference.n,
    )


def mann_whitney(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Mann-Whitney U test with Cliff's delta.

    The effect is delta = P(x > y) - P(x < y) over pairs of one unit from each group, -1 to 1.

    p is exact, ties included, up to two groups of 33 (25 with ties): under the null (both groups
    from one distribution) every choice of the first group's units is equally likely. Two-sided p is
    twice the smaller tail. Nothing but equal values gives delta = 0 and p = 1.

    The interval is of `rank_effects`, by score under a normal shift; where the placements of the
    units vary more than that model has it (unequal spreads), its variance is raised to theirs
    (DeLong 1988). It contains 0 wherever the exact test does not reject at its level. A `null`
    other than 0, inside (-1, 1), is tested by the same score, which is approximate. `margin` and
    `seed` are not used. Cost: .1 ms at n = 10.

    Raises:
        UserError: values that are not finite, a null outside (-1, 1), units in clusters.

    >>> samples = Samples((np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0])))
    >>> result = mann_whitney(samples, alternative="two-sided")
    >>> result.effect, result.p, result.min_attainable_p
    (1.0, 0.1, 0.1)
    """
    null = 0.0 if null is None else null
    check_options("mann-whitney", alternative, confidence, null=null, within=(-1.0, 1.0))
    x, y = read_groups("mann-whitney", samples, 2, 2)
    result = _rank_sum(x, y, alternative, (1 + null) / 2, confidence)
    return rank_effects.on_difference_scale(result)


def auc(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Area under the ROC curve of the first group against the second: P(x > y) + P(x = y) / 2.

    The same test and interval as `mann_whitney` on the scale 0 to 1; the null is 0.5 unless given.

    Units in clusters (layers of one seed): `clusters` holds the labels of the first group's units
    and then the second's; or those of one group, where both have the same units. The standard error
    is then that of the clusters' sums of placements (Obuchowski 1997), never less than that of
    independent units, against the t distribution on K - 1 degrees of freedom. One cluster gives
    p = 1. Cost: .1 ms at n = 10.

    Raises:
        UserError: as `mann_whitney`; a null outside (0, 1); labels that fit no such order.

    >>> samples = Samples((np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 6.5])))
    >>> result = auc(samples, alternative="greater")
    >>> round(result.effect, 4), result.p
    (0.7778, 0.2)
    """
    null = 0.5 if null is None else null
    check_options("auc", alternative, confidence, null=null, within=(0.0, 1.0))
    x, y = read_groups("auc", samples, 2, 2, clusters=True)
    labels = samples.clusters
    if labels is not None and x.size == y.size == len(labels):
        labels = np.concatenate((labels, labels))
    codes = cluster_codes("auc", labels, x.size + y.size)
    if codes is None:
        return _rank_sum(x, y, alternative, null, confidence)
    return _clustered(x, y, codes, alternative, null, confidence)


def _placements(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each x twice the number of y below it, ties half: whole numbers."""
    ordered = np.sort(y)
    return np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")


def _rank_sum(
    x: np.ndarray, y: np.ndarray, alternative: Alternative, null: float, confidence: float
) -> TestResult:
    n1, n2 = n = (x.size, y.size)
    above, below = _placements(x, y), _placements(y, x)
    doubled_u = int(above.sum())
    theta = doubled_u / (2 * n1 * n2)
    pooled = np.concatenate((x, y))
    tails = exact.rank_sum(_placements(pooled, pooled) + 1, n1, doubled_u + n1 * (n1 + 1))
    inflation = 1.0
    if 0 < theta < 1 and min(n) > 1:
        spread = above.var(ddof=1) / (n1 * (2 * n2) ** 2) + below.var(ddof=1) / (n2 * (2 * n1) ** 2)
        inflation = max(1.0, float(spread) / rank_effects.deviation(theta, n) ** 2)
    return rank_effects.conclude(
        theta,
        tails,
        exact.share_of_one_choice(n1, n2),
        sizes=n,
        n=n,
        alternative=alternative,
        null=null,
        confidence=confidence,
        inflation=inflation,
    )


def _clustered(
    x: np.ndarray,
    y: np.ndarray,
    codes: np.ndarray,
    alternative: Alternative,
    null: float,
    confidence: float,
) -> TestResult:
    n = n1, n2 = x.size, y.size
    k = int(codes.max()) + 1
    above, below = _placements(x, y) / (2 * n2), 1 - _placements(y, x) / (2 * n1)
    theta = float(above.mean())
    if k == 1:
        return TestResult(theta, (0.0, 1.0), 1.0, 1.0, 1.0, n)
    parts = np.concatenate(((above - theta) / n1, (below - theta) / n2))
    sums = np.bincount(codes, weights=parts, minlength=k)
    variance = k / (k - 1) * float(sums @ sums)
    # Complete separation leaves no variance to estimate: there each cluster counts as one unit.
    few = (min(n1, k), min(n2, k))
    sizes, inflation = few, 1.0
    if 0 < theta < 1:
        sizes = n
        inflation = max(1.0, variance / rank_effects.deviation(theta, n) ** 2)

    def tails(estimate: float, sizes: tuple[int, int], inflation: float) -> tuple[float, float]:
        normal = rank_effects.score_tails(estimate, null, sizes, inflation)
        greater, less = (float(special.stdtr(k - 1, special.ndtri(tail))) for tail in normal)
        return greater, less

    p, opposite_p = directed(alternative, *tails(theta, sizes, inflation))
    floor, _ = directed(alternative, tails(1.0, few, 1.0)[0], tails(0.0, few, 1.0)[1])
    quantile = -float(special.stdtrit(k - 1, (1 - confidence) / 2))
    interval = rank_effects.interval(theta, sizes, quantile, inflation)
    return TestResult(theta, interval, p, opposite_p, floor, n)
