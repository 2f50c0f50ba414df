"""Trends and omnibus tests: against brute force and scipy, levels, what is perfect or constant."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import trend
from sharpjax.protocol.tests.result import Samples
from tests.simulated import level, named, rates

jonckheere, page = named("jonckheere"), named("page")
kruskal_wallis, friedman = named("kruskal-wallis"), named("friedman")
stats: Any = scipy.stats  # whose annotations do not know its results' fields


def normal(*sizes):
    return lambda g: Samples(tuple(g.normal(size=n) for n in sizes))


def tied(*sizes, values=4):
    return lambda g: Samples(tuple(g.integers(0, values, n) * 1.0 for n in sizes))


def falling(k, n):
    """Groups wholly apart, the first the highest."""
    return Samples(tuple(100.0 * (k - g) + np.arange(n) for g in range(k)))


# Jonckheere and Terpstra.


def excess(groups):
    """#(x_g > x_h) - #(x_g < x_h) over pairs of groups."""
    return sum(
        float(np.sign(a[:, None] - b[None, :]).sum()) for a, b in itertools.combinations(groups, 2)
    )


def splits(values, sizes):
    """Every way to fill groups of these sizes."""
    if not sizes:
        yield ()
        return
    for first in itertools.combinations(range(len(values)), sizes[0]):
        rest = np.delete(values, first)
        for others in splits(rest, sizes[1:]):
            yield (values[list(first)], *others)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 1, 2), (3, 4)])
@pytest.mark.parametrize("draw", [normal, tied])
def test_jonckheere_p_is_exact(sizes, draw):
    samples = draw(*sizes)(np.random.default_rng(len(sizes)))
    observed = excess(samples.groups)
    every = np.array([excess(s) for s in splits(np.concatenate(samples.groups), sizes)])
    result = jonckheere(samples, alternative="greater")
    assert result.p == pytest.approx(np.mean(every >= observed), rel=1e-9)
    assert result.opposite_p == pytest.approx(np.mean(every <= observed), rel=1e-9)
    assert result.min_attainable_p == pytest.approx(1 / len(every))


def test_jonckheere_of_two_groups_is_mann_whitney():
    a, b = normal(7, 9)(np.random.default_rng(0)).groups
    ours = jonckheere(Samples((a, b)), alternative="greater")
    theirs = stats.mannwhitneyu(a, b, alternative="greater", method="exact")
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.effect == pytest.approx(2 * theirs.statistic / 63 - 1)


def test_jonckheere_law_is_normal_with_its_known_moments():
    """Mean and variance of J without ties (Hollander and Wolfe, 6.2)."""
    sizes = np.array([5, 8, 3, 6])
    law = trend._jonckheere_law(tuple(int(s) for s in sizes))
    j, total = np.arange(law.size), sizes.sum()
    mean = (total**2 - (sizes**2).sum()) / 4
    variance = (total**2 * (2 * total + 3) - (sizes**2 * (2 * sizes + 3)).sum()) / 72
    assert law.sum() == pytest.approx(1)
    assert law @ j == pytest.approx(mean)
    assert law @ (j - mean) ** 2 == pytest.approx(variance)


def test_jonckheere_shuffled_is_near_the_exact_one():
    """Two neighbouring values of different groups made equal change one pair of 600 by half."""
    groups = normal(10, 10, 10, 10)(np.random.default_rng(4)).groups
    values, label = np.concatenate(groups), np.repeat(np.arange(4), 10)
    order = np.argsort(values)
    place = np.flatnonzero(np.diff(label[order]))[0]
    exact = jonckheere(Samples(groups), alternative="greater").p
    values[order[place]] = values[order[place + 1]]
    shuffled = jonckheere(Samples(tuple(np.split(values, 4))), alternative="greater").p
    assert shuffled != exact and shuffled == pytest.approx(exact, abs=0.015)


def test_jonckheere_of_many_units_is_normal():
    samples = normal(60, 60, 60)(np.random.default_rng(0))
    result = jonckheere(samples, alternative="greater")
    mean, n, total = 3 * 60 * 60 / 2, 60, 180
    variance = (total**2 * (2 * total + 3) - 3 * n**2 * (2 * n + 3)) / 72
    z = ((excess(samples.groups) + 2 * mean) / 2 - mean) / math.sqrt(variance)
    assert result.p == pytest.approx(stats.norm.sf(z), abs=0.005)


def test_jonckheere_direction_and_extremes():
    result = jonckheere(falling(3, 4), alternative="greater")
    assert result.effect == 1 and result.p == result.min_attainable_p
    assert result.p == pytest.approx(1 / 34650) and result.opposite_p == pytest.approx(1)
    low, high = result.interval(0.95)
    assert high == 1 and low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 4)))
    rising = Samples(falling(3, 4).groups[::-1])
    assert jonckheere(rising, alternative="less").p == pytest.approx(1 / 34650)
    assert jonckheere(rising, alternative="greater").effect == -1


