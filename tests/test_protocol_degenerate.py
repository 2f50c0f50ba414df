"""Few units, ties, constants, zeros, clusters of all sizes: an answer, without a warning."""

import math
from typing import Any

import numpy as np
import pytest

from sharpjax.protocol.tests.catalog import TESTS
from sharpjax.protocol.tests.result import Samples
from tests.simulated import few_resamples, named

ALIGNED = ("paired", "many-paired", "correlation")
UNDIRECTED = ("friedman", "kruskal-wallis", "tost")
NAMES = [name for name in sorted(TESTS) if name not in ("identical", "binomial")]
# Those that ask for a difference of values.
COMPARED = [
    n for n in NAMES if not TESTS[n].margin and TESTS[n].kind not in ("times", "correlation")
]


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


def drawn(generator, name):
    seen = clusters = None
    least, most = TESTS[name].groups
    count = int(generator.integers(least, min(most, 5) + 1))
    if TESTS[name].kind == "pairwise":
        n = int(generator.integers(3, 8))
        groups = [awkward(generator, n * n).reshape(n, n) for _ in range(2)]
    elif TESTS[name].kind in ALIGNED:
        n = int(generator.integers(1, 8))
        groups = [awkward(generator, n) for _ in range(count)]
        if TESTS[name].clusters and generator.random() < 0.4:
            clusters = generator.integers(0, 3, n)
    else:
        groups = [awkward(generator, int(generator.integers(1, 8))) for _ in range(count)]
    if TESTS[name].kind == "times":
        groups = [np.abs(group) for group in groups]
        seen = tuple(generator.random(group.size) < 0.6 for group in groups)
    return Samples(tuple(groups), seen, clusters)


def asked(name, samples, alternative, seed=0):
    return named(name)(samples, alternative=alternative, seed=seed, margin=0.3)


def sides(name):
    if name in UNDIRECTED:
        return ("two-sided",)
    return ("greater", "less") if TESTS[name].margin else ("greater", "less", "two-sided")


@pytest.mark.parametrize("name", NAMES)
def test_answers(name):
    generator = np.random.default_rng(0)
    for _ in range(60):
        samples = drawn(generator, name)
        alternative: Any = generator.choice(sides(name))
        with few_resamples():
            result = asked(name, samples, alternative)
            low, high = result.interval(0.95)
        assert 0 <= result.p <= 1 and 0 <= result.opposite_p <= 1
        assert result.p >= result.min_attainable_p * (1 - 1e-9)
        assert result.n == tuple(len(group) for group in samples.groups)
        assert all(isinstance(x, float) for x in (result.effect, low, high, result.p))
        assert math.isnan(low) == math.isnan(high)
        assert bool(result.nothing) or not math.isnan(result.effect)
        if math.isnan(result.effect):
            assert result.p == result.opposite_p == 1 and (low, high) == TESTS[name].bounds
        elif not math.isnan(low):
            slack = 1e-9 * max(1.0, abs(result.effect))
            assert low - slack <= result.effect <= high + slack


def test_every_statistic_is_deterministic():
    """The same samples and seed, the same answer, whatever was computed in between."""
    generator = np.random.default_rng(1)
    for name in NAMES:
        samples, alternative = drawn(generator, name), sides(name)[-1]
        first = asked(name, samples, alternative, seed=7)
        asked(name, drawn(generator, name), alternative, seed=8)
        again = asked(name, samples, alternative, seed=7)
        np.testing.assert_equal(again._replace(interval=0), first._replace(interval=0))
        np.testing.assert_equal(again.interval(0.95), first.interval(0.95))


@pytest.mark.parametrize("size", [2, 3, 6, 20])
@pytest.mark.parametrize("name", COMPARED)
def test_what_differs_by_rounding_alone_does_not_differ(name, size):
    """3 / 10 and .1 + .2, .9 / .3 and .6 / .2: their differences are some 1e-16."""
    kind, (least, _) = TESTS[name].kind, TESTS[name].groups
    values = (0.9, 0.3, 0.6, 0.2) if least == 4 else (0.1 + 0.2, 0.3)
    shape = (size + 1, size + 1) if kind == "pairwise" else (size,)
    samples = Samples(tuple(np.full(shape, value) for value in values))
    for alternative in sides(name):
        result = asked(name, samples, alternative)
        low, high = result.interval(0.9)
        assert result.p == 1 and not (low > TESTS[name].null or high < TESTS[name].null)


@pytest.mark.parametrize("name", [n for n in NAMES if TESTS[n].kind == "correlation"])
def test_what_varies_by_rounding_alone_is_constant(name):
    generator = np.random.default_rng(0)
    least = TESTS[name].groups[0]
    still = np.where(np.arange(9) % 2, 0.1 + 0.2, 0.3)
    result = asked(name, Samples((still, *generator.normal(size=(least - 1, 9)))), "two-sided")
    assert result.p == 1 and result.nothing


def test_four_groups_of_two_say_no_more_than_two():
    """Where denominators are known, a difference of ratios is one of means."""
    ratios = Samples(tuple(np.full(2, value) for value in (0.9, 0.2, 0.7, 0.3)))
    means = Samples((np.full(2, 4.5), np.full(2, 7 / 3)))
    one, other = (
        asked(name, samples, "greater")
        for name, samples in (("difference-of-ratios", ratios), ("mean-difference", means))
    )
    assert one.p == other.p == one.min_attainable_p == pytest.approx(1 / 6)
    assert one.interval(0.9) == (-math.inf, math.inf)
