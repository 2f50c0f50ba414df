"""Correlations: against scipy and brute force, paper 6's numbers, levels, clusters, differences."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import association, correlation, shuffle
from sharpjax.protocol.tests.result import Samples
from tests.simulated import level, named, plain, rates

stats: Any = scipy.stats  # whose annotations do not know its results' fields

spearman, kendall, pearson = named("spearman"), named("kendall"), named("pearson")
fit_error, kendall_difference = named("fit-error"), named("kendall-difference")
spearman_over_arms = named("spearman-over-arms")
TESTS = [spearman, kendall, pearson]
SCIPY = {spearman: stats.spearmanr, kendall: stats.kendalltau, pearson: stats.pearsonr}
COEFFICIENTS = {
    association.spearman: stats.spearmanr,
    association.kendall: stats.kendalltau,
    association.pearson: stats.pearsonr,
}
# Means of paper 6's tables 1 and 3: error, train loss, ECE, weight norm, FR, RF, SAM-sharpness.
ERROR = [14.4, 11.1, 13.9, 18.2, 14.0, 10.6, 13.4, 16.2]
TRAIN_LOSS = [0.9, 7.0, 0.8, 18.0, 0.5, 6.4, 0.6, 11.2]
ECE = [11.0, 6.6, 11.0, 10.8, 10.8, 6.0, 10.5, 8.9]
WEIGHT_NORM = [49.3, 51.5, 39.1, 33.2, 49.1, 49.6, 38.3, 34.4]
RF = [2.2, 12.1, 1.2, 4.5, 2.2, 12.2, 1.2, 4.5]
SAM = [1.2, 6.6, 2.8, 9.2, 1.7, 3.2, 0.9, 13.5]


def pair(x, y):
    return Samples((np.array(x, float), np.array(y, float)))


def normal(rho, n=10):
    def draw(generator):
        x, noise = generator.normal(size=(2, n))
        return Samples((x, rho * x + math.sqrt(1 - rho**2) * noise))

    return draw


def tied(generator, n=10):
    return Samples((generator.integers(0, 3, n) * 1.0, generator.integers(0, 4, n) * 1.0))


def layers(generator, seeds=10, depth=5):
    """Layers differ by themselves, seeds shift all their layers: uncorrelated over both."""
    first, second = np.array([-2.0, -1, 0, 1, 2]), 1.2 * np.array([1.0, -1, 0, -1, 1])
    sides = [
        (by_layer + generator.normal(size=(seeds, 1)) + generator.normal(size=(seeds, depth)))
        for by_layer in (first, second)
    ]
    return Samples(tuple(s.ravel() for s in sides), clusters=np.repeat(np.arange(seeds), depth))


# Coefficients.


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("draw", [normal(0.5), tied])
def test_effect_is_scipys(test, draw):
    samples = draw(np.random.default_rng(0))
    expected = SCIPY[test](*samples.groups).statistic
    assert test(samples, alternative="greater").effect == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_coefficient_of_a_resample(coefficient):
    """From counts, what scipy says of the resample written out; NaN where that is constant."""
    generator = np.random.default_rng(1)
    x, y = tied(generator, 6).groups
    counts = generator.multinomial(6, np.full(6, 1 / 6), size=200).astype(float)
    counts[0] = [6, 0, 0, 0, 0, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ours = coefficient(x, y)(counts)
    for value, drawn in zip(ours, counts.astype(int), strict=True):
        a, b = np.repeat(x, drawn), np.repeat(y, drawn)
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(COEFFICIENTS[coefficient](a, b).statistic, abs=1e-12)


@pytest.mark.parametrize(
    "x, y, rho, p",
    [
        (ERROR, WEIGHT_NORM, -0.738, 0.037),
        (ERROR, RF, -0.206, 0.62),
        (TRAIN_LOSS, SAM, 0.857, 0.007),
        (TRAIN_LOSS, RF, 0.667, 0.071),
        (ECE, RF, -0.748, 0.033),
    ],
)
def test_paper_6(x, y, rho, p):
    """Its coefficients, and its p (t with 6 degrees of freedom) to what the exact one differs."""
    result = spearman(pair(x, y), alternative="two-sided")
    assert result.effect == pytest.approx(rho, abs=5e-4)
    assert result.p == pytest.approx(p, abs=0.02)


# p by permutation.


def brute_force(x, y, statistic):
    """Shares of all orders of y whose statistic is at least, and at most, the observed one."""
    observed = statistic(x, y)
    values = np.array([statistic(x, y[list(o)]) for o in itertools.permutations(range(len(y)))])
    return np.mean(values >= observed - 1e-12), np.mean(values <= observed + 1e-12)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("ties", [False, True])
def test_p_is_exact(test, ties):
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(2, 5))
    if ties:
        x, y = np.array([1.0, 1, 2, 3, 3]), np.array([2.0, 1, 1, 4, 3])
    greater, less = brute_force(x, y, lambda a, b: SCIPY[test](a, b).statistic)
    result = test(pair(x, y), alternative="greater")
    assert result.p == pytest.approx(greater, rel=1e-9)
    assert result.opposite_p == pytest.approx(less, rel=1e-9)
    both = test(pair(x, y), alternative="two-sided")
    assert both.p == both.opposite_p == pytest.approx(min(1, 2 * min(greater, less)), rel=1e-9)


@pytest.mark.parametrize("test", TESTS)
def test_perfect_order_attains_the_smallest_p(test):
    x = np.arange(6.0)
    for alternative, factor in (("greater", 1), ("two-sided", 2)):
        result = test(pair(x, x), alternative=alternative)
        assert result.p == result.min_attainable_p == pytest.approx(factor / 720)
    assert test(pair(x, -x), alternative="less").p == pytest.approx(1 / 720)


def test_shuffled_p_is_near_the_exact_one():
    """Kendall at 12 units: exact without ties; with one value moved to a tie, shuffled."""
    x = np.arange(12.0)
    y = np.array([1.0, 0, 3, 2, 7, 4, 5, 6, 11, 8, 10, 9])
    exact = kendall(pair(x, y), alternative="greater").p
    assert exact == pytest.approx(stats.kendalltau(x, y, alternative="greater").pvalue, rel=1e-9)
    y = np.random.default_rng(1).permutation(12).astype(float)
    exact = kendall(pair(x, y), alternative="greater").p
    shuffled = shuffle.of_kendall(x, np.where(y == 11, 10, y), 0)[0]
    assert shuffled == pytest.approx(exact, abs=0.03)
    p = spearman(pair(x, y), alternative="two-sided").p
    assert p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.02)


def test_kendall_with_many_ties_is_scipys():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 5, (2, 150)) * 1.0
    result = kendall(pair(x, y), alternative="two-sided")
    assert result.p == pytest.approx(stats.kendalltau(x, y).pvalue, rel=1e-9)


@pytest.mark.parametrize("counts", [None, [[3, 2**13, 2**14, 1, 0, 5], [2**24, 1, 3, 0, 2, 7]]])
def test_kendall_of_resamples_is_the_sum_over_pairs(counts):
    """To the bit, also where float32 does not hold all whole numbers."""
    generator = np.random.default_rng(0)
    n = 40 if counts is None else 6
    counts = generator.multinomial(n, np.ones(n) / n, 50) if counts is None else np.array(counts)
    for x, y in (generator.normal(size=(2, n)), generator.integers(0, 4, (2, n)) * 1.0):
        signs = [np.sign(v[:, None] - v[None, :]) for v in (x, y)]
        pairs = counts[:, :, None] * counts[:, None, :]
        both, one, other = (
            (pairs * s).sum((1, 2)) for s in (signs[0] * signs[1], abs(signs[0]), abs(signs[1]))
        )
        found = association.kendall(x, y)(counts.astype(float))
        np.testing.assert_array_equal(found, both / np.sqrt(one * other))


def test_seeds():
    samples = normal(0.4, 14)(np.random.default_rng(0))
    first, again, other = (spearman(samples, alternative="less", seed=s) for s in (0, 0, 1))
    assert (
        plain(first) == plain(again)
        and first.p != other.p
        and first.interval(0.95) == other.interval(0.95)
    )


def test_orders():
    index, exact = shuffle.orders(4, 0)
    assert exact and len({tuple(o) for o in index}) == 24
    index, exact = shuffle.orders(9, 0)
    assert not exact and (np.sort(index, axis=1) == np.arange(9)).all()
    assert shuffle.orders(300, 0).index.shape == (9999, 300)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("draw, least", [(normal(0.0), 0.03), (tied, 0.015)])
def test_level(test, draw, least):
    """Of three values and four an exact test has few p to choose from, and stays below."""
    found = rates(test, draw, studies=1000)
    assert least <= found.level <= 0.07 and least <= found.opposite <= 0.07
    assert 0.93 <= found.coverage <= 0.985


def test_level_at_ten_pooled_conditions_is_wrong_without_clusters():
    """Units of one seed are not independent: why clusters are there."""

    def repeated(generator):
        x, y = generator.normal(size=(2, 10))
        near = [np.repeat(v, 4) + 0.3 * generator.normal(size=40) for v in (x, y)]
        return Samples(tuple(near), clusters=np.repeat(np.arange(10), 4))

    def alone(generator):
        return Samples(repeated(generator).groups)

    assert level(spearman, alone, studies=200) > 0.12
    assert 0.01 <= level(spearman, repeated, studies=200) <= 0.09


# Intervals.


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(
    "test, truth",
    [
        (pearson, lambda r: r),
        (spearman, lambda r: 6 / math.pi * math.asin(r / 2)),
        (kendall, lambda r: 2 / math.pi * math.asin(r)),
    ],
)
def test_coverage_and_level_at_another_null(test, truth, rho):
    true = truth(rho)
    found = rates(test, normal(rho, 20), true, null=true or None, studies=500)
    assert 0.92 <= found.coverage <= 0.985
    assert found.level <= 0.07 and found.opposite <= 0.075


def test_fisher_interval_of_pearson_is_scipys():
    x, y = normal(0.6, 12)(np.random.default_rng(3)).groups
    expected = stats.pearsonr(x, y).confidence_interval(0.9)
    result = pearson(pair(x, y), alternative="greater")
    np.testing.assert_allclose(result.interval(0.9), expected, rtol=1e-12)


@pytest.mark.parametrize("test", [spearman, kendall])
def test_perfect_order_is_no_certainty(test):
    """rho = 1 of a few units: the interval reaches 1, but is no point; of four, it says nothing."""
    low, high = test(pair(np.arange(8.0), np.arange(8.0)), alternative="greater").interval(0.95)
    assert 0.4 < low < 0.95 and high == 1
    low, high = test(pair(np.arange(8.0), -np.arange(8.0)), alternative="greater").interval(0.95)
    assert low == -1 and -0.95 < high < -0.4
    few = test(pair(np.arange(3.0), np.arange(3.0)), alternative="greater")
    assert few.interval(0.95) == (-1, 1)


@pytest.mark.parametrize("test", [spearman, kendall])
def test_clusters(test):
    found = rates(test, layers, studies=200)
    assert 0.01 <= found.level <= 0.09 and 0.01 <= found.opposite <= 0.09
    assert 0.91 <= found.coverage <= 0.99


def test_clusters_see_what_holds_in_every_seed():
    """The same order of four layers in each of eight seeds: a permutation of seeds sees nothing."""
    x = np.tile(np.arange(4.0), 8)
    clusters = np.repeat(np.arange(8), 4)
    result = kendall(Samples((x, x**2), clusters=clusters), alternative="greater")
    assert result.effect == 1 and result.p == result.min_attainable_p == 2.0**-8
    low, high = result.interval(0.95)
    assert high == 1 and low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 8)))


# Degenerate samples.


@pytest.mark.parametrize("test", [*TESTS, fit_error])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_constant(test, n):
    result = test(pair(np.full(n, 0.1), np.arange(n)), alternative="greater")
    assert math.isnan(result.effect) and result.p == result.opposite_p == 1
    assert result.interval(0.95) == ((0, 1) if test is fit_error else (-1, 1))
    assert "vary" in result.nothing and result.n == (n, n)


@pytest.mark.parametrize("test", TESTS)
def test_two_units(test):
    result = test(pair([1, 2], [3, 5]), alternative="greater")
    assert result.effect == pytest.approx(1) and result.p == 0.5
    assert result.interval(0.95) == (-1, 1)


def test_constant_in_clusters():
    samples = Samples((np.full(6, 0.1), np.arange(6.0)), clusters=np.repeat(np.arange(3), 2))
    result = spearman(samples, alternative="greater")
    assert math.isnan(result.effect) and result.p == 1 and result.n == (6, 6)


@pytest.mark.parametrize("null", [-1.0, 1.0, 1.5])
def test_null_is_a_correlation(null):
    with pytest.raises(UserError, match="null"):
        spearman(pair([1, 2, 3], [1, 2, 3]), alternative="greater", null=null)


def test_kendall_variance_with_ties():
    """Under no association that of tau-b over all orders of y, times Fieller's constant."""
    x, y = np.array([1.0, 1, 2, 3, 3, 3]), np.array([2.0, 1, 1, 4, 3, 3])
    orders = itertools.permutations(range(6))
    every = np.var([stats.kendalltau(x, y[list(o)]).statistic for o in orders])
    untied = 2 * (2 * 6 + 5) / (9 * 6 * 5)
    expected = 0.437 * every / untied
    assert correlation._kendall_variance(0.0, x, y) == pytest.approx(expected, rel=1e-9)


