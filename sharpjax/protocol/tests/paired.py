"""Tests of paired measurements: unit i (a seed, say) is the same in both groups.

One group alone is taken for the differences themselves and tested against `null`. Where
`Samples.clusters` says that units come in clusters (layers of one seed), each cluster is one unit
of evidence.
"""

import numpy as np

from sharpjax.protocol.tests import exact, location, rank_effects
from sharpjax.protocol.tests.arguments import check_options, directed, read_pairs
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult


def paired_t(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Paired t test: t = (mean of d - null) / (s / sqrt(n)) on n - 1 degrees of freedom.

    The effect is the mean difference, first group less second, in the units of the values. With K
    clusters the standard error is that of their sums, on K - 1 degrees of freedom (see
    `location.of_pairs`). One unit: p = 1. Differences without any spread: p is that of the
    sign-flip test, 2^-n in the direction they have (see `location.Location`). `margin` and `seed`
    are not used. Cost: .03 ms.

    Raises:
        UserError: values that are not finite, groups that do not pair, a null that is not finite.

    >>> samples = Samples((np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 2.0])))
    >>> result = paired_t(samples, alternative="greater")
    >>> round(result.effect, 4), round(result.p, 4)
    (1.3333, 0.0286)
    """
    null = 0.0 if null is None else null
    check_options("paired-t", alternative, confidence, null=null)
    mean = location.of_pairs("paired-t", samples)
    p, opposite_p = directed(alternative, mean.greater(null), mean.less(null))
    interval = mean.interval(confidence)
    return TestResult(mean.estimate, interval, p, opposite_p, mean.attainable, mean.n)


def wilcoxon(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """Wilcoxon signed-rank test with the matched-pairs rank-biserial correlation.

    The effect is r = (R+ - R-) / (R+ + R-), R+ and R- the sums of the ranks of |d| over positive
    and negative differences (Kerby 2014); -1 to 1. For many pairs it is P(d1 + d2 > 0) -
    P(d1 + d2 < 0) of two differences.

    p is exact, ties included, up to n = 199 (150 with ties): with midranks for equal |d|, every
    pattern of signs is equally likely under the null. Zeros are left out before ranking, as
    Wilcoxon did; nothing but zeros gives r = 0 in (-1, 1) and p = 1. What differs by rounding alone
    is equal, so that 0.3 - 0.2 and 0.2 - 0.1 tie. Clusters change sign as a whole, by the sums of
    their signed ranks (exact too, 2^-K at best).

    The interval is of `rank_effects`, by score under a normal shift, and contains 0 wherever the
    exact test does not reject at its level; with clusters it is that of as many independent units
    as there are clusters, the widest that dependence can make it. A `null` other than 0 (a
    correlation inside (-1, 1)) is tested by the same score, which is approximate. `margin` and
    `seed` are not used. Cost: .1 ms at n = 10.

    Raises:
        UserError: values that are not finite, groups that do not pair, a null outside (-1, 1).

    >>> d = np.array([0.3, 0.1, 0.2, -0.05, 0.4, 0.25])
    >>> result = wilcoxon(Samples((d,)), alternative="greater")
    >>> round(result.effect, 4), result.p, result.min_attainable_p
    (0.9048, 0.03125, 0.015625)
    """
    null = 0.0 if null is None else null
    check_options("wilcoxon", alternative, confidence, null=null, within=(-1.0, 1.0))
    pairs = read_pairs("wilcoxon", samples)
    doubled = _doubled_signed_ranks(pairs.differences, pairs.resolution)
    total = int(np.abs(doubled).sum())
    if not total:
        floor, _ = directed(alternative, 2.0**-pairs.num_clusters, 2.0**-pairs.num_clusters)
        return TestResult(0.0, (-1.0, 1.0), 1.0, 1.0, floor, pairs.n)
    theta = int(doubled[doubled > 0].sum()) / total
    sums = np.rint(pairs.totals(doubled)).astype(np.int64)
    tails = exact.sign_flips(np.abs(sums), int(sums[sums > 0].sum()))
    units = int(np.count_nonzero(pairs.totals(np.abs(doubled))))
    result = rank_effects.conclude(
        theta,
        tails,
        2.0**-pairs.num_clusters,
        sizes=(units,),
        n=pairs.n,
        alternative=alternative,
        null=(1 + null) / 2,
        confidence=confidence,
    )
    return rank_effects.on_difference_scale(result)


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
