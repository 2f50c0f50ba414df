"""Tests of means and of equivalence, against scipy, statsmodels and their definitions."""

import doctest
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import arguments, equivalence, location, paired, two_sample
from sharpjax.protocol.tests.equality import identical
from sharpjax.protocol.tests.permutation import paired_permutation, permutation
from sharpjax.protocol.tests.proportion import binomial
from sharpjax.protocol.tests.result import Samples

ALTERNATIVES = ("two-sided", "greater", "less")
T_TESTS = (paired.paired_t, two_sample.welch)


def samples(*groups, clusters=None):
    return Samples(tuple(np.asarray(group, np.float64) for group in groups), clusters=clusters)


def drawn(seed, n1=10, n2=10, shift=0.5, ratio=1.0):
    rng = np.random.default_rng(seed)
    return samples(rng.normal(shift, ratio, n1), rng.normal(0, 1, n2))


@pytest.mark.parametrize("module", [arguments, equivalence, location])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


# Against scipy and statsmodels.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [2, 5, 20])
def test_paired_t_is_as_scipy_has_it(n, alternative):
    pair = drawn(n, n, n)
    x, y = pair.groups
    oracle: Any = stats.ttest_rel(x, y, alternative=alternative)
    result = paired.paired_t(pair, alternative=alternative, confidence=0.9)
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-9)
    both = stats.ttest_rel(x, y).confidence_interval(0.9)
    assert result.interval == pytest.approx((both.low, both.high), rel=1e-9)
    assert (result.min_attainable_p, result.n) == (0.0, (n, n))
    one = paired.paired_t(samples(x), alternative=alternative, null=0.2)
    oracle = stats.ttest_1samp(x, 0.2, alternative=alternative)
    assert (one.p, one.n) == (pytest.approx(oracle.pvalue, rel=1e-9), (n,))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("sizes", [(2, 2), (3, 9), (10, 10)])
def test_welch_is_as_scipy_has_it(sizes, alternative):
    pair = drawn(sum(sizes), *sizes, ratio=3.0)
    oracle: Any = stats.ttest_ind(*pair.groups, equal_var=False, alternative=alternative)
    result = two_sample.welch(pair, alternative=alternative)
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-9)
    both = stats.ttest_ind(*pair.groups, equal_var=False).confidence_interval()
    assert result.interval == pytest.approx((both.low, both.high), rel=1e-9)
    assert result.effect == pytest.approx(pair.groups[0].mean() - pair.groups[1].mean())


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_equivalence_is_as_statsmodels_has_it(margin):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    pair = drawn(1, 10, 10, shift=0.2, ratio=2.0)
    x, y = pair.groups
    oracle = weightstats.ttost_ind(x, y, -margin, margin, usevar="unequal")
    assert equivalence.tost(pair, margin=margin).p == pytest.approx(oracle[0], rel=1e-9)
    oracle = weightstats.ttost_ind(x, y, 0.1 - margin, 0.1 + margin, usevar="unequal")
    assert equivalence.tost(pair, margin=margin, null=0.1).p == pytest.approx(oracle[0], rel=1e-9)
    oracle = weightstats.ttost_paired(x, y, -margin, margin)
    assert equivalence.paired_tost(pair, margin=margin).p == pytest.approx(oracle[0], rel=1e-9)


# Definitions and invariances.


@pytest.mark.parametrize("test", T_TESTS)
def test_what_leaves_the_result_alone(test):
    pair = drawn(2)
    x, y = pair.groups
    result = test(pair, alternative="greater")
    mirrored = test(samples(y, x), alternative="greater")
    assert (result.p, result.opposite_p) == pytest.approx((mirrored.opposite_p, mirrored.p))
    assert result.interval == pytest.approx((-mirrored.interval[1], -mirrored.interval[0]))
    moved = test(samples(8 * x + 16, 8 * y + 16), alternative="greater")
    assert (moved.p, moved.effect) == pytest.approx((result.p, 8 * result.effect))
    assert moved.interval == pytest.approx(tuple(8 * end for end in result.interval))
    assert result.p + result.opposite_p == pytest.approx(1.0)
    both = test(pair, alternative="two-sided")
    assert both.p == both.opposite_p == pytest.approx(2 * min(result.p, result.opposite_p))


