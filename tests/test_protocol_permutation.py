"""Permutation tests: enumeration, drawn arrangements, and intervals that are the test inverted."""

import doctest
import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import permutation as module
from sharpjax.protocol.tests.permutation import paired_permutation, permutation
from sharpjax.protocol.tests.result import Samples

ALTERNATIVES = ("two-sided", "greater", "less")
BOTH = (permutation, paired_permutation)


def samples(*groups, clusters=None):
    return Samples(tuple(np.asarray(group, np.float64) for group in groups), clusters=clusters)


def drawn(seed, n1, n2, shift=0.5):
    rng = np.random.default_rng(seed)
    return samples(rng.normal(shift, 1, n1), rng.normal(0, 1, n2))


def test_examples():
    assert doctest.testmod(module).failed == 0


# Exact.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("sizes", [(2, 3), (4, 4), (3, 6), (6, 3)])
def test_all_choices_as_scipy_has_them(sizes, alternative):
    pair = drawn(sum(sizes), *sizes)
    everything: Any = np.inf
    oracle = stats.permutation_test(
        pair.groups,
        lambda x, y: x.mean() - y.mean(),
        alternative=alternative,
        n_resamples=everything,
    )
    result = permutation(pair, alternative=alternative)
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-12)
    assert result.effect == pytest.approx(oracle.statistic)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_all_patterns_of_signs_counted(n, alternative):
    pair = drawn(n, n, n)
    d = pair.groups[0] - pair.groups[1]
    flips = np.array(list(itertools.product((-1, 1), repeat=n))) @ d
    greater, less = np.mean(flips >= d.sum() - 1e-12), np.mean(flips <= d.sum() + 1e-12)
    expected = {"greater": greater, "less": less, "two-sided": min(1, 2 * min(greater, less))}
    result = paired_permutation(pair, alternative=alternative)
    assert result.p == expected[alternative]
    assert result.effect == pytest.approx(d.mean())


def test_the_smallest_p_is_reached_where_the_groups_are_apart():
    apart = samples([7, 8, 9], [1, 2, 3])
    both, one = (permutation(apart, alternative=a) for a in ("two-sided", "greater"))
    assert (both.p, one.p) == (both.min_attainable_p, one.min_attainable_p) == (0.1, 0.05)
    assert permutation(apart, alternative="less").p == 1.0
    for n in (1, 3, 7):
        result = paired_permutation(samples(np.arange(1.0, n + 1)), alternative="greater")
        assert result.p == result.min_attainable_p == 2.0**-n
        both = paired_permutation(samples(np.arange(1.0, n + 1)), alternative="two-sided")
        assert both.p == both.min_attainable_p == 2.0 ** (1 - n)


# Limits and invariances.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("test", BOTH)
def test_equal_values_say_nothing(test, alternative):
    result = test(samples([0.1 + 0.2, 0.3, 0.3], [0.3] * 3), alternative=alternative)
    assert (result.p, result.opposite_p) == (1.0, 1.0)
    single = test(samples([3.0], [1.0]), alternative=alternative)
    assert single.p == (0.5 if alternative == "greater" else 1.0)
    assert single.interval == (-math.inf, math.inf)


@pytest.mark.parametrize("test", BOTH)
def test_what_leaves_the_result_alone(test):
    pair = drawn(1, 7, 7)
    x, y = pair.groups
    result = test(pair, alternative="greater")
    mirrored = test(samples(y, x), alternative="greater")
    assert (result.p, result.opposite_p) == pytest.approx((mirrored.opposite_p, mirrored.p))
    assert result.interval == pytest.approx((-mirrored.interval[1], -mirrored.interval[0]))
    moved = test(samples(3 * x + 5, 3 * y + 5), alternative="greater")
    assert (moved.p, moved.effect) == pytest.approx((result.p, 3 * result.effect))
    assert moved.interval == pytest.approx(tuple(3 * end for end in result.interval))
    shifted = test(samples(x + 2, y), alternative="greater", null=2.0)
    assert (shifted.p, shifted.effect) == pytest.approx((result.p, result.effect + 2))
    assert shifted.interval == pytest.approx(tuple(end + 2 for end in result.interval))


def test_clusters_change_sign_as_a_whole():
    rng = np.random.default_rng(2)
    d, labels = rng.normal(0.4, 1, 12), np.repeat([3, 1, 2, 0], 3)
    result = paired_permutation(samples(d, clusters=labels), alternative="greater")
    sums = d.reshape(4, 3).sum(1)
    flips = np.array(list(itertools.product((-1, 1), repeat=4))) @ sums
    assert result.p == np.mean(flips >= sums.sum() - 1e-12)
    assert (result.min_attainable_p, result.effect) == (1 / 16, pytest.approx(d.mean()))


# The interval.


