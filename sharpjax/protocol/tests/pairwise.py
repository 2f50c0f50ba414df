"""Statistics of pairs of models, such as the mean disagreement between the seeds of one arm.

The n (n - 1) values of n models are not independent: each model is in 2 (n - 1) of them. Their
spread over sqrt(n (n - 1)) is a standard error about 3.3 times too small at n = 10. The mean over
pairs is a U-statistic. Its standard error is that of the jackknife that leaves out one model at a
time, with all its pairs (Arvesen, Jackknifing U-statistics, Annals of Mathematical Statistics 40,
1969):

    se^2 = (n - 1)/n sum_i (theta_(-i) - mean theta_(-.))^2,     t with n - 1 degrees of freedom
"""

import math

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.tests import bootstrap
from sharpjax.protocol.tests.question import Question, conclude
from sharpjax.protocol.tests.result import TestResult


def pairwise_difference(question: Question) -> TestResult:
    """Mean over pairs of the first group's models less that of the second's; null 0.

    Model i of one group belongs to model i of the other (the same seed), and both are left out
    together. This is right for models that share initialisation and data order, and for those that
    share nothing. It uses the jackknife and t, without resampling.

    Raises:
        UserError: the groups are not two square arrays of one size; there are fewer than three
            models; a pair is not finite.
    """
    first, second = _read(question.groups)
    n = len(first)
    effect, error = jackknife(first - second)
    # Values that are equal up to rounding have no spread.
    rounding = 1e-12 * max(np.nanmax(np.abs(first)), np.nanmax(np.abs(second)))
    floor = bootstrap.units_floor(n)
    excess = effect - question.null
    if error > rounding:
        t = excess / error
        greater, less = (float(special.stdtr(n - 1, side)) for side in (-t, t))
    else:
        error = 0.0
        same = abs(excess) <= rounding
        greater, less = (0.0 if apart and not same else 1.0 for apart in (excess > 0, excess < 0))

    def interval(confidence: float) -> tuple[float, float]:
        reach = float(special.stdtrit(n - 1, 0.5 + confidence / 2)) * error
        return effect - reach, effect + reach

    return conclude(question, effect, interval, greater, less, floor)


def jackknife(array: np.ndarray) -> tuple[float, float]:
    """The mean off the diagonal of a square array, and its standard error.

    >>> jackknife(np.array([[np.nan, 1.0, 2.0], [1.0, np.nan, 6.0], [2.0, 6.0, np.nan]]))
    (3.0, 3.055050463303893)
    """
    n = len(array)
    filled = np.where(np.eye(n, dtype=bool), 0.0, array)
    total = float(filled.sum())
    without = (total - filled.sum(0) - filled.sum(1)) / ((n - 1) * (n - 2))
    squares = float(((without - without.mean()) ** 2).sum())
    return total / (n * (n - 1)), math.sqrt((n - 1) / n * squares)


def _read(groups: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    arrays = [np.asarray(group, np.float64) for group in groups]
    for array in arrays:
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise UserError(f"a group of shape {array.shape}; give a square array, model by model.")
        if len(array) < 3:
            raise UserError(f"{len(array)} models; leaving one out needs three at least.")
        off = ~np.eye(len(array), dtype=bool)
        if not np.isfinite(array[off]).all():
            i, j = np.argwhere(off & ~np.isfinite(array))[0].tolist()
            raise UserError(f"pair ({i}, {j}) is not finite; leave out the models without it.")
    if len({len(array) for array in arrays}) > 1:
        raise UserError(
            f"groups of {[len(array) for array in arrays]} models; model i of one goes with model "
            "i of the other, so give as many."
        )
    return arrays