@pytest.mark.parametrize("test", T_TESTS)
def test_an_end_of_the_interval_is_a_null_that_is_just_rejected(test):
    pair = drawn(3)
    low, high = test(pair, alternative="two-sided", confidence=0.9).interval
    assert test(pair, alternative="greater", null=low).p == pytest.approx(0.05)
    assert test(pair, alternative="less", null=high).p == pytest.approx(0.05)


@pytest.mark.parametrize("tost", [equivalence.tost, equivalence.paired_tost])
def test_equivalence_is_the_interval_inside_the_margin(tost):
    pair = drawn(4, shift=0.3)
    plain = tost(pair, margin=1.0, confidence=0.9)
    low, high = plain.interval
    at_the_edge = tost(pair, margin=max(-low, high))
    assert at_the_edge.p == pytest.approx(0.05)
    assert plain.opposite_p == 1.0
    # Beyond the margin: the interval at 95 % starts where the margin ends.
    far = samples(pair.groups[0] + 5, pair.groups[1])
    low, high = tost(far, margin=1.0, confidence=0.95).interval
    assert tost(far, margin=low).opposite_p == pytest.approx(0.05)
    assert tost(far, margin=low).p > 0.9
    back = tost(samples(*far.groups[::-1]), margin=low)
    assert back.opposite_p == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("test", "t_test"),
    [
        (equivalence.non_inferiority, two_sample.welch),
        (equivalence.paired_non_inferiority, paired.paired_t),
    ],
)
def test_non_inferiority_is_a_test_against_the_margin(test, t_test):
    pair = drawn(5, shift=-0.1)
    x, y = pair.groups
    higher = test(pair, alternative="greater", margin=0.7)
    assert higher == t_test(pair, alternative="greater", null=-0.7)
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
    clustered = paired.paired_t(samples(layers, clusters=labels), alternative="two-sided")
    by_seed = paired.paired_t(samples(means), alternative="two-sided")
    assert clustered.p == pytest.approx(by_seed.p)
    assert clustered.interval == pytest.approx(by_seed.interval)
    alone = samples(means, clusters=np.array(list("abcdefgh")))
    assert paired.paired_t(alone, alternative="two-sided") == by_seed
    one = paired.paired_t(samples([1.0, 2.0], clusters=np.zeros(2)), alternative="greater")
    assert (one.p, one.min_attainable_p) == (1.0, 1.0)


# Limits.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("test", T_TESTS)
def test_one_unit_says_nothing(test, alternative):
    result = test(samples([3.0], [1.0]), alternative=alternative)
    assert (result.effect, result.p, result.opposite_p) == (2.0, 1.0, 1.0)
    assert (result.interval, result.min_attainable_p) == ((-math.inf, math.inf), 1.0)


def test_one_unit_against_many_has_no_spread_of_its_own():
    assert two_sample.welch(samples([3.0], [1.0, 2.0, 1.5]), alternative="greater").p == 1.0
    assert equivalence.tost(samples([3.0], [3.0, 3.1]), margin=1.0).p == 1.0


@pytest.mark.parametrize(("n", "bounded"), [(3, False), (6, True)])
def test_without_spread_the_t_tests_claim_no_more_than_permutations_do(n, bounded):
    for second in (np.full(n, 0.7), np.full(n, 0.1) * 7):  # equal, and equal but for rounding
        pair = samples(np.full(n, 0.9), second)
        for test, exact in ((paired.paired_t, paired_permutation), (two_sample.welch, permutation)):
            for alternative in ALTERNATIVES:
                result = test(pair, alternative=alternative)
                oracle = exact(pair, alternative=alternative)
                assert (result.p, result.opposite_p) == (oracle.p, oracle.opposite_p)
                if bounded:
                    assert result.interval == pytest.approx((0.2, 0.2))
                elif test is paired.paired_t:
                    assert result.interval == (-math.inf, math.inf)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("test", T_TESTS)
def test_equal_values_differ_by_nothing(test, alternative):
    result = test(samples([0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]), alternative=alternative)
    assert (result.p, result.opposite_p) == (1.0, 1.0)
    assert result.effect == pytest.approx(0.0, abs=1e-15)


def test_equal_values_are_equivalent_as_far_as_so_few_can_say():
    ones = samples(np.ones(6), np.ones(6))
    assert equivalence.paired_tost(ones, margin=0.1).p == 2.0**-6
    assert equivalence.tost(ones, margin=0.1).p == 1 / math.comb(12, 6)
    assert equivalence.tost(ones, margin=0.1, null=1.0).p == 1.0
    assert equivalence.tost(ones, margin=0.1, null=1.0).opposite_p == 2 / math.comb(12, 6)