def test_refusals():
    with pytest.raises(UserError, match="same in all"):
        kendall(pair([1, 2, 3], [1, 2]), alternative="less")
    with pytest.raises(UserError, match="3 groups; it takes 2"):
        kendall(Samples((np.ones(2),) * 3), alternative="less")
    with pytest.raises(UserError, match="alternative"):
        asked: Any = "positive"
        kendall(pair([1, 2], [1, 2]), alternative=asked)


# The error of a fit.


def test_fit_error_is_that_of_the_line():
    x, y = normal(0.7, 15)(np.random.default_rng(5)).groups
    line = stats.linregress(x, y)
    error = math.sqrt(np.mean((y - line.intercept - line.slope * x) ** 2)) / y.std()
    result = fit_error(pair(x, y), alternative="less")
    assert result.effect == pytest.approx(error, rel=1e-12)
    assert result.interval(0.95)[0] < error < result.interval(0.95)[1] <= 1
    assert result.p == pearson(pair(x, y), alternative="two-sided").p
    assert result.opposite_p == 1
    mirrored = fit_error(pair(x, -y), alternative="less")
    assert mirrored.effect == pytest.approx(error) and mirrored.p == pytest.approx(result.p)


def test_fit_error_at_another_null():
    """Below .8 where |r| is above .6; the interval's ends are those of r."""
    samples = normal(0.95, 15)(np.random.default_rng(5))
    result = fit_error(samples, alternative="less", null=0.8)
    expected = pearson(samples, alternative="greater", null=0.6).p
    assert result.p == pytest.approx(expected) and result.p < 0.01
    low, high = pearson(samples, alternative="greater").interval(0.95)
    expected = math.sqrt(1 - high**2), math.sqrt(1 - low**2)
    np.testing.assert_allclose(result.interval(0.95), expected)
    none = fit_error(normal(0.0, 15)(np.random.default_rng(0)), alternative="less", null=0.8)
    assert none.p > 0.5 and none.interval(0.95)[1] == 1


