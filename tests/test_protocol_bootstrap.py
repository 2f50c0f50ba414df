"""The bootstrap: against scipy and Student's t, its level, and what it makes of bad samples."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests import bootstrap
from sharpjax.protocol.tests.bootstrap import (
    bca,
    interval,
    tails,
    weighted_mean,
)
from sharpjax.protocol.tests.result import Samples
from tests.simulated import level, named, rates

mean, mean_difference = named("mean"), named("mean-difference")
stats: Any = scipy.stats  # whose annotations do not know its results' fields


def normal(*sizes, spread=(1.0, 1.0)):
    scaled = list(zip(sizes, spread, strict=False))
    return lambda g: Samples(tuple(s * g.normal(size=n) for n, s in scaled))


def uncorrected(distribution):
    """Plain BCa, as scipy has it."""
    return distribution._replace(expansion=1.0, degrees_of_freedom=math.inf)


def in_clusters(generator, clusters=10, members=4):
    """Four units of each cluster, half of whose variance they share."""
    shared = generator.normal(size=(clusters, 1))
    own = generator.normal(size=(clusters, members))
    return Samples(((shared + own).ravel(),), clusters=np.repeat(np.arange(clusters), members))


# The engine.


def test_plain_bca_is_scipys():
    """The same resamples, bias, acceleration and quantiles: to the last digits."""
    x = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])  # sums of whole numbers are exact
    ours = bca(weighted_mean(x), [8], seed=5, resamples=2999)
    theirs = stats.bootstrap(
        (x,), np.mean, n_resamples=2999, method="BCa", rng=np.random.default_rng(5)
    )
    np.testing.assert_allclose(ours.replicates, np.sort(theirs.bootstrap_distribution), rtol=1e-14)
    np.testing.assert_allclose(
        interval(uncorrected(ours), 0.95), theirs.confidence_interval, rtol=1e-12
    )


def test_plain_bca_of_two_groups_is_scipys():
    a, b = np.array([3.0, 1.0, 4.0, 1.0]), np.array([5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0, 9.0])
    first, second = weighted_mean(a), weighted_mean(b)
    ours = bca(lambda u, v: first(u) - second(v), [4, 8], seed=2, resamples=2999)
    theirs = stats.bootstrap(
        (a, b),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        n_resamples=2999,
        method="BCa",
        rng=np.random.default_rng(2),
    )
    np.testing.assert_allclose(
        interval(uncorrected(ours), 0.95), theirs.confidence_interval, rtol=1e-12
    )


def test_acceleration_of_a_mean_is_its_skewness():
    """a = skewness / (6 sqrt(n)) (Efron 1987)."""
    x = np.random.default_rng(0).exponential(size=12)
    expected = stats.skew(x) / (6 * math.sqrt(12))
    assert bca(weighted_mean(x), [12]).acceleration == pytest.approx(expected, rel=1e-10)


def test_correction_is_welchs():
    """Degrees of freedom are Welch's, and the bootstrap variance becomes the unbiased one."""
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=6), 3 * generator.normal(size=11)
    first, second = weighted_mean(a), weighted_mean(b)
    ours = bca(lambda u, v: first(u) - second(v), [6, 11])
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert ours.degrees_of_freedom == pytest.approx(welch.df, rel=1e-10)
    unbiased = a.var(ddof=1) / 6 + b.var(ddof=1) / 11
    biased = a.var() / 6 + b.var() / 11
    assert ours.expansion == pytest.approx(math.sqrt(unbiased / biased), rel=1e-10)


@pytest.mark.parametrize("n", [4, 10, 40])
def test_corrected_interval_is_students_for_symmetric_samples(n):
    """Normal scores have no skewness: what is left is Monte Carlo, and discreteness at 4."""
    x = stats.norm.ppf((np.arange(n) + 0.5) / n)
    ours = interval(bca(weighted_mean(x), [n]), 0.95)
    t = stats.ttest_1samp(x, 0).confidence_interval()
    np.testing.assert_allclose(ours, t, rtol={4: 0.25, 10: 0.1, 40: 0.05}[n])


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_p_inverts_the_interval(confidence):
    """At the ends of an interval p is what lies beyond them; the tails beyond replicates too."""
    x = np.random.default_rng(2).exponential(size=9)
    distribution = bca(weighted_mean(x), [9])
    low, high = interval(distribution, confidence)
    half = (1 - confidence) / 2
    assert tails(distribution, low)[0] == pytest.approx(half, abs=1e-4)
    assert tails(distribution, high)[1] == pytest.approx(half, abs=1e-4)


def test_p_inverts_the_interval_where_the_outermost_replicates_tie():
    """Some 14 of 9,999 resamples are all zeros: the tenth, where the normal tail starts, is one."""
    distribution = bca(weighted_mean(np.array([0.0, 0, 1, 1, 1, 1])), [6])
    assert distribution.replicates[9] == 0 < distribution.replicates[30]
    p = tails(distribution, 0.0)[0]
    low, _ = interval(distribution, 1 - 2.02 * p)
    assert low == pytest.approx(0, abs=1e-9)
    assert interval(distribution, 1 - 1.9 * p)[0] < 0


