"""Exact null distributions of rank tests, with ties, by convolution.

Statistics are sums of whole numbers (doubled midranks), so ties need no approximation: under the
null every pattern of signs, or every choice of the first group, is equally likely, whatever the
numbers are. scipy tabulates only the case without ties.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

# Above so many table entries (about 2 ms) the normal law is used. The last tables are kept.
_MAX_CELLS = 4_000_000


class Tails(NamedTuple):
    """P(statistic >= observed) and P(statistic <= observed) under the null."""

    greater: float
    less: float


def sign_flips(weights: np.ndarray, statistic: int) -> Tails:
    """Tails of S = sum of b_i w_i, where each b_i is 0 or 1 with probability 1/2.

    Exact while n * sum(w) is at most four million (199 ranks without ties); above, normal with
    continuity correction.

    Args:
        weights: whole numbers, none negative.
        statistic: the sum of the weights with a positive sign.

    >>> sign_flips(np.array([2, 4, 6]), 12)
    Tails(greater=0.125, less=1.0)
    """
    weights = np.sort(weights[weights > 0])
    if not weights.size:
        return Tails(1.0, 1.0)
    step = int(np.gcd.reduce(weights))
    scaled = weights // step
    total = int(scaled.sum())
    if total * scaled.size > _MAX_CELLS:
        deviation = math.sqrt(float(np.square(scaled.astype(np.float64)).sum())) / 2
        return _normal(statistic / step, total / 2, deviation, 1 / step)
    above, below = _sign_flip_tails(tuple(scaled.tolist()))
    return Tails(float(above[statistic // step]), float(below[statistic // step]))


def rank_sum(doubled_ranks: np.ndarray, size: int, statistic: int) -> Tails:
    """Tails of the sum of `size` of `doubled_ranks` (midranks times two), drawn at random.

    Exact while (size + 1) * N * (largest sum) is at most four million (two groups of 33 without
    ties); above, normal with continuity correction and the variance of a finite population, which
    holds under ties.

    >>> rank_sum(np.array([2, 4, 6, 8]), 2, 14)
    Tails(greater=0.16666666666666666, less=1.0)
    """
    ordered = np.sort(doubled_ranks)
    n = ordered.size
    base = int(ordered[0])
    step = int(np.gcd.reduce(ordered - base))
    if step == 0:
        return Tails(1.0, 1.0)
    scaled = (ordered - base) // step
    statistic = (statistic - size * base) // step
    if 2 * size > n:  # the sum of the others, whose table is smaller
        less, greater = _rank_sum(scaled, n - size, int(scaled.sum()) - statistic, step)
        return Tails(greater, less)
    return _rank_sum(scaled, size, statistic, step)


def arrangements(sizes: Sequence[int]) -> float:
    """The number of ways in which N units fall into groups of these sizes: N! / prod n_i!

    >>> arrangements([3, 3]), arrangements([3, 3, 3]), arrangements([5000, 5000])
    (20.0, 1680.0, inf)
    """
    log = math.lgamma(sum(sizes) + 1) - sum(math.lgamma(size + 1) for size in sizes)
    if log < 30:
        return float(round(math.exp(log)))
    return math.exp(log) if log < 700 else math.inf


def _rank_sum(ranks: np.ndarray, size: int, statistic: int, step: int) -> Tails:
    n = ranks.size
    largest = int(ranks[n - size :].sum())
    if (size + 1) * n * largest > _MAX_CELLS:
        variance = float(np.var(ranks, ddof=1)) * size * (n - size) / n
        return _normal(statistic, size * float(ranks.mean()), math.sqrt(variance), 1 / step)
    above, below = _rank_sum_tails(tuple(ranks.tolist()), size)
    return Tails(float(above[statistic]), float(below[statistic]))


def mann_whitney_law(first: int, second: int) -> np.ndarray:
    """P(U = u), u from 0 to first * second, without ties.

    >>> mann_whitney_law(2, 1) * 3
    array([1., 1., 1.])
    """
    few, n = min(first, second), first + second
    return _rank_sum_counts(tuple(range(n)), few)[few * (few - 1) // 2 :] / math.comb(n, few)


def _normal(statistic: float, mean: float, deviation: float, continuity: float) -> Tails:
    above = special.ndtr(-(statistic - mean - continuity) / deviation)
    below = special.ndtr((statistic - mean + continuity) / deviation)
    return Tails(float(above), float(below))


@functools.lru_cache(maxsize=64)
def _sign_flip_tails(weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    mass = np.zeros(sum(weights) + 1)
    mass[0] = 1.0
    for weight in weights:
        mass[weight:] += mass[:-weight]
        mass *= 0.5
    return _cumulate(mass, 1.0)


@functools.lru_cache(maxsize=64)
def _rank_sum_tails(ranks: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    return _cumulate(_rank_sum_counts(ranks, size), float(math.comb(len(ranks), size)))


def _rank_sum_counts(ranks: tuple[int, ...], size: int) -> np.ndarray:
    """In how many ways `size` of the ascending ranks have each sum."""
    largest = sum(ranks[len(ranks) - size :])
    counts = np.zeros((size + 1, largest + 1))
    counts[0, 0] = 1.0
    for rank in ranks:
        # numpy evaluates the right-hand side before it adds, so no rank is drawn twice.
        counts[1:, rank:] += counts[:-1, : largest + 1 - rank]
    return counts[size]


def _cumulate(mass: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    """P(>= s) and P(<= s), each summed from its small end, so that small tails keep digits."""
    above = np.minimum(np.cumsum(mass[::-1])[::-1] / total, 1.0)
    below = np.minimum(np.cumsum(mass) / total, 1.0)
    return above, below
