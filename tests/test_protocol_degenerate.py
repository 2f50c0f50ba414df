"""Few units, ties, constants, zeros, clusters of all sizes: an answer, without a warning."""

import math
from typing import Any

import numpy as np
import pytest

from sharpjax.protocol.tests import (
    aggregate,
    bootstrap,
    correlation,
    omnibus,
    pairwise,
    ratios,
    survival,
    trend,
)
from sharpjax.protocol.tests.result import Samples
from tests.simulated import few_resamples

SEVERAL = {"two": (2,), "four": (4,), "even": (4, 6), "any": (2, 3, 5)}
ALIGNED: dict[Any, tuple[int, ...]] = {
    bootstrap.mean: (1, 2),
    ratios.paired_ratio_of_means: SEVERAL["two"],
    ratios.paired_difference_of_ratios: SEVERAL["four"],
    ratios.paired_log_ratio_difference: SEVERAL["four"],
    correlation.spearman: SEVERAL["two"],
    correlation.kendall: SEVERAL["two"],
    correlation.pearson: SEVERAL["two"],
    correlation.fit_error: SEVERAL["two"],
    correlation.kendall_difference: (3,),
    correlation.spearman_pooled: SEVERAL["even"],
    trend.page: SEVERAL["any"],
    omnibus.friedman: SEVERAL["any"],
}
INDEPENDENT: dict[Any, tuple[int, ...]] = {
    bootstrap.mean_difference: SEVERAL["two"],
    ratios.ratio_of_means: SEVERAL["two"],
    ratios.difference_of_ratios: SEVERAL["four"],
    ratios.log_ratio_difference: SEVERAL["four"],
    trend.jonckheere: SEVERAL["any"],
    omnibus.kruskal_wallis: SEVERAL["any"],
    aggregate.interquartile_mean: (1, 2, 3),
    aggregate.interquartile_mean_difference: SEVERAL["two"],
}
TIMES = [survival.log_rank, survival.restricted_mean, survival.restricted_mean_ratio]
UNDIRECTED = [omnibus.friedman, omnibus.kruskal_wallis]


def awkward(generator, n):
    draws = [
        lambda: generator.normal(size=n),
        lambda: generator.integers(0, 3, n) * 1.0,
        lambda: np.full(n, 0.1),
        lambda: generator.exponential(size=n) * 1e8,
        lambda: np.zeros(n),
        lambda: generator.lognormal(0, 3, n),
        lambda: generator.normal(size=n) * 1e-9 + 1,
    ]
    return draws[generator.integers(len(draws))]()


def drawn(generator, test):
    seen = clusters = None
    if test in ALIGNED:
        n = int(generator.integers(1, 8))
        groups = [awkward(generator, n) for _ in range(generator.choice(ALIGNED[test]))]
        if test is not omnibus.friedman and generator.random() < 0.4:
            clusters = generator.integers(0, 3, n)
    elif test is pairwise.pairwise_difference:
        n = int(generator.integers(3, 8))
        groups = [awkward(generator, n * n).reshape(n, n) for _ in range(2)]
    else:
        count = generator.choice(INDEPENDENT.get(test, (2,)))
        groups = [awkward(generator, int(generator.integers(1, 8))) for _ in range(count)]
    if test in TIMES:
        groups = [np.abs(group) for group in groups]
        seen = tuple(generator.random(group.size) < 0.6 for group in groups)
    return Samples(tuple(groups), seen, clusters)


@pytest.mark.parametrize(
    "test", [*ALIGNED, *INDEPENDENT, *TIMES, pairwise.pairwise_difference], ids=lambda t: t.__name__
)
def test_answers(test):
    generator = np.random.default_rng(0)
    for _ in range(60):
        samples = drawn(generator, test)
        sides = ("two-sided",) if test in UNDIRECTED else ("greater", "less", "two-sided")
        alternative: Any = sides[generator.integers(len(sides))]
        with few_resamples():
            result = test(samples, alternative=alternative)
        assert 0 < result.p <= 1 and 0 < result.opposite_p <= 1
        assert result.p >= result.min_attainable_p * (1 - 1e-9)
        assert result.n == tuple(len(group) for group in samples.groups)
        assert all(isinstance(x, float) for x in (result.effect, *result.interval, result.p))
        low, high = result.interval
        assert math.isnan(low) == math.isnan(high)
        if not math.isnan(low):
            slack = 1e-9 * max(1.0, abs(result.effect))
            assert low - slack <= result.effect <= high + slack


def test_every_statistic_is_deterministic():
    """The same samples and seed, the same answer, whatever was computed in between."""
    generator = np.random.default_rng(1)
    for test in [*ALIGNED, *INDEPENDENT]:
        samples = drawn(generator, test)
        alternative: Any = "two-sided"
        first = test(samples, alternative=alternative, seed=7)
        test(drawn(generator, test), alternative=alternative, seed=8)
        assert repr(test(samples, alternative=alternative, seed=7)) == repr(first)
