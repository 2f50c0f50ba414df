"""The interquartile mean: the mean of the middle half of all runs.

As robust against single runs as the median almost, and nearly as precise as the mean (Agarwal et
al., Deep reinforcement learning at the edge of the statistical precipice, NeurIPS 2021). Their
definition, scipy's `trim_mean(x, .25)`: the floor(n / 4) lowest and highest values are left out.
Intervals and p by `protocol.bootstrap`.
"""

import numpy as np

from sharpjax.protocol.tests import bootstrap
from sharpjax.protocol.tests.arguments import MANY, check_options, read_aligned, read_groups
from sharpjax.protocol.tests.bootstrap import Statistic
from sharpjax.protocol.tests.result import Alternative, Samples, TestResult, nothing_known


def interquartile_mean(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """The interquartile mean of all groups together; null 0.

    Several groups are strata (tasks): pooled for the mean, each resampled by itself. Clusters of
    one group are drawn whole.

    Raises:
        UserError: see `arguments.read_groups`.

    >>> runs = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 80.0])
    >>> interquartile_mean(Samples((runs,)), alternative="greater").effect
    4.5
    """
    name, null = "interquartile_mean", 0.0 if null is None else null
    check_options(name, alternative, confidence, null=null)
    if len(samples.groups) == 1:
        groups, clusters, independent = read_aligned(name, samples, 1, 1)
    else:
        groups, clusters = read_groups(name, samples, 1, MANY), None
        independent = sum(group.size for group in groups)
    sizes = tuple(group.size for group in groups)
    middle = weighted_middle(np.concatenate(groups))
    if min(independent, *sizes) < 2:
        return nothing_known(float(middle(np.ones(sum(sizes)))), sizes)
    return bootstrap.infer(
        bootstrap.bca(
            lambda *counts: middle(bootstrap.joined(counts)), sizes, clusters=clusters, seed=seed
        ),
        sizes,
        alternative=alternative,
        null=null,
        confidence=confidence,
        floor=bootstrap.units_floor(independent),
    )


def interquartile_mean_difference(
    samples: Samples,
    *,
    alternative: Alternative,
    margin: float = 0.0,
    null: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> TestResult:
    """The difference of the interquartile means of two independent groups; null 0.

    Raises:
        UserError: see `arguments.read_groups`.

    >>> a, b = np.array([5.0, 7.0, 6.0, 8.0, 90.0]), np.array([1.0, 2.0, 4.0, 3.0, 2.0])
    >>> result = interquartile_mean_difference(Samples((a, b)), alternative="greater")
    >>> round(result.effect, 4)
    4.6667
    """
    name, null = "interquartile_mean_difference", 0.0 if null is None else null
    check_options(name, alternative, confidence, null=null)
    groups = read_groups(name, samples, 2, 2)
    sizes = tuple(group.size for group in groups)
    first, second = (weighted_middle(group) for group in groups)
    if min(sizes) < 2:
        effect = first(np.ones(sizes[0])) - second(np.ones(sizes[1]))
        return nothing_known(float(effect), sizes)
    return bootstrap.infer(
        bootstrap.bca(lambda a, b: first(a) - second(b), sizes, seed=seed),
        sizes,
        alternative=alternative,
        null=null,
        confidence=confidence,
        floor=bootstrap.strata_floor(sizes),
    )


def weighted_middle(x: np.ndarray) -> Statistic:
    """The interquartile mean of a resample, as a function of counts.

    >>> float(weighted_middle(np.array([9.0, 1.0, 2.0, 3.0]))(np.array([1.0, 1.0, 0.0, 2.0])))
    3.0
    """
    order = np.argsort(x, kind="stable")
    origin = x[order[0]]
    ascending = x[order] - origin

    def middle(counts: np.ndarray) -> np.ndarray:
        counts = counts[..., order]
        ends = np.cumsum(counts, axis=-1)
        total = ends[..., -1:]
        cut = np.floor(total / 4)
        kept = np.minimum(ends, total - cut) - np.maximum(ends - counts, cut)
        return origin + np.maximum(kept, 0) @ ascending / (total - 2 * cut)[..., 0]

    return middle
