"""Ratios: closed forms, invariances, levels at n = 10, and denominators that are not there."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import means
from sharpjax.protocol.tests.result import Samples
from tests.simulated import level, named, rates

stats: Any = scipy.stats  # whose annotations do not know its results' fields
mean_difference = named("mean-difference")
ratio_of_means, paired_ratio_of_means = named("ratio-of-means"), named("paired-ratio-of-means")
difference_of_ratios = named("difference-of-ratios")
paired_difference_of_ratios = named("paired-difference-of-ratios")
paired_log_ratio_difference = named("paired-log-ratio-difference")
TWO = [ratio_of_means, paired_ratio_of_means]
FOUR = [difference_of_ratios, paired_difference_of_ratios]
LOG_FOUR = [paired_log_ratio_difference]


def lognormal(generator, n, scale=1.0, spread=0.3):
    """Mean `scale`."""
    return scale * np.exp(spread * generator.normal(size=n) - spread**2 / 2)


def independent(*scales, n=10):
    return lambda g: Samples(tuple(lognormal(g, n, scale) for scale in scales))


def sharing(*scales, n=10):
    """Groups whose units have a factor in common."""

    def draw(generator):
        common = lognormal(generator, n, spread=0.3)
        return Samples(tuple(common * lognormal(generator, n, scale, 0.2) for scale in scales))

    return draw


# What they estimate.


def test_effects():
    a, b, c, d = (np.array(x, float) for x in ([3, 5], [1, 3], [9, 9], [2, 4]))
    for test in TWO:
        assert test(Samples((a, b)), alternative="greater").effect == pytest.approx(2.0)
    for test in FOUR:
        effect = test(Samples((a, b, c, d)), alternative="greater").effect
        assert effect == pytest.approx(4 / 2 - 9 / 3)
    for test in LOG_FOUR:
        effect = test(Samples((a, b, c, d)), alternative="greater").effect
        assert effect == pytest.approx(math.log(2 / 3))


def test_grokking_table():
    """Reductions of paper 3's table: means with the spread of its standard errors."""
    generator = np.random.default_rng(0)
    shape = np.array([-1.5, -1.1, -0.7, -0.4, -0.1, 0.1, 0.4, 0.7, 1.1, 1.5])
    shape = (shape - shape.mean()) / shape.std(ddof=1)

    def epochs(mean, error):
        return mean + error * math.sqrt(10) * generator.permutation(shape)

    fast, slow = epochs(754.2, 259.6), epochs(37886.4, 789.3)
    result = ratio_of_means(Samples((fast, slow)), alternative="less", null=0.05)
    assert 1 - result.effect == pytest.approx(0.98, abs=1e-4)
    assert result.interval(0.95)[0] > 0 and result.interval(0.95)[1] < 0.05 and result.p < 0.01
    ranks = Samples((epochs(182.2, 42.3), epochs(494.7, 134.7), fast, epochs(15270, 1066.7)))
    result = difference_of_ratios(ranks, alternative="greater")
    assert result.effect == pytest.approx(0.9506 - 0.6317, abs=1e-3) and result.p < 0.05


@pytest.mark.parametrize("test", TWO)
def test_scale_is_immaterial(test):
    samples = sharing(2.0, 1.0)(np.random.default_rng(0))
    a, b = samples.groups
    plain = test(samples, alternative="greater", null=1.0)
    scaled = test(Samples((1e6 * a, 1e3 * b)), alternative="greater", null=1e3)
    np.testing.assert_allclose(
        scaled.interval(0.95), 1e3 * np.array(plain.interval(0.95)), rtol=1e-9
    )
    assert scaled.p == pytest.approx(plain.p, rel=1e-6)


def test_swapped_groups_mirror():
    """a / b and b / a: reciprocal intervals and swapped p, up to the resamples' own chance."""
    a, b = sharing(1.3, 1.0)(np.random.default_rng(1)).groups
    first = paired_ratio_of_means(Samples((a, b)), alternative="greater")
    second = paired_ratio_of_means(Samples((b, a)), alternative="less")
    assert first.p == pytest.approx(second.p, rel=1e-6)
    np.testing.assert_allclose(
        first.interval(0.95), 1 / np.array(second.interval(0.95)[::-1]), rtol=1e-9
    )