def test_fit_error_level():
    assert 0.03 <= level(fit_error, normal(0.0), alternative="less") <= 0.07
    # Either sign of r may lie beyond a null near 1, and both count.
    near = math.sqrt(1 - 0.1**2)
    assert level(fit_error, normal(0.1), alternative="less", null=near) <= 0.07


# Differences of correlations.


def test_kendall_difference():
    y = np.arange(10.0)
    near, far = y + np.tile([0.0, 1.5], 5), np.array([5.0, 2, 9, 0, 4, 7, 1, 8, 3, 6])
    result = kendall_difference(Samples((-near, far, y)), alternative="greater")
    taus = [abs(stats.kendalltau(v, y).statistic) for v in (near, far)]
    assert result.effect == pytest.approx(taus[0] - taus[1])
    assert result.p < 0.05 and result.interval(0.95)[0] > 0 and result.n == (10, 10, 10)
    mirrored = kendall_difference(Samples((far, near, y)), alternative="less")
    assert mirrored.p == pytest.approx(result.p, rel=1e-6)


def test_kendall_difference_level():
    """Two measures that track y equally well. The absolute values make it conservative."""

    def equal(generator):
        y, *noise = generator.normal(size=(3, 10))
        return Samples((0.8 * y + 0.6 * noise[0], 0.8 * y + 0.6 * noise[1], y))

    found = rates(kendall_difference, equal, studies=500)
    assert 0.01 <= found.level <= 0.07 and found.coverage >= 0.93


