"""Proportions, deterministic comparisons, and corrections for many tests."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpjax.errors import UserError
from sharpjax.protocol.judging.corrections import adjust
from sharpjax.protocol.tests.result import Samples
from tests.simulated import named, plain

binomial, identical = named("binomial"), named("identical")
ALTERNATIVES = ("two-sided", "greater", "less")


def samples(*groups):
    return Samples(tuple(np.asarray(group, np.float64) for group in groups))


def counts(successes, n):
    return samples(np.repeat([1.0, 0.0], [successes, n - successes]))


# Proportions.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("null", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_binomial_is_as_scipy_has_it(n, null, alternative):
    everything = []
    for k in range(0, n + 1, max(1, n // 7)):
        oracle = stats.binomtest(k, n, null, alternative=alternative)
        result = binomial(counts(k, n), alternative=alternative, null=null)
        p = oracle.pvalue
        if alternative == "two-sided":  # scipy's counts all that is not likelier
            sides = ("greater", "less")
            p = min(1.0, 2 * min(stats.binomtest(k, n, null, side).pvalue for side in sides))
        assert result.p == pytest.approx(p, rel=1e-9)
        interval = oracle.proportion_ci(0.9, method="exact")
        both = stats.binomtest(k, n, null).proportion_ci(0.9, method="exact")
        assert result.interval(0.9) == pytest.approx((both.low, both.high), abs=1e-12)
        assert interval.low <= result.effect <= interval.high
        everything.append(result)
    smallest = min(result.p for result in everything)
    assert smallest >= everything[0].min_attainable_p * (1 - 1e-12)
    ends = [binomial(counts(k, n), alternative=alternative, null=null).p for k in (0, n)]
    assert everything[0].min_attainable_p == pytest.approx(min(ends), rel=1e-9)


def test_ten_thousand_studies():
    result = binomial(counts(612, 10_000), alternative="greater", null=0.05)
    assert result.p == pytest.approx(stats.binom.sf(611, 10_000, 0.05), rel=1e-9)
    ends = stats.beta.ppf(0.025, 612, 9_389), stats.beta.ppf(0.975, 613, 9_388)
    assert result.interval(0.95) == pytest.approx(ends, rel=1e-9)
    both = binomial(counts(500, 10_000), alternative="two-sided", null=0.05)
    assert both.p == both.opposite_p == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 7, 30])
def test_interval_is_the_exact_test_inverted(n):
    """Clopper and Pearson: at an end of the interval the one-sided p is the tail."""
    for k in range(n + 1):
        low, high = binomial(counts(k, n), alternative="greater").interval(0.9)
        assert (low == 0) == (k == 0) and (high == 1) == (k == n)
        if k:
            assert binomial(counts(k, n), alternative="greater", null=low).p == pytest.approx(0.05)
        if k < n:
            assert binomial(counts(k, n), alternative="less", null=high).p == pytest.approx(0.05)


@pytest.mark.parametrize("n, margin", [(30, 0.15), (100, 0.1), (400, 0.05)])
def test_a_proportion_is_within_a_margin_wrongly_with_probability_alpha_at_most(n, margin):
    """Enumerated at the edge of the margin, where Wilson's interval has up to .0725 at .05."""
    intervals = [binomial(counts(k, n), alternative="greater").interval(0.9) for k in range(n + 1)]
    wilson = [stats.binomtest(k, n).proportion_ci(0.9, method="wilson") for k in range(n + 1)]
    wrong, of_wilson = [], []
    for null in np.linspace(0.2, 0.8, 61):
        for truth in (null - margin, null + margin):
            mass = stats.binom.pmf(np.arange(n + 1), n, truth)
            for ends, found in ((intervals, wrong), (wilson, of_wilson)):
                inside = [null - margin < low and high < null + margin for low, high in ends]
                found.append(mass @ inside)
    assert max(wrong) <= 0.05 < max(of_wilson)


def test_errors_of_binomial_enumerated():
    n, covered = 30, []
    for null in np.linspace(0.06, 0.94, 45):
        mass = stats.binom.pmf(np.arange(n + 1), n, null)
        results = [binomial(counts(k, n), alternative="two-sided", null=null) for k in range(n + 1)]
        rejected = mass @ np.array([result.p <= 0.05 for result in results])
        assert 0.005 < rejected <= 0.05
        intervals = [result.interval(0.95) for result in results]
        inside = [low <= null <= high for low, high in intervals]
        assert inside == [result.p > 0.05 for result in results]
        covered.append(mass @ inside)
    assert 0.95 <= min(covered) and np.mean(covered) < 0.98


@pytest.mark.parametrize("null", [0.0, 1.0, -0.1, math.nan])
def test_proportions_that_leave_nothing_to_test(null):
    with pytest.raises(UserError, match="binomial: null=.*give a number between 0 and 1"):
        binomial(counts(1, 3), alternative="greater", null=null)


def test_what_is_no_proportion():
    with pytest.raises(UserError, match="a value is 0.5; give 1 for a success and 0 for none"):
        binomial(samples([0.0, 0.5, 1.0]), alternative="greater")
    clustered = Samples((np.array([0.0, 1.0]),), clusters=np.zeros(2))
    with pytest.raises(UserError, match="units come in clusters"):
        binomial(clustered, alternative="greater")


