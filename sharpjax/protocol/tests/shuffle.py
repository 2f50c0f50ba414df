"""Permutation p values of statistics that must be computed for each order of the units.

If there are few orders, all are taken and p is exact. Otherwise 9,999 random ones and the observed
one are taken (Phipson and Smyth, Permutation p-values should never be zero, 2010).
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

NUM_ORDERS = 9_999
_ALL = 8  # up to so many units, all n! orders (40,320) are taken
_KEPT = 2**21
_EXACT_KENDALL = 170
_SHUFFLED_KENDALL = 100


class Orders(NamedTuple):
    """Orders of n units, [orders, n], and whether these are all of them."""

    index: np.ndarray
    exact: bool


def orders(num_units: int, seed: int) -> Orders:
    """All orders, or random ones; the same seed gives the same.

    >>> orders(3, 0).index.shape, orders(20, 0).index.shape
    ((6, 3), (9999, 20))
    """
    if num_units <= _ALL:
        return _all(num_units)
    if NUM_ORDERS * num_units > _KEPT:
        return _random(num_units, seed, NUM_ORDERS)
    return _kept(num_units, seed, NUM_ORDERS)


def tails(statistics: np.ndarray, observed: float, exact: bool) -> tuple[float, float]:
    """The share of orders whose statistic is at least, and at most, the observed one.

    Statistics that differ only by rounding are equal.

    >>> tails(np.array([1.0, 2.0, 3.0, 4.0]), 4.0, exact=True)
    (0.25, 1.0)
    >>> tails(np.array([1.0, 2.0, 3.0]), 4.0, exact=False)
    (0.25, 1.0)
    """
    rounding = 1e-12 * max(abs(observed), float(np.abs(statistics).max(initial=0.0)))
    own = 0 if exact else 1
    total = statistics.size + own
    above = int(np.count_nonzero(statistics >= observed - rounding)) + own
    below = int(np.count_nonzero(statistics <= observed + rounding)) + own
    return above / total, below / total


def of_first(scores: np.ndarray, size: int, seed: int) -> tuple[float, float]:
    """Tails of the sum of the first `size` scores if chance decides which ones are first.

    Exact if there are at most 40,320 choices; by random orders otherwise.

    >>> of_first(np.array([4.0, 3.0, 2.0, 1.0]), 2, 0)[0] * 6
    1.0
    """
    index, exact = choices(scores.size, size, seed)
    return tails(scores[index].sum(1), float(scores[:size].sum()), exact)


def choices(num_units: int, size: int, seed: int) -> Orders:
    """Which of the units are the first `size`: all choices if at most 40,320, else random ones."""
    if math.comb(num_units, size) <= math.factorial(_ALL):
        return Orders(_choices(num_units, size), True)
    index, exact = orders(num_units, seed)
    return Orders(index[:, :size], exact)


def of_pearson(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Tails of Pearson's r, positive and negative, for independent units."""
    return _shuffled(x - x.mean(), y - y.mean(), seed)


def of_spearman(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Tails of Spearman's rho, with or without ties.

    >>> of_spearman(np.arange(4.0), np.arange(4.0), 0)[0] * 24
    1.0
    """
    # Twice the ranks, centred: whole numbers, so that equal sums are equal.
    x, y = (2 * stats.rankdata(v) - (v.size + 1) for v in (x, y))
    return _shuffled(x, y, seed)


def _shuffled(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    index, exact = orders(x.size, seed)
    return tails(y[index] @ x, float(y @ x), exact)


def of_kendall(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Tails of Kendall's tau.

    Without ties, scipy counts orders exactly up to 170 units. With ties, they are shuffled up to
    100 units. Beyond, tau is normal with the variance corrected for ties.

    >>> of_kendall(np.arange(4.0), np.arange(4.0), 0)[0] * 24
    1.0
    """
    size = x.size
    tied = min(np.unique(x).size, np.unique(y).size) < size
    if not tied or size > _SHUFFLED_KENDALL:
        method = "exact" if not tied and size <= _EXACT_KENDALL else "asymptotic"
        greater, less = (
            float(np.asarray(stats.kendalltau(x, y, method=method, alternative=side))[1])
            for side in ("greater", "less")
        )
        return greater, less
    ranks = stats.rankdata(y, method="dense").astype(np.int16)
    index, exact = orders(size, seed)
    sign_x = np.sign(x[:, None] - x[None, :]).astype(np.int16)

    def concordance(shuffled: np.ndarray) -> np.ndarray:
        total = np.zeros(len(shuffled), np.int64)
        for first in range(size - 1):
            signs = np.sign(shuffled[:, first, None] - shuffled[:, first + 1 :])
            total += signs @ sign_x[first, first + 1 :]
        return total

    return tails(concordance(ranks[index]), float(concordance(ranks[None])[0]), exact)


def least(num_distinct: float) -> float:
    """The smallest share that `tails` can give if the statistic distinguishes so many orders.

    >>> least(120.0), least(1e9)
    (0.008333333333333333, 0.0001)
    """
    return max(1 / num_distinct, 1 / (NUM_ORDERS + 1))


@functools.lru_cache(maxsize=_ALL + 1)
def _all(num_units: int) -> Orders:
    index = np.array(list(itertools.permutations(range(num_units))), np.intp)
    return Orders(index.reshape(math.factorial(num_units), num_units), True)


@functools.lru_cache(maxsize=8)
def _choices(num_units: int, size: int) -> np.ndarray:
    chosen = list(itertools.combinations(range(num_units), size))
    return np.array(chosen, np.intp).reshape(len(chosen), size)


@functools.lru_cache(maxsize=4)
def _kept(num_units: int, seed: int, number: int) -> Orders:
    return _random(num_units, seed, number)


def _random(num_units: int, seed: int, number: int) -> Orders:
    index = np.tile(np.arange(num_units), (number, 1))
    return Orders(np.random.default_rng(seed).permuted(index, axis=1), False)