# Over arms.


def of_arms(generator, arms=8, seeds=6, spread=2.0):
    """Both quantities differ between arms, independently; seeds are shared by all arms."""
    arm, seed = np.divmod(np.arange(arms * seeds), seeds)
    sides = [
        spread * generator.normal(size=arms)[arm]
        + 0.5 * generator.normal(size=seeds)[seed]
        + generator.normal(size=arm.size)
        for _ in range(2)
    ]
    return Samples(tuple(sides), clusters=seed, arms=arm)


def test_over_arms_is_spearmans_of_means():
    samples = of_arms(np.random.default_rng(0))
    means = [side.reshape(8, 6).mean(1) for side in samples.groups]
    result = spearman_over_arms(samples, alternative="greater")
    assert plain(result) == plain(spearman(pair(*means), alternative="greater"))
    assert result.n == (8, 8) and result.min_attainable_p == shuffle.least(math.factorial(8))
    shuffled = np.random.default_rng(1).permutation(48)
    moved = Samples(
        tuple(side[shuffled] for side in samples.groups),
        clusters=samples.clusters[shuffled],
        arms=samples.arms[shuffled],
    )
    assert spearman_over_arms(moved, alternative="greater").p == result.p
    each = spearman_over_arms(pair(ERROR, ECE), alternative="less")
    assert plain(each) == plain(spearman(pair(ERROR, ECE), alternative="less"))


def test_over_one_arm_nothing_is_known():
    samples = of_arms(np.random.default_rng(0), arms=1)
    result = spearman_over_arms(samples, alternative="greater")
    assert result.p == 1 and result.nothing and result.interval(0.95) == (-1, 1)
    with pytest.raises(UserError, match="arms has shape"):
        spearman(Samples(samples.groups, arms=np.zeros(2)), alternative="less")


def test_level_over_arms():
    """Arms drawn at random: clusters of seeds are no help, since they all have the same arms."""
    found = rates(spearman_over_arms, of_arms)
    assert 0.03 <= found.level <= 0.07 and 0.03 <= found.opposite <= 0.07
    assert rates(spearman, of_arms, studies=300).level > 0.15
