"""Intervals and tests for effects of rank tests, by inverting a score test under a normal shift.

Cliff's delta and the matched-pairs rank-biserial correlation are 2 theta - 1, with an estimated
probability theta. Their variance depends on theta and vanishes at its ends, where bootstrap and
Wald intervals shrink to a point: five differences of one sign would give [1, 1]. So an end of the
interval is the theta whose own standard deviation s(theta) puts the estimate at
theta_hat = E(theta) +- z s(theta), as Wilson does for a proportion and Newcombe (2006) for the
Mann-Whitney statistic. E and s are exact for normal samples that differ by a shift; for
Mann-Whitney also for every increasing transform of those, because only ranks count. Simulated
coverage of 95 % intervals at 5 to 20 units, over normal, t_3, uniform, exponential and coarsely
rounded data, equal spreads and a ratio of 3: .91 to 1, mostly .93 to .97.
"""

import functools
import math

import numpy as np
from scipy import special

from sharpjax.protocol.tests.exact import Tails
from sharpjax.protocol.tests.question import Question, conclude
from sharpjax.protocol.tests.result import TestResult

# Values of probit(theta); everything is interpolated between them.
_SHIFTS = np.linspace(-9.0, 9.0, 2401)


def _shared(theta: np.ndarray, probit: np.ndarray) -> np.ndarray:
    """Covariance of two comparisons that share a unit: P(Z1 < probit, Z2 < probit) - theta^2.

    The correlation is 1/2, so the first term is theta - 2 T(probit, 1/sqrt(3)), with Owen's T.
    """
    return np.maximum(theta * (1 - theta) - 2 * special.owens_t(probit, 1 / math.sqrt(3)), 0.0)


def _signed_rank_moments(probit: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of R+ / (n (n + 1) / 2) over differences from N(delta, 1).

    With theta = P(D1 + D2 > 0), probit(theta) = sqrt(2) delta and p = P(D > 0) (Lehmann,
    Nonparametrics, appendix A.4; P(D1 > 0, D1 + D2 > 0) = (theta + p^2) / 2).
    """
    theta, p = special.ndtr(probit), special.ndtr(probit / math.sqrt(2))
    pairs, walsh = n * (n - 1) / 2, n * (n + 1) / 2
    variance = (
        n * p * (1 - p)
        + pairs * theta * (1 - theta)
        + 2 * pairs * (n - 2) * _shared(theta, probit)
        + 4 * pairs * ((theta + p * p) / 2 - p * theta)
    )
    return (n * p + pairs * theta) / walsh, np.sqrt(np.maximum(variance, 0.0)) / walsh


def _rank_sum_moments(probit: np.ndarray, n1: int, n2: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of U / (n1 n2) over samples from N(delta, 1) and N(0, 1)."""
    theta = special.ndtr(probit)
    variance = (theta * (1 - theta) + (n1 + n2 - 2) * _shared(theta, probit)) / (n1 * n2)
    return theta, np.sqrt(variance)


@functools.lru_cache(maxsize=128)
def _grid(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    moments = _signed_rank_moments if len(sizes) == 1 else _rank_sum_moments
    return moments(_SHIFTS, *sizes)


def deviation(theta: float, sizes: tuple[int, ...]) -> float:
    """Standard deviation of the estimate; `sizes` is (n,) for signed ranks, (n1, n2) for rank sums.

    >>> round(deviation(0.5, (10, 10)) ** 2, 6) == round(21 / 1200, 6)
    True
    """
    return float(np.interp(special.ndtri(theta), _SHIFTS, _grid(sizes)[1]))


def score_tails(theta: float, null: float, sizes: tuple[int, ...], inflation: float = 1.0) -> Tails:
    """P of an estimate >= `theta`, and of one <= `theta`, under `null`, by the normal score.

    `inflation` multiplies the variance.

    >>> score_tails(0.5, 0.5, (10, 10))
    Tails(greater=0.5, less=0.5)
    """
    probit = special.ndtri(null)
    mean, spread = (float(np.interp(probit, _SHIFTS, column)) for column in _grid(sizes))
    z = (theta - mean) / (spread * math.sqrt(inflation))
    return Tails(float(special.ndtr(-z)), float(special.ndtr(z)))


def answer(
    question: Question,
    theta: float,
    tails: Tails,
    floor: float,
    *,
    sizes: tuple[int, ...],
    inflation: float = 1.0,
    differences: bool = False,
) -> TestResult:
    """The result of a rank test, from the estimate and the exact tails under theta = 1/2.

    Under another null, the tails are those of the score, like the interval.

    Args:
        floor: the smallest tail that the exact test has at these sizes.
        differences: effect, interval and null are 2 theta - 1: P(greater) - P(less).
    """
    null = (1 + question.null) / 2 if differences else question.null
    least = (floor, floor)
    if null != 0.5:
        tails = score_tails(theta, null, sizes, inflation)
        ends = score_tails(1.0, null, sizes).greater, score_tails(0.0, null, sizes).less
        least = max(floor, ends[0]), max(floor, ends[1])

    def scaled(confidence: float) -> tuple[float, float]:
        quantile = float(special.ndtri(0.5 + confidence / 2))
        lower, upper = interval(theta, sizes, quantile, inflation)
        return (2 * lower - 1, 2 * upper - 1) if differences else (lower, upper)

    effect = 2 * theta - 1 if differences else theta
    return conclude(question, effect, scaled, *tails, floor, least)


@functools.lru_cache(maxsize=4096)
def interval(
    theta: float, sizes: tuple[int, ...], quantile: float, inflation: float = 1.0
) -> tuple[float, float]:
    """All theta whose score lies within +- `quantile`.

    The moments are symmetric about theta = 1/2, so the upper end mirrors the lower. Cost: .1 ms,
    and nothing for an estimate seen before (ranks of n units take few values).

    >>> [round(end, 3) for end in interval(1.0, (10, 10), 1.96)]
    [0.806, 1.0]
    """
    mean, spread = _grid(sizes)
    ends = mean + quantile * math.sqrt(inflation) * spread
    return _first_above(ends, theta), 1.0 - _first_above(ends, 1.0 - theta)


def _first_above(ends: np.ndarray, theta: float) -> float:
    """The theta at which `ends` first exceeds the given one, interpolated on the grid."""
    i = int(np.argmax(ends > theta))
    if i == 0:
        return 0.0
    share = (theta - ends[i - 1]) / (ends[i] - ends[i - 1])
    return float(special.ndtr(_SHIFTS[i - 1] + share * (_SHIFTS[i] - _SHIFTS[i - 1])))