@pytest.mark.parametrize("draw, least", [(normal, 0.03), (tied, 0.02)])
def test_jonckheere_level(draw, least):
    found = rates(jonckheere, draw(10, 10, 10), studies=300)
    assert least <= found.level <= 0.07 and least <= found.opposite <= 0.07
    assert found.coverage >= 0.92


def test_jonckheere_at_another_null():
    """Three normal groups .5 apart: delta is 2 Phi(d / sqrt 2) - 1 of each pair."""
    deltas = [2 * stats.norm.cdf(d / math.sqrt(2)) - 1 for d in (0.5, 0.5, 1.0)]

    def draw(generator):
        return Samples(tuple(generator.normal(size=12) - 0.5 * g for g in range(3)))

    truth = float(np.mean(deltas))
    found = rates(jonckheere, draw, truth, null=truth, studies=300)
    assert 0.01 <= found.level <= 0.09 and 0.01 <= found.opposite <= 0.09
    assert found.coverage >= 0.91


# Page.


def matrix(samples):
    return np.stack(samples.groups, axis=1)


@pytest.mark.parametrize("k, n", [(3, 6), (4, 5), (5, 10)])
def test_page_is_scipys(k, n):
    samples = normal(*[n] * k)(np.random.default_rng(k))
    ours = page(samples, alternative="less")  # scipy's alternative: ranks rise
    theirs = stats.page_trend_test(matrix(samples), method="exact")
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    mean = -(12 * theirs.statistic / (n * (k**3 - k)) - 3 * (k + 1) / (k - 1))
    assert ours.effect == pytest.approx(mean)


def test_page_effect_is_the_mean_rank_correlation():
    samples = normal(7, 7, 7, 7)(np.random.default_rng(0))
    each = [stats.spearmanr(row, [4, 3, 2, 1]).statistic for row in matrix(samples)]
    assert page(samples, alternative="less").effect == pytest.approx(np.mean(each))


def test_page_p_is_exact_with_ties():
    """Over all orders within each unit."""
    rows = np.array([[2.0, 2, 1], [3, 1, 1], [1, 2, 2]])
    ranks = stats.rankdata(rows, axis=1)
    observed = (ranks @ [3, 2, 1]).sum()
    within = [[np.array(o) @ [3, 2, 1] for o in itertools.permutations(r)] for r in ranks]
    every = np.array([sum(scores) for scores in itertools.product(*within)])
    result = page(Samples(tuple(rows.T)), alternative="greater")
    assert result.p == pytest.approx(np.mean(every >= observed - 1e-9), rel=1e-9)
    assert result.opposite_p == pytest.approx(np.mean(every <= observed + 1e-9), rel=1e-9)


def test_page_of_many_groups_is_normal():
    samples = normal(*[12] * 10)(np.random.default_rng(1))
    theirs = stats.page_trend_test(matrix(samples), method="asymptotic").pvalue
    assert page(samples, alternative="less").p == pytest.approx(theirs, abs=0.005)


def test_page_direction_and_extremes():
    result = page(falling(4, 3), alternative="greater")
    assert result.effect == 1 and result.p == pytest.approx(24**-3)
    assert result.min_attainable_p == pytest.approx(24**-3)
    assert result.interval(0.95)[1] == 1 and result.interval(0.95)[0] < 0.2
    assert page(falling(4, 3), alternative="two-sided").p == pytest.approx(2 * 24**-3)
    assert page(falling(4, 3), alternative="less").p == pytest.approx(1)


def test_page_attains_its_level():
    """Of four groups of ten: the largest p up to .05 that there is comes as often as it says."""
    law = np.ones(1)
    for _ in range(10):
        law = np.convolve(law, trend._page_law((-3, -1, 1, 3)))
    tails = law[::-1].cumsum()
    attained = tails[tails <= 0.05].max()
    assert attained == pytest.approx(0.0448, abs=1e-4)
    found = rates(page, normal(10, 10, 10, 10), studies=800)
    assert found.level + found.opposite == pytest.approx(2 * attained, abs=0.025)
    assert found.coverage >= 0.93


def test_page_level_with_ties():
    found = rates(page, tied(10, 10, 10, 10), studies=400)
    assert 0.02 <= found.level <= 0.07 and 0.02 <= found.opposite <= 0.07
    assert found.coverage >= 0.92


def test_page_of_clusters_counts_clusters():
    """The same three units in each of ten layers: three units, however many rows."""
    rows = np.random.default_rng(0).normal(size=(3, 4)) + [1.0, 0.5, 0, -0.5]
    many = Samples(tuple(np.tile(rows, (10, 1)).T), clusters=np.tile(np.arange(3), 10))
    assert page(Samples(many.groups), alternative="greater").p < 1e-3
    assert page(many, alternative="greater").p >= 0.125 == 2 * 0.5**4


# Kruskal and Wallis.


