"""p and interval of one result agree, in every test, however few or alike the units are."""

import math
from typing import Any

import numpy as np
import pytest

from sharpjax.protocol.tests.catalog import PARTIAL, TESTS, run
from sharpjax.protocol.tests.result import Samples
from tests.simulated import few_resamples

# Without chance, or without an interval.
NAMES = sorted(set(TESTS) - {"identical", "kruskal-wallis", "friedman"})
# Whose p against their own null is of another kind than the interval: by permutation, or exact.
OTHER_WAYS = {
    *("wilcoxon", "mann-whitney", "auc", "spearman", "kendall", "pearson", "fit-error"),
    *("spearman-over-arms", "log-rank", "jonckheere", "page"),
    *PARTIAL,
}
# Whose floor depends on the null, and whose p has none as soon as there is spread.
OWN_FLOOR = ("binomial", "auc")
WITHOUT_FLOOR = ("paired-t", "welch", "tost", "non-inferiority", "paired-non-inferiority")
ALIGNED = ("paired", "many-paired", "correlation")
LEVELS = (0.2, 1 / 6, 0.1, 0.05, 0.025, 0.01, 0.001)
NULLS = {0.0: (0.15, -0.4), 1.0: (0.8, 0.3), 0.5: (0.3, 0.9)}


def values(generator, n):
    draws = [
        lambda: generator.normal(size=n),
        lambda: generator.integers(0, 3, n) * 1.0,
        lambda: np.full(n, generator.integers(1, 3) * 0.1),
        lambda: np.full(n, 0.1) + 1e-9 * generator.normal(size=n),
        lambda: generator.lognormal(0, 1, n),
        lambda: generator.normal(4, 1, n),
        lambda: 10 * generator.integers(1, 3) + np.arange(n),
    ]
    return draws[generator.integers(len(draws))]()


def drawn(generator, name, most=7):
    """Small samples of the test's kind, constant and tied ones and clusters among them."""
    entry, seen, clusters, arms = TESTS[name], None, None, None
    least, largest = entry.groups
    count = int(generator.integers(least, min(largest, 4) + 1))
    n = int(generator.integers(2, most))
    if name in PARTIAL:
        n += count - 2  # each covariate takes a unit
    if entry.kind == "pairwise":
        groups = [values(generator, (n + 1) ** 2).reshape(n + 1, n + 1) for _ in range(2)]
    elif entry.kind == "one":
        groups = [generator.integers(0, 2, n) * 1.0]
    elif entry.kind in ALIGNED:
        groups = [values(generator, n) for _ in range(count)]
        if generator.random() < 0.3:
            clusters = np.arange(n) // 2
        if generator.random() < 0.3:
            arms = np.arange(n) % 3
    else:
        groups = [values(generator, int(generator.integers(2, most))) for _ in range(count)]
    if entry.kind == "times":
        groups = [np.abs(group) for group in groups]
        share = generator.choice([0.0, 0.6, 1.0])
        seen = tuple(generator.random(group.size) < share for group in groups)
    return Samples(tuple(groups), seen, clusters, arms)


def asked(name, samples, alternative: Any = "greater", **options):
    if TESTS[name].equivalence:
        alternative = "two-sided"
    return run(name, samples, alternative=alternative, margin=0.3, **options)


def one_sided(name, samples, null=None):
    """p of both sides, and what is tested."""
    with few_resamples():
        result = asked(name, samples, null=null)
    tested = TESTS[name].null if null is None else null
    if TESTS[name].margin:
        tested -= 0.3
    return result, result.p, result.opposite_p, tested


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tost"])
def test_an_interval_leaves_out_the_null_where_p_rejects_it(name):
    generator = np.random.default_rng(7)
    excluded = 0
    for _ in range(60):
        samples = drawn(generator, name)
        for null in (None, *NULLS[TESTS[name].null]):
            result, greater, less, tested = one_sided(name, samples, null)
            if math.isnan(result.effect):
                assert (greater, less) == (1, 1)
            for a in LEVELS:
                low, high = result.interval(1 - 2 * a)
                slack = 1e-6 * max(1e-3, abs(tested))
                inside = (low <= tested + slack, high >= tested - slack)
                for p, holds in zip((greater, less), inside, strict=True):
                    excluded += not holds
                    assert holds or p <= a * (1 + 1e-3), (samples, null, a, p, (low, high))
                if name in OTHER_WAYS and null is None:
                    continue
                apart = (low >= tested - slack, high <= tested + slack)
                for p, out in zip((greater, less), apart, strict=True):
                    assert out or p >= a * (1 - 1e-3), (samples, null, a, p, (low, high))
    assert excluded > 20


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_excluded_below_the_floor(name):
    """Two units, constants, censored ones: p has its floor, and the interval is as wide."""
    generator = np.random.default_rng(8)
    bounds = TESTS[name].bounds
    unbounded = 0
    for _ in range(60):
        samples = drawn(generator, name, most=4)
        with few_resamples():
            result = asked(name, samples)
        floor = result.min_attainable_p
        assert result.p >= floor * (1 - 1e-12)
        for a in LEVELS:
            if a >= floor * (1 - 1e-9):
                continue
            low, high = result.interval(1 - 2 * a)
            if name in OWN_FLOOR:
                assert low <= TESTS[name].null
                continue
            lowest = -math.inf if result.effect < bounds[0] else bounds[0]
            assert (low, high) == (lowest, bounds[1]), (samples, a, (low, high))
            unbounded += 1
    assert unbounded > 20 or name in (*OWN_FLOOR, *WITHOUT_FLOOR)


def test_the_smallest_samples():
    """[10, 11] against [1, 2]: p = 1/6 one-sided, so a 95 % interval says nothing."""
    pair = Samples((np.array([10.0, 11.0]), np.array([1.0, 2.0])))
    for name in ("mean-difference", "ratio-of-means"):
        result = run(name, pair, alternative="greater")
        assert result.p == pytest.approx(1 / 6)
        assert result.interval(0.95) == TESTS[name].bounds
        assert result.interval(0.6)[0] > TESTS[name].null  # tails of .2


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 10])
@pytest.mark.parametrize("name", NAMES)
def test_constant_samples_exclude_no_more_than_signs_or_orders_could(name, n):
    """Without spread: the whole line, until n units are enough for the exact test to reject."""
    entry = TESTS[name]
    values = [0.9, 0.2, 0.7, 0.3][: max(2, entry.groups[0])][: entry.groups[1]]
    groups = tuple(np.full(n, value) for value in values)
    if entry.kind == "pairwise":
        groups = tuple(np.full((max(n, 3),) * 2, value) for value in values)
    if entry.kind == "one":
        groups = (np.ones(n),)
    seen = (np.zeros(n, bool),) * 2 if entry.kind == "times" else None
    result = asked(name, Samples(groups, seen))
    low, high = result.interval(0.95)
    signs, orders = 0.5**n, 1 / math.comb(len(groups) * n, n)
    if (signs if entry.kind in (*ALIGNED, "one", "pairwise") else orders) > 0.025 and n > 2:
        assert low <= entry.null <= high
    if n == 2:
        assert (low, high) == entry.bounds or name == "binomial"
    if entry.kind in ("correlation", "times"):  # which constant, or censored, units never tell
        assert (low, high) == entry.bounds and result.p == 1 and result.nothing