@pytest.mark.parametrize(
    ("test", "sizes", "clusters", "confidence"),
    [
        (permutation, (5, 5), None, 0.95),
        (permutation, (4, 7), None, 0.9),
        (permutation, (7, 4), None, 0.8),
        (permutation, (13, 13), None, 0.95),  # drawn
        (paired_permutation, (8, 8), None, 0.95),
        (paired_permutation, (20, 20), None, 0.9),  # drawn
        (paired_permutation, (9, 9), np.array([0, 0, 1, 1, 1, 2, 3, 4, 5]), 0.8),
    ],
)
def test_inside_the_interval_no_null_is_rejected_and_outside_every_one_is(
    test, sizes, clusters, confidence
):
    pair = samples(*drawn(3, *sizes).groups, clusters=clusters)
    options = {"resamples": 999} if max(sizes) > 10 else {}
    low, high = test(pair, alternative="two-sided", confidence=confidence, **options).interval
    assert low < high
    level = (1 - confidence) / 2 * (1 + 1e-12)
    for end, outside, side in ((low, -1, "greater"), (high, 1, "less")):
        for step, rejects in ((1e-6, True), (0.3, True), (-1e-6, False), (-0.3, False)):
            at = test(pair, alternative=side, null=end + outside * step, interval=False, **options)
            assert (at.p <= level) == rejects


def test_an_interval_is_infinite_where_the_units_are_too_few_for_it():
    assert permutation(drawn(4, 3, 3), alternative="greater").interval == (-math.inf, math.inf)
    low, high = permutation(drawn(4, 3, 3), alternative="greater", confidence=0.9).interval
    assert -math.inf < low < high < math.inf
    d = samples([1.0, 2.0, 3.0, 5.0, 9.0])
    assert paired_permutation(d, alternative="less").interval == (-math.inf, math.inf)
    ends = paired_permutation(d, alternative="less", confidence=0.9).interval
    assert ends == pytest.approx((1.0, 9.0))  # 1 / 32 <= .05 < 2 / 32
    assert np.isnan(paired_permutation(d, alternative="less", interval=False).interval).all()


# Drawn.


@pytest.mark.parametrize("test", BOTH)
def test_drawn_arrangements_estimate_the_exact_p(test, monkeypatch):
    pair = drawn(5, 9, 9, shift=0.8)
    exact = test(pair, alternative="greater")
    monkeypatch.setattr(module, "_ENUMERATED", 0)
    shares = [test(pair, alternative="greater", seed=s, resamples=1_999).p for s in range(20)]
    error = math.sqrt(exact.p * (1 - exact.p) / 2_000 / 20)
    assert np.mean(shares) == pytest.approx(exact.p + (1 - exact.p) / 2_000, abs=4 * error)
    assert len(set(shares)) > 5
    assert shares[3] == test(pair, alternative="greater", seed=3, resamples=1_999).p
    few = test(pair, alternative="two-sided", resamples=99)
    assert few.min_attainable_p == 0.02
    assert test(drawn(5, 3, 3), alternative="greater").min_attainable_p == max(
        1e-4, 1 / 20 if test is permutation else 1 / 8
    )
    apart = samples(np.arange(9.0) + 50, np.arange(9.0)[::-1])
    assert test(apart, alternative="greater", resamples=9).p == pytest.approx(0.1, abs=0.1)


@pytest.mark.parametrize("test", BOTH)
def test_large_tables_are_drawn_in_blocks(test, monkeypatch):
    pair = drawn(6, 30, 30, shift=0.3)
    whole = test(pair, alternative="greater", resamples=999)
    monkeypatch.setattr(module, "_KEPT", 6_100)
    blocks = test(pair, alternative="greater", resamples=999)
    assert blocks.p == pytest.approx(whole.p, abs=0.05) and blocks.p != 1.0
    assert blocks.interval == pytest.approx(whole.interval, abs=0.15)


@pytest.mark.parametrize("test", BOTH)
def test_resamples_are_counted(test):
    with pytest.raises(UserError, match="resamples must be a whole number >= 1, got 0"):
        test(drawn(7, 3, 3), alternative="greater", resamples=0)


# Simulated error and coverage.


def test_error_of_the_first_kind_and_coverage_of_pairs():
    rng, runs = np.random.default_rng(8), 3_000
    rejected = covered = 0
    for d in rng.standard_t(3, (runs, 10)) + 0.4:
        result = paired_permutation(samples(d), alternative="two-sided", null=0.4)
        rejected += result.p <= 0.05
        covered += result.interval[0] <= 0.4 <= result.interval[1]
    assert 0.035 < rejected / runs < 0.065
    assert rejected + covered == runs


def test_error_of_the_first_kind_and_coverage_of_groups():
    rng, runs = np.random.default_rng(9), 1_000
    rejected = covered = 0
    for _ in range(runs):
        pair = samples(rng.exponential(size=10) + 0.4, rng.exponential(size=11))
        result = permutation(pair, alternative="two-sided", null=0.4, resamples=999)
        rejected += result.p <= 0.05
        covered += result.interval[0] <= 0.4 <= result.interval[1]
    assert 0.03 < rejected / runs < 0.07
    assert rejected + covered == runs