def test_infinite_scores():
    """A null beyond replicates without spread: certain one way, impossible the other."""
    distribution = bca(weighted_mean(np.full(5, 0.3)), [5])
    assert tails(distribution, 0.2) == (0.0, 1.0) and tails(distribution, 0.4) == (1.0, 0.0)


def test_tails_are_monotone():
    x = np.random.default_rng(3).exponential(size=7)
    distribution = bca(weighted_mean(x), [7])
    p = np.array([tails(distribution, null) for null in np.linspace(-3, 6, 400)])
    assert (np.diff(p[:, 0]) >= 0).all() and (np.diff(p[:, 1]) <= 0).all()
    assert p[0, 0] < 1e-3 and p[-1, 1] < 1e-3 and p.min() >= 0 and p.max() <= 1


def test_seeds():
    """Same seed, same interval; another seed, another one."""
    samples = normal(10, 10)(np.random.default_rng(0))
    first, again, other = (
        mean_difference(samples, alternative="greater", seed=seed) for seed in (3, 3, 4)
    )
    assert first.p == again.p and first.interval(0.9) == again.interval(0.9)
    assert first.interval(0.9) != other.interval(0.9) and first.p != other.p
    np.random.seed(5)
    mean_difference(samples, alternative="greater", seed=99)
    drawn = np.random.rand()
    np.random.seed(5)
    assert np.random.rand() == drawn  # the global generator is left alone


def test_kept_resamples_cannot_be_changed():
    def spoil(counts):
        counts[...] = 0
        return counts.sum(-1)

    with pytest.raises(ValueError, match="read-only"):
        bca(lambda counts: spoil(counts) if counts.shape[0] > 1 else counts.sum(-1), [5])


def test_chunks_change_nothing(monkeypatch):
    x = np.random.default_rng(0).normal(size=50)
    whole = bca(weighted_mean(x), [50], resamples=500)
    monkeypatch.setattr(bootstrap, "_CHUNK", 700)
    monkeypatch.setattr(bootstrap, "_CACHED", 0)
    parts = bca(weighted_mean(x), [50], resamples=500)
    np.testing.assert_allclose(whole.replicates, parts.replicates, rtol=1e-12)
    assert whole.acceleration == pytest.approx(parts.acceleration, rel=1e-9)


def test_clusters_are_drawn_whole():
    """As many clusters as units: nothing changes. Doubled units: the interval of single ones."""
    x = np.random.default_rng(0).normal(size=9)
    plain = mean(Samples((x,)), alternative="greater")
    labelled = Samples((x,), clusters=np.array(list("abcdefghi")))
    one_each = mean(labelled, alternative="greater")
    assert one_each.p == plain.p and one_each.interval(0.95) == plain.interval(0.95)
    twice = Samples((np.repeat(x, 2),), clusters=np.repeat(np.arange(9), 2))
    doubled = mean(twice, alternative="greater")
    np.testing.assert_allclose(doubled.interval(0.95), plain.interval(0.95), rtol=1e-9)
    assert doubled.p == pytest.approx(plain.p) and doubled.min_attainable_p == 2.0**-9


def test_clusters_of_several_sizes():
    x, labels = np.arange(6.0), np.array([0, 1, 1, 2, 2, 2])
    seen = []

    def record(counts):
        seen.append(counts)
        return counts @ x / counts.sum(-1)

    bca(record, [6], clusters=labels, resamples=200)
    for counts in seen:
        assert (counts[:, 1] == counts[:, 2]).all() and (counts[:, 3] == counts[:, 5]).all()


# Level and coverage at n = 10.


def test_level_of_mean_difference():
    found = rates(mean_difference, normal(10, 10))
    assert 0.03 <= found.level <= 0.07 and 0.03 <= found.opposite <= 0.07
    assert 0.93 <= found.coverage <= 0.97
    assert 0.03 <= level(mean_difference, normal(10, 10), alternative="two-sided") <= 0.07


def test_level_under_unequal_spread():
    assert 0.03 <= level(mean_difference, normal(10, 10, spread=(1, 4))) <= 0.07


@pytest.mark.parametrize("n", [3, 5, 10])
def test_level_of_a_mean(n):
    """At n = 3 the floor of .125 forbids any rejection."""
    share = level(mean, normal(n))
    assert share == 0 if n == 3 else 0.03 <= share <= 0.07


def test_level_without_correction_is_wrong():
    """Why there is one: plain BCa rejects far too often at n = 10."""

    def plain(samples, *, alternative, null, seed):
        distribution = uncorrected(bca(weighted_mean(samples.groups[0]), [10], seed=seed))
        return mean(samples, alternative=alternative)._replace(p=2 * min(tails(distribution, 0.0)))

    assert level(plain, normal(10), alternative="two-sided", studies=600) > 0.07


