"""Correlations of two quantities with others held fixed: groups x, y, then one or more covariates.

Does the stable rank of a layer say anything about its accuracy that its size does not? Both x and y
are predicted from the covariates by the line of least squares (with an intercept), and the
residuals are correlated:

    partial-pearson     Pearson's r of the residuals
    partial-spearman    the same of mid-ranks: x, y and covariates are ranked first
    partial-kendall     Kendall's tau-b of the residuals of mid-ranks

For one covariate the first is (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)), and the second
is that of Spearman's rho. **Kendall's own formula (Biometrika 30, 1938) puts tau in place of r. It
is not used here**, because it is not 0 if x and y have z in common and nothing else: for x = z + e
and y = z + e', all normal with variance 1, it is (1/3 - 1/4) / (3/4) = 1/9, and a large enough
sample calls that an association. Residuals of ranks leave about .01 (Spearman's formula: .0118).

Only the linear effect of a covariate (of its values, or of its ranks) is taken out.

**Independent units.** n units with k linearly independent covariates count as n - k units without
covariates. p against no association is from t with n - 2 - k degrees of freedom, exact for Pearson
of normal samples; for Kendall, tau is normal with variance 2 (2m + 5) / (9 m (m - 1)), m = n - k.
No p is below 1 / m!. The interval, and p against other nulls, are from Fisher's z with the
variances of `protocol.tests.correlation`, with n - k in place of n. **Clusters** (layers of a seed)
are drawn with all their units, and ranks and lines are found again in each resample. Interval and p
are the bootstrap's, as for correlations without covariates, and the claim is about new seeds.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from sharpjax.protocol.tests import association, bootstrap
from sharpjax.protocol.tests.bootstrap import Statistic
from sharpjax.protocol.tests.question import Question, conclude, nothing_known
from sharpjax.protocol.tests.result import TestResult

NOTHING_LEFT = "a quantity does not vary, or follows from the covariates"
_DETERMINED = 1e-12  # share of the variance: with less left, a quantity follows from the others
_CONSTANT = 1e-26  # share of the largest square: what rounding leaves of equal values
_RANK = 1e-10  # share of the largest eigenvalue of the correlations of the covariates
_TIED = 1e-9  # share of the largest residual
_CHUNK = 2**20  # numbers held at a time


class _Coefficient(NamedTuple):
    """One coefficient of residuals.

    Attributes:
        of: from residuals of x and of y, and counts, all [r, n], to [r].
        ranked: whether ranks are predicted instead of values.
        lost: Fisher's z has the variance of n - k - `lost` units.
        variance: from the coefficient to that variance times their number.
        score: from coefficient, n - k to (degrees of freedom of t, t) under no association.
        step: from n - k to the distance between the two largest values.
    """

    of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    ranked: bool
    lost: int
    variance: Callable[[float], float]
    score: Callable[[float, int], tuple[float, float]]
    step: Callable[[int], float]


def partial_pearson(question: Question) -> TestResult:
    """Pearson's correlation of the first two groups, the others held fixed; null 0."""
    return _test(question, _PEARSON)


def partial_spearman(question: Question) -> TestResult:
    """Spearman's rank correlation of the first two groups, the others held fixed; null 0."""
    return _test(question, _SPEARMAN)


def partial_kendall(question: Question) -> TestResult:
    """Kendall's tau-b of rank residuals of the first two groups, the others held fixed; null 0."""
    return _test(question, _KENDALL)


def _test(question: Question, coefficient: _Coefficient) -> TestResult:
    statistic = _statistic(question.groups, coefficient)
    if question.clusters is not None:
        found = association.resampled(question, statistic, bootstrap.units_floor(question.units))
        return found._replace(nothing=NOTHING_LEFT) if _is_constant(found) else found
    n, held = question.sizes[0], _rank(question.groups[2:], coefficient)
    known = n - held
    if known < 3:
        covariates = f"{held} covariate{'s' * (held != 1)}"
        return nothing_known(question, math.nan, f"{n} units are too few to hold {covariates}")
    effect = float(statistic(np.ones(n)))
    floor = 1 / math.factorial(min(known, 100))
    if math.isnan(effect):
        return nothing_known(question, effect, NOTHING_LEFT, floor)
    left, most = known - coefficient.lost, 1 - coefficient.step(known) / 2
    spread = math.sqrt(coefficient.variance(effect) / left) if left > 0 else None
    middle = math.atanh(min(max(effect, -most), most))
    if question.null == 0:
        freedom, t = coefficient.score(effect, known)
        tails = float(special.stdtr(freedom, -t)), float(special.stdtr(freedom, t))
    elif spread is None:
        tails = (1.0, 1.0)
    else:
        z = (middle - math.atanh(question.null)) / spread
        tails = float(special.ndtr(-z)), float(special.ndtr(z))

    def interval(confidence: float) -> tuple[float, float]:
        if spread is None:
            return -1.0, 1.0
        reach = float(special.ndtri(0.5 + confidence / 2)) * spread
        low = -1.0 if effect == -1 else math.tanh(middle - reach)
        return low, 1.0 if effect == 1 else math.tanh(middle + reach)

    return conclude(question, effect, interval, *tails, floor)


def _is_constant(result: TestResult) -> bool:
    return result.nothing == association.CONSTANT


