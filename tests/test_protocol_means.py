"""Tests of means and of equivalence, against scipy, statsmodels and their definitions."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests.catalog import TESTS
from sharpjax.protocol.tests.result import Samples
from tests.simulated import named

ALTERNATIVES = ("two-sided", "greater", "less")
paired_t, welch = named("paired-t"), named("welch")
tost = functools.partial(named("tost"), alternative="two-sided")
non_inferiority = named("non-inferiority")
paired_non_inferiority = named("paired-non-inferiority")
T_TESTS = (paired_t, welch)


def samples(*groups, clusters=None):
    return Samples(tuple(np.asarray(group, np.float64) for group in groups), clusters=clusters)


def drawn(seed, n1=10, n2=10, shift=0.5, ratio=1.0):
    rng = np.random.default_rng(seed)
    return samples(rng.normal(shift, ratio, n1), rng.normal(0, 1, n2))


# Against scipy and statsmodels.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [2, 5, 20])
def test_paired_t_is_as_scipy_has_it(n, alternative):
    pair = drawn(n, n, n)
    x, y = pair.groups
    oracle: Any = stats.ttest_rel(x, y, alternative=alternative)
    result = paired_t(pair, alternative=alternative)
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-9)
    both = stats.ttest_rel(x, y).confidence_interval(0.9)
    assert result.interval(0.9) == pytest.approx((both.low, both.high), rel=1e-9)
    assert (result.min_attainable_p, result.n) == (0.0, (n, n))
    one = paired_t(samples(x), alternative=alternative, null=0.2)
    oracle = stats.ttest_1samp(x, 0.2, alternative=alternative)
    assert (one.p, one.n) == (pytest.approx(oracle.pvalue, rel=1e-9), (n,))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("sizes", [(2, 2), (3, 9), (10, 10)])
def test_welch_is_as_scipy_has_it(sizes, alternative):
    pair = drawn(sum(sizes), *sizes, ratio=3.0)
    oracle: Any = stats.ttest_ind(*pair.groups, equal_var=False, alternative=alternative)
    result = welch(pair, alternative=alternative)
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-9)
    both = stats.ttest_ind(*pair.groups, equal_var=False).confidence_interval()
    assert result.interval(0.95) == pytest.approx((both.low, both.high), rel=1e-9)
    assert result.effect == pytest.approx(pair.groups[0].mean() - pair.groups[1].mean())


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_equivalence_is_as_statsmodels_has_it(margin):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    pair = drawn(1, 10, 10, shift=0.2, ratio=2.0)
    x, y = pair.groups
    oracle = weightstats.ttost_ind(x, y, -margin, margin, usevar="unequal")
    assert tost(pair, margin=margin).p == pytest.approx(oracle[0], rel=1e-9)
    oracle = weightstats.ttost_ind(x, y, 0.1 - margin, 0.1 + margin, usevar="unequal")
    assert tost(pair, margin=margin, null=0.1).p == pytest.approx(oracle[0], rel=1e-9)


# Definitions and invariances.


@pytest.mark.parametrize("test", T_TESTS)
def test_what_leaves_the_result_alone(test):
    pair = drawn(2)
    x, y = pair.groups
    result = test(pair, alternative="greater")
    mirrored = test(samples(y, x), alternative="greater")
    assert (result.p, result.opposite_p) == pytest.approx((mirrored.opposite_p, mirrored.p))
    assert result.interval(0.95) == pytest.approx(
        (-mirrored.interval(0.95)[1], -mirrored.interval(0.95)[0])
    )
    moved = test(samples(8 * x + 16, 8 * y + 16), alternative="greater")
    assert (moved.p, moved.effect) == pytest.approx((result.p, 8 * result.effect))
    assert moved.interval(0.95) == pytest.approx(tuple(8 * end for end in result.interval(0.95)))
    assert result.p + result.opposite_p == pytest.approx(1.0)
    both = test(pair, alternative="two-sided")
    assert both.p == both.opposite_p == pytest.approx(2 * min(result.p, result.opposite_p))


@pytest.mark.parametrize("test", T_TESTS)
def test_an_end_of_the_interval_is_a_null_that_is_just_rejected(test):
    pair = drawn(3)
    low, high = test(pair, alternative="two-sided").interval(0.9)
    assert test(pair, alternative="greater", null=low).p == pytest.approx(0.05)
    assert test(pair, alternative="less", null=high).p == pytest.approx(0.05)


def test_equivalence_is_the_interval_inside_the_margin():
    pair = drawn(4, shift=0.3)
    plain = tost(pair, margin=1.0)
    low, high = plain.interval(0.9)
    at_the_edge = tost(pair, margin=max(-low, high))
    assert at_the_edge.p == pytest.approx(0.05)
    assert plain.opposite_p == 1.0
    # Beyond the margin: the interval at 95 % starts where the margin ends.
    far = samples(pair.groups[0] + 5, pair.groups[1])
    low, high = tost(far, margin=1.0).interval(0.95)
    assert tost(far, margin=low).opposite_p == pytest.approx(0.05)
    assert tost(far, margin=low).p > 0.9
    back = tost(samples(*far.groups[::-1]), margin=low)
    assert back.opposite_p == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("test", "t_test"),
    [
        (non_inferiority, welch),
        (paired_non_inferiority, paired_t),
    ],
)
def test_non_inferiority_is_a_test_against_the_margin(test, t_test):
    pair = drawn(5, shift=-0.1)
    x, y = pair.groups
    higher = test(pair, alternative="greater", margin=0.7)
    oracle = t_test(pair, alternative="greater", null=-0.7)
    assert (higher.p, higher.opposite_p) == (oracle.p, oracle.opposite_p)
    assert higher.interval(0.95) == oracle.interval(0.95)
    assert higher.opposite_p == pytest.approx(1 - higher.p)
    lower = test(samples(-x, -y), alternative="less", margin=0.7)
    assert (lower.p, lower.opposite_p) == pytest.approx((higher.p, higher.opposite_p))
    shifted = test(samples(x + 2, y), alternative="greater", margin=0.7, null=2.0)
    assert shifted.p == pytest.approx(higher.p)


def test_clusters_are_units_of_evidence():
    rng = np.random.default_rng(6)
    means = rng.normal(0.4, 1, 8)
    layers = np.repeat(means, 3) + np.tile([-0.1, 0.0, 0.1], 8)
    labels = np.repeat(np.arange(8), 3)
    clustered = paired_t(samples(layers, clusters=labels), alternative="two-sided")
    by_seed = paired_t(samples(means), alternative="two-sided")
    assert clustered.p == pytest.approx(by_seed.p)
    assert clustered.interval(0.95) == pytest.approx(by_seed.interval(0.95))
    alone = samples(means, clusters=np.array(list("abcdefgh")))
    assert paired_t(alone, alternative="two-sided").p == by_seed.p
    one = paired_t(samples([1.0, 2.0], clusters=np.zeros(2)), alternative="greater")
    assert (one.p, one.min_attainable_p) == (1.0, 1.0)


# Limits.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("test", T_TESTS)
def test_one_unit_says_nothing(test, alternative):
    result = test(samples([3.0], [1.0]), alternative=alternative)
    assert (result.effect, result.p, result.opposite_p) == (2.0, 1.0, 1.0)
    assert (result.interval(0.95), result.min_attainable_p) == ((-math.inf, math.inf), 1.0)


def test_one_unit_against_many_has_no_spread_of_its_own():
    assert welch(samples([3.0], [1.0, 2.0, 1.5]), alternative="greater").p == 1.0
    assert tost(samples([3.0], [3.0, 3.1]), margin=1.0).p == 1.0


@pytest.mark.parametrize(("n", "bounded"), [(3, False), (6, True)])
def test_without_spread_the_t_tests_claim_no_more_than_permutations_do(n, bounded):
    for second in (np.full(n, 0.7), np.full(n, 0.1) * 7):  # equal, and equal but for rounding
        pair = samples(np.full(n, 0.9), second)
        for test, least in ((paired_t, 2.0**-n), (welch, 1 / math.comb(2 * n, n))):
            for alternative in ALTERNATIVES:
                result = test(pair, alternative=alternative)
                both = {"greater": (least, 1.0), "less": (1.0, least)}
                expected = both.get(alternative, (2 * least, 2 * least))
                assert (result.p, result.opposite_p) == expected
                if bounded:
                    assert result.interval(0.95) == pytest.approx((0.2, 0.2))
                elif test is paired_t:
                    assert result.interval(0.95) == (-math.inf, math.inf)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("test", T_TESTS)
def test_equal_values_differ_by_nothing(test, alternative):
    result = test(samples([0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]), alternative=alternative)
    assert (result.p, result.opposite_p) == (1.0, 1.0)
    assert result.effect == pytest.approx(0.0, abs=1e-15)


def test_equal_values_are_equivalent_as_far_as_so_few_can_say():
    ones = samples(np.ones(6), np.ones(6))
    assert tost(ones, margin=0.1).p == 1 / math.comb(12, 6)
    assert tost(ones, margin=0.1, null=1.0).p == 1.0
    assert tost(ones, margin=0.1, null=1.0).opposite_p == 2 / math.comb(12, 6)


def test_a_tiny_variance_does_not_underflow():
    x, y = np.array([1.0, 2.0, 4.0]) * 1e-90, np.array([1.0, 3.0, 7.0]) * 1e-90
    tiny = welch(samples(x, y), alternative="less")
    assert tiny.p == pytest.approx(welch(samples(x * 1e90, y * 1e90), alternative="less").p)


# What is refused.

DIRECTED = (non_inferiority, paired_non_inferiority)
NAMES = sorted(TESTS)


def refusal(name, given, **options):
    """What a test of the catalog says of samples or options that it does not take."""
    omnibus = name in ("kruskal-wallis", "friedman") or TESTS[name].equivalence
    asked: Any = {"alternative": "two-sided" if omnibus else "greater", "margin": 1.0} | options
    with pytest.raises(UserError) as error:
        named(name)(given, **asked)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_no_test_takes(name):
    good, (least, most) = np.array([0.0, 1.0, 1.0]), TESTS[name].groups
    groups, seen = (good,) * least, (np.full(3, True),) * least
    if TESTS[name].kind != "pairwise":
        for bad in (math.nan, math.inf, -math.inf, 1e200):
            message = refusal(name, Samples((np.array([0.0, 1.0, bad]), *groups[1:]), seen))
            said = f"{name}: group 1 has 1 value that is not finite (unit 2 is {bad:g};"
            assert message.startswith(said)
        empty = Samples((np.array([]), *groups[1:]), seen)
        assert refusal(name, empty).startswith(f"{name}: group 1 has sh")
    assert f"{name}: 0 groups; it takes {least}" in refusal(name, Samples(()))
    more = Samples((good,) * (most + 1))
    assert f"{name}: {most + 1} groups; it takes " in refusal(name, more)
    for null in (math.nan, math.inf):
        assert f"{name}: null={null}" in refusal(name, Samples(groups, seen), null=null)
    unknown = refusal(name, Samples(groups, seen), alternative="more")
    assert f"{name}: unknown alternative 'more'" in unknown
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(UserError, match=f"confidence={confidence}; give a number between"):
            welch(drawn(0), alternative="greater").interval(confidence)


ALIGNED = ("paired", "many-paired", "correlation")


@pytest.mark.parametrize("name", [n for n in NAMES if TESTS[n].kind in ALIGNED])
def test_units_that_do_not_belong_together(name):
    count = max(2, TESTS[name].groups[0])
    given = samples([1, 2, 3], *[[1, 2]] * (count - 1))
    assert "unit i must be the same in all" in refusal(name, given)
    given = samples(*[[1, 2, 3]] * count, clusters=np.zeros(2))
    assert "clusters has shape (2,)" in refusal(name, given)


@pytest.mark.parametrize("name", [n for n in NAMES if not TESTS[n].clusters])
def test_independent_groups_take_no_clusters(name):
    count = TESTS[name].groups[0]
    groups, seen = [[0.0, 1.0, 1.0]] * count, (np.full(3, True),) * count
    if TESTS[name].kind == "pairwise":
        groups = [np.ones((3, 3))] * 2
    given = dataclasses.replace(samples(*groups, clusters=np.array([0, 0, 1])), seen=seen)
    assert "units come in clusters" in refusal(name, given)
    each = dataclasses.replace(given, clusters=np.arange(3))
    two = name in ("kruskal-wallis", "friedman", "tost")
    named(name)(each, alternative="two-sided" if two else "greater", margin=1.0)


def test_equivalence_needs_a_margin_and_its_side():
    pair = drawn(7)
    for name in ("tost", "non-inferiority", "paired-non-inferiority"):
        for margin in (0.0, -1.0, math.nan, math.inf):
            assert f"margin={margin}; give the smallest effect" in refusal(
                name, pair, margin=margin
            )
    assert "there is non-inferiority" in refusal("tost", pair, alternative="less")
    said = refusal("non-inferiority", pair, alternative="two-sided")
    assert "say which side is better" in said


# Simulated error and coverage.


def simulate(test, runs, draw, **options):
    return [test(Samples(draw()), **options) for _ in range(runs)]


@pytest.mark.parametrize("test", T_TESTS)
def test_errors_of_the_first_kind_and_coverage(test):
    rng, runs, true = np.random.default_rng(8), 3_000, 0.3
    options = {"alternative": "two-sided", "null": true}
    results = simulate(
        test, runs, lambda: (rng.normal(true, 2, 10), rng.normal(0, 0.7, 10)), **options
    )
    rejected = np.mean([result.p <= 0.05 for result in results])
    missed = np.mean([not r.interval(0.95)[0] <= true <= r.interval(0.95)[1] for r in results])
    assert 0.035 < rejected < 0.065
    assert rejected == missed


@pytest.mark.parametrize("test", (named("tost"), *DIRECTED))
def test_at_the_margin_the_claim_is_made_with_probability_alpha(test):
    rng, runs = np.random.default_rng(9), 3_000
    true = -2.0 if test in DIRECTED else 2.0
    alternative = "greater" if test in DIRECTED else "two-sided"
    results = simulate(
        test,
        runs,
        lambda: (rng.normal(true, 1, 10), rng.normal(0, 1.5, 10)),
        alternative=alternative,
        margin=2.0,
    )
    assert 0.035 < np.mean([result.p <= 0.05 for result in results]) < 0.065
    # For a difference at the margin, half of a two-sided test points outward.
    level = 0.05 if test in DIRECTED else 0.025
    outward = np.mean([result.opposite_p <= 0.05 for result in results])
    assert outward == pytest.approx(level, abs=0.3 * level)


def test_clustered_t_keeps_its_level():
    rng, runs, labels = np.random.default_rng(10), 2_000, np.repeat(np.arange(10), 4)
    rejected = naive = 0
    for _ in range(runs):
        d = np.repeat(rng.normal(size=10), 4) + 0.3 * rng.normal(size=40)
        rejected += paired_t(samples(d, clusters=labels), alternative="two-sided").p <= 0.05
        naive += paired_t(samples(d), alternative="two-sided").p <= 0.05
    assert 0.035 < rejected / runs < 0.065
    assert naive / runs > 0.25