def test_level_in_clusters():
    assert 0.03 <= level(mean, in_clusters) <= 0.07
    alone = lambda g: Samples(in_clusters(g).groups)  # noqa: E731
    assert level(mean, alone, studies=300) > 0.1  # the mistake that clusters avoid


# What bad samples become.


@pytest.mark.parametrize(
    "a, b, effect, p",
    [
        ([0.1] * 10, [0.1] * 10, 0.0, 1.0),
        ([0.3] * 10, [0.1] * 10, 0.2, 1 / math.comb(20, 10)),
        ([1e-300] * 4, [0.0] * 4, 1e-300, 1 / 70),
        ([99.9] * 3, [99.9, 99.9, 99.9], 0.0, 1.0),
    ],
)
def test_constant_groups(a, b, effect, p):
    """No spread: p is that of a permutation, and so is the interval: a point, or everything."""
    result = mean_difference(Samples((np.array(a), np.array(b))), alternative="greater")
    assert result.effect == pytest.approx(effect) and result.p == pytest.approx(p, rel=1e-9)
    least = 1 / math.comb(2 * len(a), len(a))
    point = (result.effect, result.effect)
    assert result.interval(0.95) == (point if least <= 0.025 else (-math.inf, math.inf))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_units(n):
    x = np.arange(1.0, n + 1)
    result = mean(Samples((x,)), alternative="greater")
    assert result.effect == x.mean() and result.n == (n,)
    assert result.interval(0.95) == (-math.inf, math.inf)
    if n == 1:
        assert result.p == 1 and "one unit" in result.nothing
    else:
        assert result.p >= result.min_attainable_p == 0.5**n
        low, high = result.interval(1 - 2 * 0.5**n)
        assert -math.inf < low < x.mean() < high < math.inf


def test_min_attainable_p_is_attained():
    """Two-sided, it is twice the one-sided; data far from the null reach it."""
    far = Samples((np.arange(1000.0, 1005.0), np.arange(5.0)))
    one, two = (mean_difference(far, alternative=a) for a in ("greater", "two-sided"))
    assert one.p == one.min_attainable_p == 1 / 252
    assert two.p == two.min_attainable_p == 2 / 252
    assert mean_difference(far, alternative="less").p == 1


def test_statistic_without_a_value():
    """A share of undefined resamples is left out; too many, and nothing is said."""
    x = np.arange(6.0)
    some = bca(lambda c: np.where(c[..., 0] > 3, np.nan, c @ x / 6), [6])
    assert 0 < some.undefined < 0.05 and np.isfinite(interval(some, 0.95)).all()
    most = bca(lambda c: np.where(c[..., 0] > 0, np.nan, c @ x / 6) + 0 * (c @ x), [6])
    assert math.isnan(most.estimate) and tails(most, 0.0) == (1.0, 1.0)
    many = bca(lambda c: np.where((c[..., 0] > 1), np.nan, c @ x / 6), [6])
    assert many.undefined > 0.2
    assert interval(many, 0.95) == (-math.inf, math.inf) and tails(many, 0.0) == (1.0, 1.0)


def test_infinite_replicates_widen_the_interval():
    x = np.arange(1.0, 7.0)
    distribution = bca(lambda c: np.where(c[..., 0] > 2, np.inf, c @ x / 6), [6])
    low, high = interval(distribution, 0.95)
    assert math.isfinite(low) and high == math.inf


def test_large_groups():
    """More units than a matrix of counts is kept for: Student's interval, to Monte Carlo error."""
    x = np.random.default_rng(0).normal(size=1500)
    ours = mean(Samples((x,)), alternative="two-sided")
    t = stats.ttest_1samp(x, 0)
    np.testing.assert_allclose(ours.interval(0.95), t.confidence_interval(), atol=0.003)
    assert ours.p == pytest.approx(t.pvalue, abs=0.02)


@pytest.mark.parametrize(
    "samples, options, said",
    [
        (Samples((np.ones(3),)), {}, "takes 2"),
        (Samples((np.array([1.0, np.nan]), np.ones(2))), {}, "not finite"),
        (Samples((np.ones(3), np.ones(3))), {"alternative": "more"}, "alternative"),
        (Samples((np.ones(3), np.ones(3)), clusters=np.zeros(3)), {}, "clusters"),
    ],
)
def test_refusals(samples, options, said):
    with pytest.raises(UserError, match=said) as error:
        asked: dict[str, Any] = {"alternative": "greater"} | options
        mean_difference(samples, **asked)
    assert "\n" not in str(error.value)


def test_pairs_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="same in all"):
        mean(Samples((np.ones(3), np.ones(4))), alternative="less")
    with pytest.raises(UserError, match="labels"):
        mean(Samples((np.ones(3),), clusters=np.zeros(2)), alternative="less")
