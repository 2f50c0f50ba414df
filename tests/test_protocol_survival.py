"""Times with censoring: against scipy and statsmodels, closed forms, levels, nothing dropped."""

import doctest
import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import survival
from sharpjax.protocol.tests.bootstrap import mean_difference
from sharpjax.protocol.tests.ratios import ratio_of_means
from sharpjax.protocol.tests.result import Samples
from sharpjax.protocol.tests.survival import (
    kaplan_meier,
    log_rank,
    restricted_mean,
    restricted_mean_ratio,
)
from tests.simulated import rates

stats: Any = scipy.stats  # whose annotations do not know its results' fields

TESTS = [log_rank, restricted_mean, restricted_mean_ratio]


def censored(first, second, budget=math.inf):
    """Samples of two groups that were watched until `budget`."""
    times = [np.asarray(t, float) for t in (first, second)]
    return Samples(tuple(np.minimum(t, budget) for t in times), tuple(t <= budget for t in times))


def exponential(n=10, budget=1.2, scales=(1.0, 1.0), digits=1):
    """Rounded times, so that there are ties; about 30 % of them censored."""

    def draw(generator):
        first, second = (np.round(s * generator.exponential(size=n) + 0.1, digits) for s in scales)
        return censored(first, second, budget)

    return draw


def test_examples():
    result = doctest.testmod(survival)
    assert result.attempted and not result.failed


def as_scipy(samples):
    """The groups as scipy's censored data."""
    return [
        stats.CensoredData(uncensored=time[seen], right=time[~seen])
        for time, seen in zip(samples.groups, samples.seen, strict=True)
    ]


def first_of(samples):
    assert samples.seen is not None
    return samples.groups[0], samples.seen[0]


def pooled(samples):
    return np.concatenate(samples.groups), np.concatenate(samples.seen)


# The curve.


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_curve_is_scipys(seed, confidence):
    samples = exponential(12)(np.random.default_rng(seed))
    ours = kaplan_meier(*first_of(samples), confidence=confidence)
    theirs = stats.ecdf(as_scipy(samples)[0]).sf
    at = np.searchsorted(ours.time, theirs.quantiles)
    np.testing.assert_allclose(ours.survival[at], theirs.probabilities, atol=1e-14)
    inside = (theirs.probabilities < 1) & (theirs.probabilities > 0)
    bounds = theirs.confidence_interval(confidence, method="log-log")
    np.testing.assert_allclose(ours.low[at][inside], bounds.low.probabilities[inside], rtol=1e-12)
    np.testing.assert_allclose(ours.high[at][inside], bounds.high.probabilities[inside], rtol=1e-12)


def test_curve_is_statsmodels():
    duration = pytest.importorskip("statsmodels.duration.api")
    samples = exponential(15)(np.random.default_rng(9))
    time, seen = first_of(samples)
    ours, theirs = kaplan_meier(time, seen), duration.SurvfuncRight(time, seen.astype(int))
    at = np.searchsorted(ours.time, theirs.surv_times)
    np.testing.assert_allclose(ours.survival[at], theirs.surv_prob, rtol=1e-12)
    np.testing.assert_array_equal(ours.at_risk[at], theirs.n_risk)


def test_curve_without_censoring_is_the_empirical_one():
    time = np.array([5.0, 1.0, 3.0, 3.0])
    curve = kaplan_meier(time, np.full(4, True))
    np.testing.assert_array_equal(curve.time, [1, 3, 5])
    np.testing.assert_allclose(curve.survival, [0.75, 0.25, 0])
    np.testing.assert_array_equal(curve.at_risk, [4, 3, 1])
    np.testing.assert_array_equal(curve.events, [1, 2, 1])


def test_curve_where_nothing_was_seen():
    """No event among six: at most 1 - .025^(1/6) of runs have one (Clopper and Pearson)."""
    curve = kaplan_meier(np.full(6, 100.0), np.full(6, False))
    assert curve.survival == 1 and curve.high == 1
    assert curve.low == pytest.approx(0.025 ** (1 / 6))
    bound = stats.binomtest(6, 6).proportion_ci(0.95, method="exact").low
    assert curve.low == pytest.approx(bound)


@pytest.mark.parametrize("seed", range(3))
def test_curve_bounds(seed):
    samples = exponential(9)(np.random.default_rng(seed))
    curve = kaplan_meier(*first_of(samples))
    assert (curve.low <= curve.survival).all() and (curve.survival <= curve.high).all()
    assert curve.low.min() >= 0 and curve.high.max() <= 1
    assert (np.diff(curve.survival) <= 0).all()