@pytest.mark.parametrize("draw", [normal, tied])
def test_kruskal_wallis_effect_is_scipys(draw):
    samples = draw(6, 8, 7)(np.random.default_rng(1))
    h, p = stats.kruskal(*samples.groups)
    result = kruskal_wallis(samples, alternative="two-sided")
    assert result.effect == pytest.approx(h / 20)
    assert result.p == pytest.approx(p, abs=0.03) and math.isnan(result.interval(0.95)[0])


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 1, 2), (2, 3, 3)])
def test_kruskal_wallis_p_is_exact(sizes):
    samples = normal(*sizes)(np.random.default_rng(6))
    observed = stats.kruskal(*samples.groups).statistic
    every = np.array(
        [stats.kruskal(*s).statistic for s in splits(np.concatenate(samples.groups), sizes)]
    )
    result = kruskal_wallis(samples, alternative="two-sided")
    assert result.p == pytest.approx(np.mean(every >= observed - 1e-9), rel=1e-9)
    constant = Samples(tuple(np.full(n, float(g)) for g, n in enumerate(sizes)))
    least = kruskal_wallis(constant, alternative="two-sided")
    assert least.effect == pytest.approx(1) and least.p == pytest.approx(least.min_attainable_p)
    assert least.p <= np.mean(every >= every.max() - 1e-9)


def test_kruskal_wallis_attains_its_smallest_p():
    result = kruskal_wallis(falling(2, 4), alternative="two-sided")
    assert result.p == result.min_attainable_p == pytest.approx(2 / 70)


def test_kruskal_wallis_of_many_units_is_scipys():
    samples = tied(200, 200, 200)(np.random.default_rng(0))
    result = kruskal_wallis(samples, alternative="two-sided")
    assert result.p == pytest.approx(stats.kruskal(*samples.groups).pvalue, rel=1e-9)


@pytest.mark.parametrize("draw", [normal, tied])
def test_kruskal_wallis_level(draw):
    share = level(kruskal_wallis, draw(10, 10, 10), alternative="two-sided", studies=600)
    assert 0.03 <= share <= 0.07


# Friedman.


@pytest.mark.parametrize("draw", [normal, tied])
def test_friedman_effect_is_scipys(draw):
    samples = draw(9, 9, 9, 9)(np.random.default_rng(2))
    squared, p = stats.friedmanchisquare(*samples.groups)
    result = friedman(samples, alternative="two-sided")
    assert result.effect == pytest.approx(squared / (9 * 3))
    assert result.p == pytest.approx(p, abs=0.04)


def test_friedman_p_is_that_of_orders_within_units():
    samples = normal(4, 4, 4)(np.random.default_rng(3))
    ranks = stats.rankdata(matrix(samples), axis=1)
    orders = [[np.array(o) for o in itertools.permutations(r)] for r in ranks]
    spread = [np.var(np.sum(choice, axis=0)) for choice in itertools.product(*orders)]
    expected = np.mean(np.array(spread) >= np.var(ranks.sum(0)) - 1e-9)
    result = friedman(samples, alternative="two-sided")
    assert result.p == pytest.approx(expected, abs=0.015)


def test_friedman_of_agreeing_units():
    result = friedman(falling(3, 5), alternative="two-sided")
    assert result.effect == 1 and result.p < 0.002
    assert result.min_attainable_p == pytest.approx(1 / 6**4)


@pytest.mark.parametrize("draw", [normal, tied])
def test_friedman_level(draw):
    share = level(friedman, draw(10, 10, 10, 10), alternative="two-sided", studies=500)
    assert 0.03 <= share <= 0.07


# Degenerate samples, and refusals.


@pytest.mark.parametrize("test", [jonckheere, page, kruskal_wallis, friedman])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_constant_groups(test, n):
    result = test(Samples((np.full(n, 0.1),) * 3), alternative="two-sided")
    assert result.effect == 0 and result.p == result.opposite_p == 1 and result.n == (n,) * 3


@pytest.mark.parametrize("test", [jonckheere, page, kruskal_wallis, friedman])
def test_one_unit_in_each(test):
    result = test(Samples((np.ones(1), np.full(1, 2.0), np.full(1, 3.0))), alternative="two-sided")
    assert result.p >= result.min_attainable_p >= 1 / 6
    assert str(result.interval(0.95)) in ("(-1.0, 1.0)", "(nan, nan)")


@pytest.mark.parametrize("test", [kruskal_wallis, friedman])
def test_no_direction(test):
    with pytest.raises(UserError, match="jonckheere or page"):
        test(falling(3, 3), alternative="greater")
    with pytest.raises(UserError, match="null"):
        test(falling(3, 3), alternative="two-sided", null=0.1)


@pytest.mark.parametrize("test", [page, friedman])
def test_units_must_be_shared(test):
    with pytest.raises(UserError, match="same in all"):
        test(Samples((np.ones(3), np.ones(4))), alternative="two-sided")


@pytest.mark.parametrize("test", [jonckheere, kruskal_wallis, friedman])
def test_clusters_are_refused(test):
    samples = Samples((np.arange(4.0), np.arange(4.0)), clusters=np.array([0, 0, 1, 1]))
    with pytest.raises(UserError, match="clusters"):
        test(samples, alternative="two-sided")