def test_log_difference_of_equal_denominators_is_that_of_logs():
    """b and d constant: log a - log c, whose interval is that of the ratio a / c."""
    generator = np.random.default_rng(2)
    a, c, one = lognormal(generator, 8), lognormal(generator, 8), np.ones(8)
    four = paired_log_ratio_difference(Samples((a, one, c, one)), alternative="greater")
    two = paired_ratio_of_means(Samples((a, c)), alternative="greater")
    np.testing.assert_allclose(np.exp(four.interval(0.95)), two.interval(0.95), rtol=1e-9)
    assert four.p == pytest.approx(two.p, rel=1e-9)


def test_constant_denominator_of_one_is_a_mean():
    a = np.random.default_rng(0).gamma(9.0, size=10)
    ratio = ratio_of_means(Samples((a, np.ones(10))), alternative="greater", null=9.0)
    mean = mean_difference(Samples((a, np.zeros(10))), alternative="greater", null=9.0)
    np.testing.assert_allclose(ratio.interval(0.95), mean.interval(0.95), rtol=0.02)
    assert mean.p - 0.01 <= ratio.p <= mean.p + 0.03  # the permutation's, if that is larger


def test_pairs_are_worth_more():
    """A factor that both groups share drops out of a paired ratio."""
    samples = sharing(1.0, 1.0)(np.random.default_rng(3))
    widths = [np.ptp(test(samples, alternative="greater").interval(0.95)) for test in TWO]
    assert widths[1] < 0.6 * widths[0]


def test_clusters():
    """Three layers of each seed alike: as many units as seeds."""
    a, b = sharing(0.5, 1.0)(np.random.default_rng(4)).groups
    single = paired_ratio_of_means(Samples((a, b)), alternative="less")
    layers = Samples((np.repeat(a, 3), np.repeat(b, 3)), clusters=np.repeat(np.arange(10), 3))
    tripled = paired_ratio_of_means(layers, alternative="less")
    np.testing.assert_allclose(tripled.interval(0.95), single.interval(0.95), rtol=1e-9)
    assert tripled.n == (30, 30) and tripled.min_attainable_p == 2.0**-10


# Levels.


@pytest.mark.parametrize(
    "test, draw, null, truth",
    [
        (ratio_of_means, independent(1.0, 1.0), None, 1.0),
        (ratio_of_means, independent(1.0, 20.0), 0.05, 0.05),
        (paired_ratio_of_means, sharing(0.2, 1.0), 0.2, 0.2),
        (difference_of_ratios, independent(1.0, 3.0, 2.0, 6.0), None, 0.0),
        (paired_difference_of_ratios, sharing(1.0, 3.0, 2.0, 6.0), None, 0.0),
        (paired_log_ratio_difference, sharing(5.0, 1.0, 10.0, 2.0), None, 0.0),
    ],
)
def test_level_and_coverage(test, draw, null, truth):
    found = rates(test, draw, truth, null=null, studies=700)
    assert 0.03 <= found.level <= 0.07 and 0.03 <= found.opposite <= 0.07
    assert 0.925 <= found.coverage <= 0.975


def skewed(n, m, spread=1.0):
    return lambda g: Samples((lognormal(g, n, spread=spread), lognormal(g, m, spread=spread)))


@pytest.mark.parametrize("n, m", [(10, 10), (20, 20), (10, 30)])
def test_level_of_a_ratio_of_skewed_groups(n, m):
    """Lognormal, log deviation 1; three standard errors of 1000 studies are .02."""
    found = rates(ratio_of_means, skewed(n, m), 1.0)
    assert found.level <= 0.07 and found.opposite <= 0.07


def test_permutation_of_a_ratio_is_exact():
    """Over all choices of the first group, of Welch's t; p is no smaller."""
    a, b = lognormal(np.random.default_rng(5), 9, spread=1.0).reshape(3, 3)[:2]
    pooled = np.concatenate((a / 0.5, b))

    def t(chosen):
        others = np.delete(pooled, chosen)
        return stats.ttest_ind(pooled[list(chosen)], others, equal_var=False).statistic

    every = np.array([t(c) for c in itertools.combinations(range(6), 3)])
    result = ratio_of_means(Samples((a, b)), alternative="greater", null=0.5)
    observed = t((0, 1, 2))
    assert result.p >= np.mean(every >= observed - 1e-9) * (1 - 1e-9)
    tails = means._permuted(a / 0.5, b, 0)
    exact = np.mean(every >= observed - 1e-9), np.mean(every <= observed + 1e-9)
    assert tails == pytest.approx(exact)