def test_curve_covers():
    """The share of ten exponential times beyond .7, with the interval before and after it."""
    generator, held = np.random.default_rng(0), []
    for _ in range(1000):
        samples = exponential(10, digits=9)(generator)
        curve = kaplan_meier(*first_of(samples))
        at = np.searchsorted(curve.time, 0.7, side="right") - 1
        held.append(at >= 0 and curve.low[at] <= math.exp(-0.6) <= curve.high[at])
    assert 0.92 <= np.mean(held) <= 0.98


# Log-rank.


def scipys_log_rank(samples):
    """scipy's z; a larger one says that events come earlier in the second group."""
    return stats.logrank(*as_scipy(samples)).statistic


@pytest.mark.parametrize("seed", range(5))
def test_log_rank_effect_is_scipys_statistic(seed):
    """Peto's exp(U / V): with z = U / sqrt(V), log effect = z / sqrt(V)."""
    samples = exponential(12, scales=(1.0, 2.0))(np.random.default_rng(seed))
    result = log_rank(samples, alternative="greater")
    log, low, high = np.log([result.effect, *result.interval])
    spread = (high - low) / (2 * stats.norm.ppf(0.975))
    assert (low + high) / 2 == pytest.approx(log)
    assert abs(log / spread) == pytest.approx(abs(scipys_log_rank(samples)), rel=1e-10)


def test_log_rank_is_statsmodels():
    duration = pytest.importorskip("statsmodels.duration.survfunc")
    samples = exponential(20, scales=(1.0, 2.0))(np.random.default_rng(3))
    time, seen = pooled(samples)
    squared, p = duration.survdiff(time, seen.astype(int), np.repeat([0, 1], 20))
    result = log_rank(samples, alternative="two-sided")
    log, low, high = np.log([result.effect, *result.interval])
    assert (log / (high - low) * 2 * stats.norm.ppf(0.975)) ** 2 == pytest.approx(squared)
    assert result.p == pytest.approx(p, abs=0.03)


def test_log_rank_p_is_exact():
    """Over all choices of the first group: the share whose excess of events is as large."""
    samples = censored([1, 2, 2, 5], [2, 4, 6, 9], 6)
    time, seen = pooled(samples)

    def excess(second):
        total = 0.0
        for t in np.unique(time[seen]):
            risk = time >= t
            events = seen & (time == t)
            total += events[second].sum() - events.sum() * risk[second].sum() / risk.sum()
        return total

    observed = excess([4, 5, 6, 7])
    every = np.array([excess(list(s)) for s in itertools.combinations(range(8), 4)])
    result = log_rank(samples, alternative="less")
    assert result.p == pytest.approx(np.mean(every <= observed + 1e-12))
    assert result.opposite_p == pytest.approx(np.mean(every >= observed - 1e-12))
    assert result.min_attainable_p == pytest.approx(1 / 70)


def test_log_rank_direction():
    """'greater': events come later in the first group, and the effect is above 1."""
    late, early = [20, 30, 40, 50], [1, 2, 3, 4]
    result = log_rank(censored(late, early), alternative="greater")
    assert result.effect > 1 and result.p == pytest.approx(1 / 70) and result.interval[0] > 1
    swapped = log_rank(censored(early, late), alternative="less")
    assert swapped.p == result.p and swapped.effect == pytest.approx(1 / result.effect)
    two = log_rank(censored(early, late), alternative="two-sided")
    assert two.p == two.min_attainable_p == pytest.approx(2 / 70)


def test_log_rank_estimates_a_hazard_ratio():
    generator = np.random.default_rng(0)
    logs = [
        math.log(log_rank(exponential(40, scales=(1.5, 1.0))(generator), alternative="less").effect)
        for _ in range(100)
    ]
    assert math.exp(np.mean(logs)) == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("n, least", [(10, 0.03), (4, 0.02)])
def test_log_rank_level(n, least):
    """Under ties and 30 % censoring; at 4 units p has steps of 1/70."""
    found = rates(log_rank, exponential(n), 1.0)
    assert least <= found.level <= 0.07 and least <= found.opposite <= 0.07
    assert found.coverage >= 0.92


def test_log_rank_level_at_another_null():
    found = rates(log_rank, exponential(20, scales=(2.0, 1.0), budget=3.0), 2.0, null=2.0)
    assert 0.02 <= found.level <= 0.08 and 0.02 <= found.opposite <= 0.08
    assert found.coverage >= 0.92


