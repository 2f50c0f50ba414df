"""Times with censoring: against scipy and statsmodels, closed forms, levels, nothing dropped."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sharpjax.errors import UserError
from sharpjax.protocol.tests.result import Samples
from tests.simulated import named, rates

stats: Any = scipy.stats  # whose annotations do not know its results' fields

log_rank = named("log-rank")


def censored(first, second, budget=math.inf):
    """Samples of two groups that were watched until `budget`."""
    times = [np.asarray(t, float) for t in (first, second)]
    return Samples(tuple(np.minimum(t, budget) for t in times), tuple(t <= budget for t in times))


def exponential(n=10, budget=1.2, scales=(1.0, 1.0), digits=1):
    """Rounded times, so that there are ties; about 30 % of them censored."""

    def draw(generator):
        first, second = (np.round(s * generator.exponential(size=n) + 0.1, digits) for s in scales)
        return censored(first, second, budget)

    return draw


def as_scipy(samples):
    """The groups as scipy's censored data."""
    return [
        stats.CensoredData(uncensored=time[seen], right=time[~seen])
        for time, seen in zip(samples.groups, samples.seen, strict=True)
    ]


def pooled(samples):
    return np.concatenate(samples.groups), np.concatenate(samples.seen)


# Log-rank.


def scipys_log_rank(samples):
    """scipy's z; a larger one says that events come earlier in the second group."""
    return stats.logrank(*as_scipy(samples)).statistic


@pytest.mark.parametrize("seed", range(5))
def test_log_rank_effect_is_scipys_statistic(seed):
    """Peto's exp(U / V): with z = U / sqrt(V), log effect = z / sqrt(V)."""
    samples = exponential(12, scales=(1.0, 2.0))(np.random.default_rng(seed))
    result = log_rank(samples, alternative="greater")
    log, low, high = np.log([result.effect, *result.interval(0.95)])
    spread = (high - low) / (2 * stats.norm.ppf(0.975))
    assert (low + high) / 2 == pytest.approx(log)
    assert abs(log / spread) == pytest.approx(abs(scipys_log_rank(samples)), rel=1e-10)


def test_log_rank_is_statsmodels():
    duration = pytest.importorskip("statsmodels.duration.survfunc")
    samples = exponential(20, scales=(1.0, 2.0))(np.random.default_rng(3))
    time, seen = pooled(samples)
    squared, p = duration.survdiff(time, seen.astype(int), np.repeat([0, 1], 20))
    result = log_rank(samples, alternative="two-sided")
    log, low, high = np.log([result.effect, *result.interval(0.95)])
    assert (log / (high - low) * 2 * stats.norm.ppf(0.975)) ** 2 == pytest.approx(squared)
    assert result.p == pytest.approx(p, abs=0.03)


def test_log_rank_p_is_exact():
    """Over all choices of the first group: the share whose excess of events is as large."""
    samples = censored([1, 2, 2, 5], [2, 4, 6, 9], 6)
    time, seen = pooled(samples)

    def excess(second):
        total = 0.0
        for t in np.unique(time[seen]):
            risk = time >= t
            events = seen & (time == t)
            total += events[second].sum() - events.sum() * risk[second].sum() / risk.sum()
        return total

    observed = excess([4, 5, 6, 7])
    every = np.array([excess(list(s)) for s in itertools.combinations(range(8), 4)])
    result = log_rank(samples, alternative="less")
    assert result.p == pytest.approx(np.mean(every <= observed + 1e-12))
    assert result.opposite_p == pytest.approx(np.mean(every >= observed - 1e-12))
    assert result.min_attainable_p == pytest.approx(1 / 70)


def test_log_rank_direction():
    """'greater': events come later in the first group, and the effect is above 1."""
    late, early = [20, 30, 40, 50], [1, 2, 3, 4]
    result = log_rank(censored(late, early), alternative="greater")
    assert result.effect > 1 and result.p == pytest.approx(1 / 70) and result.interval(0.95)[0] > 1
    swapped = log_rank(censored(early, late), alternative="less")
    assert swapped.p == result.p and swapped.effect == pytest.approx(1 / result.effect)
    two = log_rank(censored(early, late), alternative="two-sided")
    assert two.p == two.min_attainable_p == pytest.approx(2 / 70)


def test_log_rank_estimates_a_hazard_ratio():
    generator = np.random.default_rng(0)
    logs = [
        math.log(log_rank(exponential(40, scales=(1.5, 1.0))(generator), alternative="less").effect)
        for _ in range(100)
    ]
    assert math.exp(np.mean(logs)) == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("n, least", [(10, 0.03), (4, 0.02)])
def test_log_rank_level(n, least):
    """Under ties and 30 % censoring; at 4 units p has steps of 1/70."""
    found = rates(log_rank, exponential(n), 1.0)
    assert least <= found.level <= 0.07 and least <= found.opposite <= 0.07
    assert found.coverage >= 0.92


def test_log_rank_level_at_another_null():
    found = rates(log_rank, exponential(20, scales=(2.0, 1.0), budget=3.0), 2.0, null=2.0)
    assert 0.02 <= found.level <= 0.08 and 0.02 <= found.opposite <= 0.08
    assert found.coverage >= 0.92


def test_censored_runs_count():
    """Dropping the runs that never came makes the baseline look fast: it must not be so."""
    fast, slow = [100, 120, 150, 180, 200], [160, 170, 5000, 6000, 7000]
    assert log_rank(censored(fast, slow, 1000), alternative="less").p < 0.05


# Degenerate samples.


def test_all_censored():
    result = log_rank(censored([9, 9, 9], [9, 9, 9], 5), alternative="greater")
    assert result.p == 1 and result.n == (3, 3)
    assert math.isnan(result.effect)


def test_one_unit():
    result = log_rank(censored([1], [2]), alternative="less")
    assert result.p >= 0.5 and result.n == (1, 1)


def test_equal_times():
    result = log_rank(censored([3, 3, 3], [3, 3, 3]), alternative="two-sided")
    assert result.p == 1


@pytest.mark.parametrize(
    "samples, said",
    [
        (Samples((np.ones(2), np.ones(2))), "seen"),
        (Samples((np.ones(2), np.ones(2)), (np.ones(2), np.ones(3))), "flags"),
        (Samples((-np.ones(2), np.ones(2)), (np.ones(2), np.ones(2))), "negative"),
        (Samples((np.ones(2),), (np.ones(2),)), "takes 2"),
    ],
)
def test_refusals(samples, said):
    with pytest.raises(UserError, match=said) as error:
        log_rank(samples, alternative="less")
    assert "\n" not in str(error.value)
