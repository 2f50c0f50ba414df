"""Test of one proportion."""

import math

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.tests.question import Question, conclude
from sharpjax.protocol.tests.result import TestResult


def binomial(question: Question) -> TestResult:
    """Exact binomial test of one group of zeros and ones, with Wilson's interval.

    The effect is the share of ones. p is exact: the binomial tail; two-sided, the probability of
    all counts no likelier than the one seen (as scipy and R have it). The null is 0.5 unless given.

    The interval is `wilson`'s, of near nominal coverage; it is not the exact test inverted, so
    that near its edge the two may disagree.

    Raises:
        UserError: values other than 0 and 1.
    """
    (values,), null = question.groups, question.null
    odd = values[(values != 0) & (values != 1)]
    if odd.size:
        raise UserError(f"a value is {odd[0]:g}; give 1 for a success and 0 for none.")
    n, k = values.size, int(values.sum())
    greater = float(special.bdtrc(k - 1, n, null)) if k else 1.0
    less = float(special.bdtr(k, n, null))
    floors = (null**n, (1 - null) ** n)
    result = conclude(question, k / n, lambda c: wilson(k, n, c), greater, less, floors)
    if question.alternative != "two-sided":
        return result
    mass = _mass(n, null)
    p = _no_likelier(mass, k)
    floor = min(_no_likelier(mass, 0), _no_likelier(mass, n))
    return result._replace(p=p, opposite_p=p, min_attainable_p=floor)


def _mass(n: int, share: float) -> np.ndarray:
    """Binomial probabilities of 0 to n."""
    k = np.arange(n + 1)
    ways = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return np.exp(ways + special.xlogy(k, share) + special.xlog1py(n - k, -share))


def _no_likelier(mass: np.ndarray, k: int) -> float:
    """Probability of all counts no likelier than k; 1e-7 keeps mirrored counts equal."""
    return min(1.0, float(mass[mass <= mass[k] * (1 + 1e-7)].sum()))


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): all p with (k/n - p)^2 <= z^2 p (1 - p) / n.

    >>> [round(end, 4) for end in wilson(0, 10)]
    [0.0, 0.2775]
    """
    z = -float(special.ndtri((1 - confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave 1e-17.
    lower = 0.0 if successes == 0 else centre - half
    upper = 1.0 if successes == n else centre + half
    return lower, upper