def _statistic(groups: Sequence[np.ndarray], coefficient: _Coefficient) -> Statistic:
    """The coefficient as a function of how often each unit was drawn.

    Cost: n k^2 per resample; n^2 for Kendall, and k n^2 for ranks.
    """
    size = groups[0].size
    columns = [_Column(group, coefficient.ranked) for group in groups]
    rows = max(1, _CHUNK // (size * size if coefficient is _KENDALL else size))

    def of_some(counts: np.ndarray) -> np.ndarray:
        weights = counts / counts.sum(-1, keepdims=True)
        x, y, *covariates = (column.centred(counts, weights) for column in columns)
        design = _standardised(covariates, weights, columns[2:])
        left_x = _residual(x, design, weights, columns[0])
        left_y = _residual(y, design, weights, columns[1])
        found = coefficient.of(left_x, left_y, counts)
        distinct = (counts > 0).sum(-1)
        return np.where(distinct < 3 + _ranks_of(design, weights), np.nan, found)

    def statistic(counts: np.ndarray) -> np.ndarray:
        flat = counts.reshape(-1, size)
        parts = [of_some(flat[i : i + rows]) for i in range(0, len(flat), rows)]
        return np.concatenate(parts).reshape(counts.shape[:-1])

    return statistic


class _Column:
    """A quantity, or its mid-ranks within each resample, with the mean of the resample at 0."""

    def __init__(self, values: np.ndarray, ranked: bool):
        self._values = values - values[0]
        self._values = self._values - self._values.mean()
        if np.ptp(values) == 0:
            self._values = np.zeros_like(values)
        self._below = None
        if ranked:
            self._below = (np.sign(values[None, :] - values[:, None]) + 1) / 2
        self.constant = _CONSTANT * float(np.square(self._values).max())

    def centred(self, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self._below is not None:
            return counts @ self._below - counts.sum(-1, keepdims=True) / 2
        return self._values - (weights @ self._values)[:, None]

    def varies(self, variance: np.ndarray) -> np.ndarray:
        return variance > (0.0 if self._below is not None else self.constant)


def _standardised(covariates, weights: np.ndarray, columns: Sequence[_Column]) -> np.ndarray:
    """The covariates with variance 1, or 0 if they are constant: [r, k, n]."""
    scaled = []
    for values, column in zip(covariates, columns, strict=True):
        variance = (weights * values**2).sum(-1, keepdims=True)
        varies = column.varies(variance)
        scaled.append(np.where(varies, values / np.sqrt(np.where(varies, variance, 1.0)), 0.0))
    return np.stack(scaled, axis=1)


def _correlations(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (design * weights[:, None, :]) @ np.swapaxes(design, 1, 2)


def _ranks_of(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many of the covariates are linearly independent, in each resample."""
    values = np.linalg.eigvalsh(_correlations(design, weights))
    return (values > _RANK * np.maximum(values[:, -1:], _RANK)).sum(-1)


def _rank(covariates: Sequence[np.ndarray], coefficient: _Coefficient) -> int:
    columns = [_Column(v, coefficient.ranked) for v in covariates]
    counts = np.ones((1, covariates[0].size))
    weights = counts / counts.size
    centred = [column.centred(counts, weights) for column in columns]
    return int(_ranks_of(_standardised(centred, weights, columns), weights)[0])


def _residual(values, design: np.ndarray, weights: np.ndarray, column: _Column) -> np.ndarray:
    """What the line of least squares leaves; NaN if that is nothing."""
    inverse = np.linalg.pinv(_correlations(design, weights), rcond=_RANK, hermitian=True)
    moments = design @ (weights * values)[:, :, None]
    left = values - (np.swapaxes(inverse @ moments, 1, 2) @ design)[:, 0, :]
    before, after = ((weights * v**2).sum(-1, keepdims=True) for v in (values, left))
    there = column.varies(before) & (after > _DETERMINED * before)
    return np.where(there, left, np.nan)


def _product_moment(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    squares = (counts * x * x).sum(-1) * (counts * y * y).sum(-1)
    return np.clip((counts * x * y).sum(-1) / np.sqrt(squares), -1, 1)


def _tau(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sign_x, sign_y = _signs(x), _signs(y)

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return ((counts[:, None, :] @ matrix)[:, 0, :] * counts).sum(-1)

    product = pairs(np.abs(sign_x)) * pairs(np.abs(sign_y))
    root = np.sqrt(np.where(product > 0, product, np.nan))
    return np.clip(pairs(sign_x * sign_y) / root, -1, 1)


def _signs(left: np.ndarray) -> np.ndarray:
    """Which of two units has the larger residual: [r, n, n]; equal up to rounding is equal."""
    apart = left[:, :, None] - left[:, None, :]
    least = _TIED * np.abs(left).max(-1)[:, None, None]
    return np.where(np.abs(apart) > least, np.sign(apart), np.where(np.isnan(apart), np.nan, 0.0))


def _t(r: float, known: int) -> tuple[float, float]:
    freedom = known - 2
    rest = 1 - r * r
    return freedom, math.copysign(math.inf, r) if rest <= 0 else r * math.sqrt(freedom / rest)


def _normal(tau: float, known: int) -> tuple[float, float]:
    spread = math.sqrt(2 * (2 * known + 5) / (9 * known * (known - 1)))
    return 1e9, tau / spread


_PEARSON = _Coefficient(
    _product_moment,
    ranked=False,
    lost=3,
    variance=lambda r: 1.0,
    score=_t,
    step=lambda _: 2e-12,
)
_SPEARMAN = _Coefficient(
    _product_moment,
    ranked=True,
    lost=3,
    variance=lambda rho: 1 + rho * rho / 2,
    score=_t,
    step=lambda m: 12 / (m**3 - m),
)
_KENDALL = _Coefficient(
    _tau,
    ranked=True,
    lost=4,
    variance=lambda tau: 0.437,
    score=_normal,
    step=lambda m: 4 / (m * (m - 1)),
)
