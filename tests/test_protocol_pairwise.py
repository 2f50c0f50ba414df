"""Pairs of models: the jackknife against simulation, and the mistake that it replaces."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests.pairwise import jackknife
from sharpjax.protocol.tests.result import Samples
from tests.simulated import named, rates

pairwise_difference = named("pairwise-difference")
stats: Any = scipy.stats  # whose annotations do not know its results' fields

N = 10
OFF = ~np.eye(N, dtype=bool)


def distances(models):
    """|a_i - a_j|, NaN on the diagonal: its mean is Gini's mean difference, a U-statistic."""
    pairs = np.abs(models[:, None] - models[None, :])
    np.fill_diagonal(pairs, np.nan)
    return pairs


def disagreement(generator, n=N, samples=200, classes=4, quality=0.7):
    """Prediction disagreement of n classifiers, some better than others."""
    right = generator.random((n, samples)) < np.clip(
        quality + 0.1 * generator.normal(size=(n, 1)), 0, 1
    )
    predicted = np.where(right, 0, generator.integers(1, classes, (n, samples)))
    pairs = (predicted[:, None] != predicted[None, :]).mean(-1)
    np.fill_diagonal(pairs, np.nan)
    return pairs


def naive(pairs):
    """The authors' standard error: all ordered pairs as so many observations, ddof 0."""
    values = pairs[~np.eye(len(pairs), dtype=bool)]
    return values.std() / math.sqrt(values.size)


def test_naive_standard_error_is_three_times_too_small():
    """Gini's mean difference of ten models: the jackknife is right, 90 ordered pairs are not."""
    generator = np.random.default_rng(0)
    means, errors, of_pairs = [], [], []
    for _ in range(3000):
        pairs = distances(generator.normal(size=N))
        mean, error = jackknife(pairs)
        means.append(mean)
        errors.append(error)
        of_pairs.append(naive(pairs))
    true = np.std(means)
    assert np.mean(means) == pytest.approx(2 / math.sqrt(math.pi), rel=0.01)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(true, rel=0.1)
    assert np.mean(errors) == pytest.approx(true, rel=0.1)
    assert true / np.mean(of_pairs) == pytest.approx(3.3, abs=0.3)


def test_naive_standard_error_of_disagreement():
    generator = np.random.default_rng(1)
    drawn = [disagreement(generator) for _ in range(400)]
    true = np.std([pairs[OFF].mean() for pairs in drawn])
    assert np.mean([jackknife(p)[1] for p in drawn]) == pytest.approx(true, rel=0.1)
    assert true / np.mean([naive(p) for p in drawn]) > 2.5


def test_variance_is_a_u_statistic():
    """h = (a_i - a_j)^2 / 2: the mean is the sample variance, leaving one out included."""
    a = np.random.default_rng(2).normal(size=8)
    pairs = distances(a) ** 2 / 2
    mean, error = jackknife(pairs)
    assert mean == pytest.approx(a.var(ddof=1))
    without = np.array([np.delete(a, i).var(ddof=1) for i in range(8)])
    expected = math.sqrt(7 / 8 * ((without - without.mean()) ** 2).sum())
    assert error == pytest.approx(expected, rel=1e-12)


def test_mean_of_sums_is_students():
    """h = (a_i + a_j) / 2: the mean and its standard error are those of a, and t is Student's."""
    a, b = np.random.default_rng(3).normal(size=(2, 9))
    groups = tuple((v[:, None] + v[None, :]) / 2 for v in (a, b))
    mean, error = jackknife(groups[0])
    assert mean == pytest.approx(a.mean()) and error == pytest.approx(stats.sem(a))
    result = pairwise_difference(Samples(groups), alternative="greater")
    t = stats.ttest_rel(a, b, alternative="greater")
    assert result.p == pytest.approx(t.pvalue) and result.n == (9, 9)
    two = pairwise_difference(Samples(groups), alternative="two-sided")
    np.testing.assert_allclose(two.interval(0.9), stats.ttest_rel(a, b).confidence_interval(0.9))
    assert two.p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_both_triangles_count():
    """An array that is not symmetric: each ordered pair is one value."""
    pairs = np.random.default_rng(4).normal(size=(5, 5))
    off = ~np.eye(5, dtype=bool)
    assert jackknife(pairs)[0] == pytest.approx(pairs[off].mean())
    without = [np.delete(np.delete(pairs, i, 0), i, 1)[off[:4, :4]].mean() for i in range(5)]
    expected = math.sqrt(4 * np.var(without))
    assert jackknife(pairs)[1] == pytest.approx(expected)


def test_diagonal_is_not_read():
    pairs = distances(np.arange(5.0))
    filled = np.where(np.eye(5, dtype=bool), 1e9, pairs)
    assert jackknife(filled) == jackknife(pairs)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_level(shared):
    """Arms whose seeds have nothing, or much, in common."""

    def draw(generator):
        common, *own = generator.normal(size=(3, N))
        mix = math.sqrt(1 - shared**2)
        return Samples(tuple(distances(shared * common + mix * a) for a in own))

    found = rates(pairwise_difference, draw, studies=2000)
    assert 0.03 <= found.level <= 0.07 and 0.03 <= found.opposite <= 0.07
    assert 0.93 <= found.coverage <= 0.97


def test_level_of_ordered_pairs_is_wrong():
    """What the authors' Wilcoxon test over 90 ordered pairs does under a true null."""
    generator, rejected = np.random.default_rng(5), []
    for _ in range(200):
        first, second = (disagreement(generator)[OFF] for _ in range(2))
        rejected.append(stats.wilcoxon(first, second, alternative="less").pvalue <= 0.05)
    assert np.mean(rejected) > 0.25


def test_degenerate():
    """No spread: p and interval are what the signs of n models could give."""
    low, high = np.full((4, 4), 0.1), np.full((4, 4), 0.3)
    same = pairwise_difference(Samples((low, low.copy())), alternative="less")
    assert same.effect == 0 and same.p == same.opposite_p == 1
    assert same.interval(0.95) == (-math.inf, math.inf) and same.interval(0.8) == (0, 0)
    apart = pairwise_difference(Samples((low, high)), alternative="less")
    assert apart.p == apart.min_attainable_p == 1 / 16 and apart.opposite_p == 1
    shifted = pairwise_difference(Samples((low, high)), alternative="two-sided", null=-0.2)
    assert shifted.p == 1


@pytest.mark.parametrize(
    "groups, said",
    [
        ((np.ones((4, 4)),), "takes 2"),
        ((np.ones((4, 3)), np.ones((4, 4))), "square"),
        ((np.ones(4), np.ones(4)), "square"),
        ((np.ones((2, 2)), np.ones((2, 2))), "three"),
        ((np.ones((4, 4)), np.ones((5, 5))), "as many"),
        ((np.full((4, 4), np.nan), np.ones((4, 4))), "pair"),
    ],
)
def test_refusals(groups, said):
    with pytest.raises(UserError, match=said) as error:
        pairwise_difference(Samples(groups), alternative="less")
    assert "\n" not in str(error.value)