def test_a_tiny_variance_does_not_underflow():
    x, y = np.array([1.0, 2.0, 4.0]) * 1e-90, np.array([1.0, 3.0, 7.0]) * 1e-90
    tiny = two_sample.welch(samples(x, y), alternative="less")
    assert tiny.p == pytest.approx(
        two_sample.welch(samples(x * 1e90, y * 1e90), alternative="less").p
    )


# What is refused.

DIRECTED = (equivalence.non_inferiority, equivalence.paired_non_inferiority)
EQUIVALENCE = (equivalence.tost, equivalence.paired_tost)
TWO_GROUPS = (
    paired.paired_t,
    paired.wilcoxon,
    two_sample.welch,
    two_sample.mann_whitney,
    two_sample.auc,
    permutation,
    paired_permutation,
    identical,
    *DIRECTED,
    *EQUIVALENCE,
)


def refusal(test, given, **options):
    options = {"alternative": "two-sided", "margin": 1.0} | options
    if test in DIRECTED:
        options["alternative"] = "greater"
    with pytest.raises(UserError) as error:
        test(given, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("test", (*TWO_GROUPS, binomial))
def test_what_no_test_takes(test):
    name = {paired.paired_t: "paired-t"}.get(test, test.__name__.replace("_", "-"))
    good = np.array([0.0, 1.0, 1.0])
    groups = (good,) if test is binomial else (good, good[::-1])
    given = Samples(groups)
    for bad in (math.nan, math.inf, -math.inf, 1e200):
        spoiled = Samples((np.array([0.0, 1.0, bad]), *groups[1:]))
        message = refusal(test, spoiled)
        assert message.startswith(
            f"{name}: group 1 has 1 value that is not finite (unit 2 is {bad:g};"
        )
    assert refusal(test, Samples((np.array([]), *groups[1:]))).startswith(f"{name}: group 1 has sh")
    assert f"{name}: 0 groups" in refusal(test, Samples(()))
    assert f"{name}: 3 groups" in refusal(test, Samples((good, good, good)))
    assert f"{name}: confidence=1.0" in refusal(test, given, confidence=1.0)
    for null in (math.nan, math.inf):
        assert f"{name}: null={null}" in refusal(test, given, null=null)
    if test not in DIRECTED:
        assert f"{name}: unknown alternative 'more'" in refusal(test, given, alternative="more")


@pytest.mark.parametrize("test", [t for t in TWO_GROUPS if "paired" in t.__name__])
def test_pairs_of_different_length(test):
    assert "groups of 3 and 2 units" in refusal(test, samples([1, 2, 3], [1, 2]))
    assert "clusters has shape (2,)" in refusal(
        test, samples([1, 2, 3], [1, 2, 3], clusters=np.zeros(2))
    )


@pytest.mark.parametrize(
    "test", [two_sample.welch, two_sample.mann_whitney, permutation, equivalence.tost]
)
def test_independent_groups_take_no_clusters(test):
    given = samples([1, 2, 3], [1, 2, 3], clusters=np.array([0, 0, 1]))
    assert "units come in clusters" in refusal(test, given)
    each = samples([1, 2, 3], [1, 2, 3], clusters=np.arange(3))
    test(each, alternative="two-sided", margin=1.0)


def test_equivalence_needs_a_margin_and_its_side():
    pair = drawn(7)
    for test in (*EQUIVALENCE, *DIRECTED):
        for margin in (0.0, -1.0, math.nan, math.inf):
            assert f"margin={margin}; give the smallest effect" in refusal(
                test, pair, margin=margin
            )
    assert "there is non-inferiority" in refusal(equivalence.tost, pair, alternative="less")
    with pytest.raises(UserError, match="say which side is better"):
        equivalence.non_inferiority(pair, alternative="two-sided", margin=1.0)


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
    missed = np.mean([not r.interval[0] <= true <= r.interval[1] for r in results])
    assert 0.035 < rejected < 0.065
    assert rejected == missed


@pytest.mark.parametrize("test", (*EQUIVALENCE, *DIRECTED))
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
        rejected += paired.paired_t(samples(d, clusters=labels), alternative="two-sided").p <= 0.05
        naive += paired.paired_t(samples(d), alternative="two-sided").p <= 0.05
    assert 0.035 < rejected / runs < 0.065
    assert naive / runs > 0.25
