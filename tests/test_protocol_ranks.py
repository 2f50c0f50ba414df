"""Rank tests: exact distributions against enumeration, score intervals against simulation."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpjax.protocol.tests import catalog, exact, rank_effects
from sharpjax.protocol.tests.result import Samples
from tests.simulated import plain

ALTERNATIVES = ("two-sided", "greater", "less")


def samples(*groups, clusters=None):
    return Samples(tuple(np.asarray(group, np.float64) for group in groups), clusters=clusters)


def wilcoxon(*groups, alternative: Any = "two-sided", clusters=None, **options):
    return catalog.run(
        "wilcoxon", samples(*groups, clusters=clusters), alternative=alternative, **options
    )


def mann_whitney(x, y, alternative: Any = "two-sided", **options):
    return catalog.run("mann-whitney", samples(x, y), alternative=alternative, **options)


def auc(x, y, alternative: Any = "two-sided", clusters=None, **options):
    return catalog.run("auc", samples(x, y, clusters=clusters), alternative=alternative, **options)


# Exact distributions.


@pytest.mark.parametrize("weights", [[1, 2, 3, 4], [3, 3, 6, 8, 10], [5], [2, 2, 2], [0, 0, 3]])
def test_sign_flips_are_all_patterns_counted(weights):
    sums = [sum(chosen) for chosen in itertools.product(*((0, w) for w in weights))]
    for statistic in set(sums):
        greater, less = exact.sign_flips(np.array(weights), statistic)
        assert greater == np.mean(np.array(sums) >= statistic)
        assert less == np.mean(np.array(sums) <= statistic)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("ranks", [[2, 4, 6, 8, 10, 12], [3, 3, 7, 7, 7, 12], [7] * 6])
def test_rank_sums_are_all_choices_counted(ranks, size):
    sums = np.array([sum(chosen) for chosen in itertools.combinations(ranks, size)])
    for statistic in set(sums.tolist()):
        tails = exact.rank_sum(np.array(ranks), size, statistic)
        assert tails == pytest.approx((np.mean(sums >= statistic), np.mean(sums <= statistic)))


def test_the_normal_law_takes_over_where_the_exact_one_would_say_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    d = rng.integers(-20, 24, 80).astype(float)
    x, y = rng.integers(0, 40, 24).astype(float), rng.integers(4, 44, 24).astype(float)
    results = wilcoxon(d).p, mann_whitney(x, y).p
    monkeypatch.setattr(exact, "_MAX_CELLS", 0)
    assert wilcoxon(d).p == pytest.approx(results[0], rel=0.05)
    assert mann_whitney(x, y).p == pytest.approx(results[1], rel=0.05)
    assert stats.mannwhitneyu(x, y, method="asymptotic").pvalue == pytest.approx(
        mann_whitney(x, y).p, rel=1e-9
    )
    untied = rng.normal(0.2, 1, 60)
    oracle: Any = stats.wilcoxon(untied, method="asymptotic", correction=True)
    assert wilcoxon(untied).p == pytest.approx(oracle.pvalue, rel=1e-9)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [1, 2, 5, 10, 40])
def test_wilcoxon_without_ties_is_as_scipy_has_it(n, alternative):
    x, y = np.random.default_rng(n).normal(0.3, 1, (2, n))
    oracle: Any = stats.wilcoxon(x, y, alternative=alternative, method="exact")
    assert wilcoxon(x, y, alternative=alternative).p == pytest.approx(oracle.pvalue, rel=1e-12)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("sizes", [(1, 4), (3, 3), (10, 10), (5, 12), (12, 5)])
def test_mann_whitney_without_ties_is_as_scipy_has_it(sizes, alternative):
    rng = np.random.default_rng(sum(sizes))
    x, y = rng.normal(0.4, 1, sizes[0]), rng.normal(0, 1, sizes[1])
    oracle = stats.mannwhitneyu(x, y, alternative=alternative, method="exact")
    result = mann_whitney(x, y, alternative)
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-12)
    assert result.effect == pytest.approx(2 * oracle.statistic / (sizes[0] * sizes[1]) - 1)


def test_ties_are_exact_by_enumeration_of_midranks():
    rng = np.random.default_rng(1)
    for _ in range(10):
        d = rng.integers(-3, 5, 9).astype(float)
        kept = d[d != 0]
        ranks = stats.rankdata(np.abs(kept))
        signs = np.array(list(itertools.product((0, 1), repeat=kept.size)))
        observed = ranks[kept > 0].sum()
        assert wilcoxon(d, alternative="greater").p == np.mean(signs @ ranks >= observed)
        x, y = rng.integers(0, 4, 5).astype(float), rng.integers(0, 5, 4).astype(float)
        pooled = stats.rankdata(np.concatenate((x, y)))
        sums = np.array([sum(c) for c in itertools.combinations(pooled, 5)])
        share = np.mean(sums >= pooled[:5].sum())
        assert mann_whitney(x, y, "greater").p == pytest.approx(share, abs=1e-15)


# Effects.


def test_rank_biserial_of_a_published_example():
    # pingouin's documentation of `wilcoxon`: RBC -0.378788.
    x = [20, 22, 19, 20, 22, 18, 24, 20, 19, 24, 26, 13]
    y = [38, 37, 33, 29, 14, 12, 20, 22, 17, 25, 26, 16]
    assert wilcoxon(x, y).effect == pytest.approx(-0.378788, abs=5e-7)


def test_effects_are_shares_of_comparisons():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 9, 8).astype(float), rng.integers(0, 9, 11).astype(float)
    comparisons = np.sign(x[:, None] - y)
    assert mann_whitney(x, y).effect == pytest.approx(comparisons.mean(), abs=1e-15)
    assert auc(x, y).effect == pytest.approx((1 + comparisons.mean()) / 2, abs=1e-15)
    d = rng.normal(0.3, 1, 9)
    walsh = (d[:, None] + d)[np.triu_indices(9)]
    assert wilcoxon(d).effect == pytest.approx(np.sign(walsh).mean(), abs=1e-15)


def test_differences_that_differ_by_rounding_tie():
    x, y = np.array([0.3, 0.2, 0.8, 0.5]), np.array([0.2, 0.1, 0.9, 0.4])
    assert len(set(np.abs(x - y))) > 1
    ties = wilcoxon([1.0, 1.0, -1.0, 1.0], [0.0] * 4)
    assert plain(wilcoxon(x, y)) == plain(ties)
    equal = wilcoxon([0.1 + 0.2, 0.7], [0.3, 0.7])
    assert (equal.effect, equal.p) == (0.0, 1.0)


@pytest.mark.parametrize("test", [wilcoxon, mann_whitney, auc])
def test_what_leaves_the_result_alone(test):
    x, y = np.random.default_rng(3).normal(0.2, 1, (2, 9))
    result = test(x, y, alternative="greater")
    mirrored = test(y, x, alternative="greater")
    centre = 1.0 if test is auc else 0.0  # of effect and mirrored effect together
    assert (result.p, result.opposite_p) == pytest.approx((mirrored.opposite_p, mirrored.p))
    assert result.effect + mirrored.effect == pytest.approx(centre)
    assert result.interval(0.95)[0] + mirrored.interval(0.95)[1] == pytest.approx(centre)
    swapped = plain(result)._replace(p=result.opposite_p, opposite_p=result.p)
    assert plain(test(x, y, alternative="less")) == swapped
    assert plain(test(4 * x + 8, 4 * y + 8, alternative="greater")) == plain(result)
    if test is not wilcoxon:  # ranks of all values survive every increasing transform
        assert plain(test(np.exp(x), np.exp(y), alternative="greater")) == plain(result)


# Floors, limits, nulls.


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_the_smallest_p_is_reached_by_differences_of_one_sign(n):
    d = np.arange(1.0, n + 1)
    for alternative, floor in (("greater", 2.0**-n), ("two-sided", 2.0 ** (1 - n))):
        result = wilcoxon(d, alternative=alternative)
        assert result.p == result.min_attainable_p == floor
    assert wilcoxon(-d, alternative="less").p == 2.0**-n
    assert wilcoxon(d, alternative="less").p == 1.0


def test_five_pairs_and_three_against_three_can_never_reject():
    assert wilcoxon(np.arange(1.0, 6)).min_attainable_p == 0.0625
    assert mann_whitney([4, 5, 6], [1, 2, 3]).min_attainable_p == pytest.approx(0.1)
    assert mann_whitney([5, 6, 7, 8], [1, 2, 3, 4]).min_attainable_p == pytest.approx(2 / 70)
    assert mann_whitney([5, 6, 7, 8], [1, 2, 3, 4]).p == pytest.approx(2 / 70)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_nothing_but_equal_values_says_nothing(alternative):
    zeros = wilcoxon([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], alternative=alternative)
    assert (zeros.effect, zeros.interval(0.95)) == (0.0, (-1.0, 1.0))
    assert (zeros.p, zeros.opposite_p) == (1.0, 1.0)
    ties = mann_whitney([2.0, 2.0, 2.0], [2.0, 2.0], alternative)
    assert (ties.effect, ties.p, ties.opposite_p) == (0.0, 1.0, 1.0)
    assert ties.interval(0.95)[0] < 0 < ties.interval(0.95)[1]
    single = mann_whitney([1.0], [2.0], alternative)
    assert single.min_attainable_p == (1.0 if alternative == "two-sided" else 0.5)
    assert single.p == (0.5 if alternative == "less" else 1.0)


@pytest.mark.parametrize("n", [3, 5, 6, 8, 12])
def test_an_interval_excludes_the_null_only_where_the_test_rejects(n):
    rng = np.random.default_rng(n)
    for shift in np.linspace(0, 2, 30):
        x, y = rng.normal(shift, 1, n), rng.normal(0, 1, n)
        for result in (wilcoxon(x, y), mann_whitney(x, y)):
            low, high = result.interval(0.95)
            assert -1 <= low <= result.effect <= high <= 1
            if result.p > 0.05:
                assert low <= 0 <= high


def test_complete_separation_still_has_an_interval_with_a_width():
    for result in (wilcoxon(np.arange(1.0, 11)), mann_whitney(np.arange(10) + 20, np.arange(10))):
        assert result.effect == result.interval(0.95)[1] == 1.0
        assert 0.2 < result.interval(0.95)[0] < 0.8


def test_moments_under_the_null_are_the_textbook_ones():
    for n in (1, 4, 10):
        mean, spread = rank_effects._signed_rank_moments(np.zeros(1), n)
        textbook = n * (n + 1) * (2 * n + 1) / 24 / (n * (n + 1) / 2) ** 2
        assert (mean[0], spread[0] ** 2) == pytest.approx((0.5, textbook), rel=1e-12)
    mean, spread = rank_effects._rank_sum_moments(np.zeros(1), 4, 9)
    assert (mean[0], spread[0] ** 2) == pytest.approx((0.5, 14 / (12 * 36)), rel=1e-12)


@pytest.mark.parametrize("delta", [0.4, 1.2])
def test_moments_under_a_shift_are_those_of_simulated_normal_samples(delta):
    n, runs = 7, 40_000
    rng = np.random.default_rng(4)
    d = rng.normal(delta, 1, (runs, n))
    ranks = np.argsort(np.argsort(np.abs(d), axis=1), axis=1) + 1
    share = np.where(d > 0, ranks, 0).sum(1) / (n * (n + 1) / 2)
    mean, spread = rank_effects._signed_rank_moments(np.array([math.sqrt(2) * delta]), n)
    assert share.mean() == pytest.approx(mean[0], abs=4 * spread[0] / math.sqrt(runs))
    assert share.std() == pytest.approx(spread[0], rel=0.03)
    x, y = rng.normal(delta, 1, (runs, n)), rng.normal(0, 1, (runs, n))
    wins = (x[:, :, None] > y[:, None]).mean((1, 2))
    mean, spread = rank_effects._rank_sum_moments(np.array([delta / math.sqrt(2)]), n, n)
    assert wins.mean() == pytest.approx(mean[0], abs=4 * spread[0] / math.sqrt(runs))
    assert wins.std() == pytest.approx(spread[0], rel=0.03)


def test_the_ends_of_an_interval_are_where_the_score_is_the_quantile():
    for sizes in ((9,), (8, 12)):
        low, high = rank_effects.interval(0.7, sizes, 1.96, 1.3)
        tails = stats.norm.sf(1.96)
        at_low = rank_effects.score_tails(0.7, low, sizes, 1.3)
        at_high = rank_effects.score_tails(0.7, high, sizes, 1.3)
        assert (at_low.greater, at_high.less) == pytest.approx((tails, tails), rel=2e-4)


def test_another_null_is_tested_by_the_score_that_made_the_interval():
    x, y = np.random.default_rng(5).normal(0.5, 1, (2, 12))
    for test in (wilcoxon, mann_whitney, auc):
        result = test(x, y, alternative="greater")
        low, high = result.interval(0.95)
        at = test(x, y, alternative="greater", null=low)
        assert at.p == pytest.approx(0.025, rel=0.01)
        assert test(x, y, alternative="less", null=high).p == pytest.approx(0.025, rel=0.01)
        assert 0 < at.min_attainable_p < at.p


# Simulated error and coverage.


def rate(hits, runs):
    """A share of `runs`, and four standard errors of it."""
    share = np.mean(hits)
    return share, 4 * math.sqrt(share * (1 - share) / runs)


def test_error_of_the_first_kind_is_the_level_that_discrete_statistics_allow():
    rng, runs, n = np.random.default_rng(6), 4_000, 10
    x, y = rng.normal(size=(2, runs, n))
    share, error = rate([wilcoxon(a, b).p <= 0.05 for a, b in zip(x, y, strict=True)], runs)
    assert 0.03 < share < 0.07
    assert share == pytest.approx(2 * 25 / 1024, abs=error)  # signed-rank sums up to 8
    share, error = rate([mann_whitney(a, b).p <= 0.05 for a, b in zip(x, y, strict=True)], runs)
    assert 0.03 < share < 0.07
    assert share == pytest.approx(2 * 4000 / 184_756, abs=0.001 + error)  # U up to 23


def test_error_of_the_first_kind_under_ties_is_at_most_alpha():
    rng, runs, n = np.random.default_rng(7), 2_000, 10
    x, y = rng.integers(0, 4, (2, runs, n)).astype(float)
    for test in (wilcoxon, mann_whitney):
        for alternative in ("two-sided", "greater"):
            hits = [
                test(a, b, alternative=alternative).p <= 0.05 for a, b in zip(x, y, strict=True)
            ]
            assert 0.02 < np.mean(hits) < 0.065


POPULATIONS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size),
    "skewed": lambda rng, size: rng.exponential(size=size) - math.log(2),
    "rounded": lambda rng, size: np.rint(2 * rng.normal(size=size)) / 2,
}


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_cover(population, shift):
    rng, draw, runs = np.random.default_rng(8), POPULATIONS[population], 1_000
    large = draw(rng, (2, 400_000))
    truth = (
        np.sign(large[0] + large[1] + 2 * shift).mean(),
        np.sign(large[0] + shift - large[1]).mean(),
    )
    covered = np.zeros(2)
    for x, y in zip(draw(rng, (runs, 10)) + shift, draw(rng, (runs, 10)), strict=True):
        intervals = wilcoxon(x).interval(0.95), mann_whitney(x, y).interval(0.95)
        covered += [low <= t <= high for (low, high), t in zip(intervals, truth, strict=True)]
    if population == "rounded":
        covered = covered[1:]  # zeros left out make another population for Wilcoxon
    assert (covered / runs > 0.92).all()
    assert (covered / runs < 0.995).all()


def test_mann_whitney_covers_where_the_spreads_differ():
    # The model of equal spreads alone covers in .90 of these.
    rng, runs = np.random.default_rng(9), 2_000
    hits = []
    for _ in range(runs):
        low, high = mann_whitney(rng.normal(0, 3, 8), rng.normal(0, 1, 16)).interval(0.95)
        hits.append(low <= 0 <= high)
    assert 0.935 < np.mean(hits) < 0.99


# Clusters.


def clustered(rng, seeds, layers, share):
    """Values whose correlation within a seed is `share`."""
    common = rng.normal(size=(seeds, 1)) * math.sqrt(share)
    return (common + rng.normal(size=(seeds, layers)) * math.sqrt(1 - share)).ravel()


def test_clusters_change_sign_as_a_whole():
    d = np.array([1.0, 2.0, 3.0, -0.5, 4.0, 5.0])
    labels = np.array(["b", "b", "a", "a", "c", "c"])
    result = wilcoxon(d, alternative="greater", clusters=labels)
    signed = np.array([2 + 3, 4 - 1, 5 + 6])  # b, a, c
    flips = np.array(list(itertools.product((-1, 1), repeat=3))) @ np.abs(signed)
    assert result.p == np.mean(flips >= signed.sum()) == result.min_attainable_p == 1 / 8
    assert result.n == (6,)
    assert plain(wilcoxon(d, clusters=np.arange(6))) == plain(wilcoxon(d))


def test_layers_of_one_seed_are_not_as_many_seeds():
    rng, runs, layers = np.random.default_rng(10), 800, 5
    seeds = np.repeat(np.arange(10), layers)
    truth = 2 * stats.norm.cdf(0.7 * math.sqrt(2)) - 1
    rejected, naive, covered = [], [], []
    for _ in range(runs):
        d = clustered(rng, 10, layers, 0.8)
        low, high = wilcoxon(d + 0.7, clusters=seeds).interval(0.95)
        covered.append(low <= truth <= high)
        rejected.append(wilcoxon(d, clusters=seeds).p <= 0.05)
        naive.append(wilcoxon(d).p <= 0.05)
    assert np.mean(naive) > 0.25
    assert 0.025 < np.mean(rejected) < 0.07
    assert 0.92 < np.mean(covered) < 0.995


def test_auc_of_layers_counts_seeds():
    rng, runs, layers = np.random.default_rng(11), 600, 4
    seeds = np.repeat(np.arange(12), layers)
    truth = stats.norm.cdf(0.8 / math.sqrt(2))
    hits, naive, rejected = [], [], []
    for _ in range(runs):
        x, y = clustered(rng, 12, layers, 0.8) + 0.8, clustered(rng, 12, layers, 0.8)
        labels = np.concatenate((seeds, seeds + 100))  # other seeds in the second group
        low, high = auc(x, y, clusters=labels).interval(0.95)
        hits.append(low <= truth <= high)
        low, high = auc(x, y).interval(0.95)
        naive.append(low <= truth <= high)
        rejected.append(auc(x - 0.8, y, clusters=labels).p <= 0.05)
    assert np.mean(naive) < 0.85
    assert 0.92 < np.mean(hits) < 0.99
    assert 0.02 < np.mean(rejected) < 0.075


def test_auc_with_clusters_at_its_limits():
    x, y = np.arange(6.0) + 10, np.arange(6.0)
    labels = np.repeat([0, 1, 2], 2)
    apart = auc(x, y, "greater", clusters=labels)
    twice = auc(x, y, "greater", clusters=np.concatenate((labels, labels)))
    assert plain(apart) == plain(twice)
    assert apart.effect == 1.0 and 0 < apart.interval(0.95)[0] < 0.8
    assert apart.p == pytest.approx(apart.min_attainable_p) and 0.01 < apart.p < 0.1
    one = auc(x, y, clusters=np.zeros(6))
    assert (one.p, one.interval(0.95), one.min_attainable_p) == (1.0, (0.0, 1.0), 1.0)
    assert plain(auc(x, y, clusters=np.arange(12))) == plain(auc(x, y))