def test_power():
    """A factor of two between groups of ten is seen nearly always."""
    assert level(ratio_of_means, independent(2.0, 1.0), studies=200) > 0.95


# What bad samples become.


@pytest.mark.parametrize("b", [[0.0] * 5, [-1.0, -2, -3, -4, -5], [1.0, -1, 2, -2, 0]])
def test_no_denominator(b):
    for test in TWO:
        result = test(Samples((np.arange(1.0, 6), np.array(b))), alternative="less")
        assert math.isnan(result.effect) and result.interval(0.95) == (0, math.inf)
        assert result.p == 1 and "should be positive" in result.nothing
        assert result.min_attainable_p <= 2**-5


def test_denominator_near_zero_makes_the_interval_wide():
    """Resamples with no positive denominator are infinite ratios, not left out."""
    a, b = np.full(8, 1.0), np.array([-3.0, -2, -1, 0, 1, 2, 3, 4])
    result = ratio_of_means(Samples((a, b)), alternative="greater")
    assert result.interval(0.95)[1] == math.inf and result.p > 0.05
    four = difference_of_ratios(Samples((a, b, a, a)), alternative="greater")
    assert four.interval(0.95)[1] == math.inf


def test_ratio_of_zero():
    """Quantised models that never differ from their base are as near as can be."""
    far = np.array([0.2, 0.3, 0.25, 0.31, 0.22, 0.27])
    for test, floor in zip(TWO, (1 / math.comb(12, 6), 2.0**-6), strict=True):
        result = test(Samples((np.zeros(6), far)), alternative="less", null=0.2)
        assert result.effect == 0 and result.interval(0.95) == (0, 0)
        assert result.p == pytest.approx(floor) and result.opposite_p == 1


def test_constant_groups():
    same = Samples((np.full(5, 0.3), np.full(5, 0.1)))
    for test in TWO:
        result = test(same, alternative="two-sided", null=3.0)
        assert result.effect == pytest.approx(3.0)
        assert np.ptp(result.interval(0.9)) <= 8 * 3 * np.finfo(float).eps


def test_one_unit():
    for test in TWO:
        result = test(Samples((np.ones(1), np.full(1, 4.0))), alternative="less")
        assert result.effect == 0.25 and result.p == 1 and result.interval(0.95) == (0, math.inf)


def test_log_ratio_limits():
    tops, bottoms = np.array([2.0, 0, 2, 0]), np.array([1.0, 1, 0, 0])
    np.testing.assert_array_equal(
        means.log_ratio(tops, bottoms), [math.log(2), -math.inf, math.inf, math.nan]
    )


@pytest.mark.parametrize("null", [0.0, -1.0, math.inf])
def test_null_of_a_ratio_is_positive(null):
    with pytest.raises(UserError, match="null"):
        ratio_of_means(Samples((np.ones(3), np.ones(3))), alternative="less", null=null)


@pytest.mark.parametrize("test", [*FOUR, *LOG_FOUR])
def test_number_of_groups(test):
    with pytest.raises(UserError, match="2 groups; it takes 4"):
        test(Samples((np.ones(3), np.ones(3))), alternative="less")


def test_paired_lengths():
    with pytest.raises(UserError, match="same in all"):
        paired_ratio_of_means(Samples((np.ones(3), np.ones(4))), alternative="less")


def test_floor_of_four_groups():
    """That of the two numerators, or of the two denominators: the others may not vary at all."""
    for sizes, least in (((3, 3, 3, 3), math.comb(6, 3)), ((9, 2, 9, 3), math.comb(5, 2))):
        values = zip((9.0, 1.0, 1.0, 1.0), sizes, strict=True)
        groups = tuple(np.full(size, value) for value, size in values)
        result = difference_of_ratios(Samples(groups), alternative="greater")
        assert result.p == result.min_attainable_p == pytest.approx(1 / least)