# Deterministic comparisons.


def test_what_is_identical():
    result = identical(samples([1.0, 2.0], [1.0, 2.0]), alternative="two-sided")
    assert plain(result)[:6] == (0.0, (0.0, 0.0), 0.0, 1.0, 0.0, (2, 2))
    flipped = identical(samples([1.0, 2.0], [1.0, np.nextafter(2.0, 3)]), alternative="two-sided")
    assert plain(flipped)[:6] == (-(2.0**-51), (-(2.0**-51),) * 2, 1.0, 0.0, 0.0, (2, 2))
    near = samples([1.0, 2.0], [1.25, 1.5])
    within = identical(near, alternative="two-sided", margin=0.5)
    assert plain(within)[:4] == (0.5, (0.5, 0.5), 0.0, 1.0)
    assert identical(near, alternative="two-sided", margin=0.4).p == 1.0


def test_an_order_must_hold_in_every_unit():
    less = identical(samples([1.0, 2.0], [1.5, 4.0]), alternative="less")
    assert (less.effect, less.p, less.opposite_p) == (-0.5, 0.0, 1.0)
    greater = identical(samples([1.0, 2.0], [1.5, 4.0]), alternative="greater")
    assert (greater.effect, greater.p, greater.opposite_p) == (-2.0, 1.0, 0.0)
    for alternative in ("less", "greater"):
        mixed = identical(samples([1.0, 2.0], [1.5, 2.0]), alternative=alternative)
        assert (mixed.p, mixed.opposite_p) == (1.0, 1.0)
    apart = samples([1.0, 2.0], [1.5, 4.0])
    assert identical(apart, alternative="less", margin=0.5).p == 1.0
    assert identical(apart, alternative="less", null=-0.25).effect == -0.5
    assert identical(apart, alternative="less", null=-0.75).p == 1.0


def test_margin_of_identical():
    with pytest.raises(UserError, match="margin=-1.0; give a finite number >= 0"):
        identical(samples([3.0], [3.0]), alternative="two-sided", margin=-1.0)


# Corrections.


def test_the_textbook_family():
    p = [0.01, 0.02, 0.03, 0.2]
    assert adjust(p, "none").tolist() == p
    assert adjust(p, "holm").tolist() == pytest.approx([0.04, 0.06, 0.06, 0.2])
    assert adjust(p, "bh").tolist() == pytest.approx([0.04, 0.04, 0.04, 0.2])
    assert adjust(p, "by").tolist() == pytest.approx([1 / 12, 1 / 12, 1 / 12, 5 / 12])


def test_smallest_families_of_the_papers():
    # Five pairs, all three of a family at the smallest one-sided p, or one of them.
    assert adjust([2.0**-5] * 3, "by") == pytest.approx([0.0573] * 3, abs=5e-5)
    assert adjust([2.0**-7, 0.5, 0.5], "by")[0] == pytest.approx(0.0430, abs=5e-5)


@pytest.mark.parametrize(("method", "name"), [("holm", "holm"), ("bh", "fdr_bh"), ("by", "fdr_by")])
def test_corrections_are_as_statsmodels_has_them(method, name):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 50):
        for p in (rng.random(m) ** 3, np.round(rng.random(m), 1), np.zeros(m), np.ones(m)):
            oracle = multitest.multipletests(p, method=name)[1]
            assert adjust(p, method) == pytest.approx(oracle, abs=1e-14)


@pytest.mark.parametrize("method", ["none", "holm", "bh", "by"])
def test_what_was_not_run_is_no_member(method):
    p = [math.nan, 0.01, 0.2, math.nan, 0.03]
    adjusted = adjust(p, method)
    assert np.isnan(adjusted[[0, 3]]).all()
    assert adjusted[[1, 2, 4]] == pytest.approx(adjust([0.01, 0.2, 0.03], method))
    assert np.isnan(adjust([math.nan, math.nan], method)).all()
    assert adjust([], method).size == 0
    assert p[1] == 0.01


@pytest.mark.parametrize("method", ["holm", "bh", "by"])
def test_corrections_keep_the_order_and_the_level(method):
    p = np.random.default_rng(1).random((2_000, 6))
    adjusted = np.array([adjust(row, method) for row in p])
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    by_size = np.take_along_axis(adjusted, p.argsort(axis=1), axis=1)
    assert (np.diff(by_size, axis=1) >= 0).all()
    any_rejected = (adjusted <= 0.05).any(axis=1).mean()
    expected = 0.05 / 2.45 if method == "by" else 0.05
    assert any_rejected == pytest.approx(expected, abs=0.016)


def test_what_is_no_family():
    misspelt: Any = "bonferoni"
    with pytest.raises(UserError, match="unknown correction 'bonferoni'"):
        adjust([0.1], misspelt)
    for bad in (-0.1, 1.5, math.inf):
        with pytest.raises(UserError, match="p-values lie between 0 and 1"):
            adjust([0.1, bad], "holm")