# Restricted means.


def test_restricted_mean_is_the_area():
    """By hand: 1 to time 2, 3/4 to 4, and one is censored at 3, so that 3/8 are left from 4 on."""
    samples = Samples(
        (np.array([2.0, 3, 4, 8]), np.full(4, 8.0)),
        (np.array([True, False, True, False]), np.full(4, True)),
    )
    area = 2 + 0.75 * 2 + 0.375 * 4
    result = restricted_mean(samples, alternative="less")
    assert result.effect == pytest.approx(area - 8)
    ratio = restricted_mean_ratio(samples, alternative="less")
    assert ratio.effect == pytest.approx(area / 8)


def test_restricted_mean_of_a_common_budget_is_that_of_times():
    """All censored at the budget: the mean of min(T, budget), and the same resamples."""
    generator = np.random.default_rng(0)
    first, second = generator.exponential(size=(2, 10))
    samples = censored(first, second, 1.0)
    ours = restricted_mean(samples, alternative="greater")
    plain = mean_difference(Samples(samples.groups), alternative="greater")
    assert ours.effect == pytest.approx(plain.effect)
    np.testing.assert_allclose(ours.interval, plain.interval, rtol=1e-6, atol=1e-9)
    ours = restricted_mean_ratio(samples, alternative="less")
    plain = ratio_of_means(Samples(samples.groups), alternative="less")
    assert ours.p == pytest.approx(plain.p, rel=1e-6)


def test_restriction_ends_where_a_curve_does():
    """The first group is known to 5, where its last unit was censored; the second comes to 0."""
    first = (np.array([1.0, 3, 5]), np.array([True, True, False]))
    second = (np.array([2.0, 7, 9]), np.array([True, True, True]))
    samples = Samples((first[0], second[0]), (first[1], second[1]))
    result = restricted_mean(samples, alternative="less")
    assert result.effect == pytest.approx((1 + 2 * 2 / 3 + 2 / 3) - (2 + 3 * 2 / 3))


def test_censored_runs_count():
    """Dropping the runs that never came makes the baseline look fast: it must not be so."""
    fast, slow = [100, 120, 150, 180, 200], [160, 170, 5000, 6000, 7000]
    kept = restricted_mean(censored(fast, slow, 1000), alternative="less")
    dropped = np.array([160.0, 170.0]).mean() - np.mean(fast)
    assert -kept.effect > 10 * dropped
    assert log_rank(censored(fast, slow, 1000), alternative="less").p < 0.05


@pytest.mark.parametrize(
    "test, truth", [(restricted_mean, 0.0), (restricted_mean_ratio, 1.0)], ids=["mean", "ratio"]
)
def test_restricted_mean_level(test, truth):
    """With a third of the times censored; then, of less skewed times, with none."""
    found = rates(test, exponential(), truth, studies=600)
    assert 0.02 <= found.level <= 0.07 and 0.02 <= found.opposite <= 0.07
    assert found.coverage >= 0.93

    def all_seen(generator):
        return censored(*generator.gamma(3.0, size=(2, 10)))

    found = rates(test, all_seen, truth, studies=600)
    assert 0.03 <= found.level <= 0.07 and 0.03 <= found.opposite <= 0.07


# Degenerate samples.


@pytest.mark.parametrize("test", TESTS)
def test_all_censored(test):
    result = test(censored([9, 9, 9], [9, 9, 9], 5), alternative="greater")
    assert result.p == 1 and result.n == (3, 3)
    if test is log_rank:
        assert math.isnan(result.effect)


@pytest.mark.parametrize("test", TESTS)
def test_one_unit(test):
    result = test(censored([1], [2]), alternative="less")
    assert result.p >= 0.5 and result.n == (1, 1)


@pytest.mark.parametrize("test", TESTS)
def test_equal_times(test):
    result = test(censored([3, 3, 3], [3, 3, 3]), alternative="two-sided")
    assert result.p == 1


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    "samples, said",
    [
        (Samples((np.ones(2), np.ones(2))), "seen"),
        (Samples((np.ones(2), np.ones(2)), (np.ones(2), np.ones(3))), "flags"),
        (Samples((-np.ones(2), np.ones(2)), (np.ones(2), np.ones(2))), "negative"),
        (Samples((np.ones(2),), (np.ones(2),)), "takes 2"),
    ],
)
def test_refusals(test, samples, said):
    with pytest.raises(UserError, match=said) as error:
        test(samples, alternative="less")
    assert "\n" not in str(error.value)
