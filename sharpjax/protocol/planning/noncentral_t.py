r"""Power of t tests: closed forms, for arrays of effects and numbers of seeds.

Under an effect of d standard deviations the t statistic follows Student's noncentral t with

    two groups   df = n1 + n2 - 2,   noncentrality d sqrt(n1 n2 / (n1 + n2))
    pairs        df = n - 1,         noncentrality d sqrt(n), d in sd of the differences

(Cohen, Statistical Power Analysis, 1988, chapter 2). Welch's test has nearly the same power where
the groups have one size and one spread. All functions cost microseconds.
"""

import functools
import math

import numpy as np
from scipy import special

from sharpjax.errors import UserError
from sharpjax.protocol.tests.result import Alternative

MOST_SEEDS = 1_000_000
LARGEST_EFFECT = 100.0


def t_power(
    effect: np.ndarray | float,
    n: np.ndarray | int,
    n_other: np.ndarray | int | None = None,
    *,
    paired: bool = False,
    alternative: Alternative = "two-sided",
    alpha: np.ndarray | float = 0.05,
) -> np.ndarray:
    """The chance that a t test rejects, by the noncentral t.

    Args:
        effect: Cohen's d: the difference of the means over the standard deviation (of the
            differences, where `paired`). For 'greater' and 'less', positive in the direction of the
            alternative.
        n, n_other: units in the first and the second group (None: as many); or pairs.

    Returns:
        In the shape that the arguments broadcast to. NaN where there is no degree of freedom.

    >>> t_power(1.0, np.array([3, 5, 10])).round(3)
    array([0.159, 0.286, 0.562])
    """
    _check_alpha(alpha)
    n = np.asarray(n, np.float64)
    other = n if n_other is None else np.asarray(n_other, np.float64)
    freedom = n - 1 if paired else n + other - 2
    units = n if paired else n * other / np.maximum(n + other, 1)
    freedom, shift, level = np.broadcast_arrays(
        freedom,
        np.asarray(effect, np.float64) * np.sqrt(units),
        np.asarray(alpha, np.float64) / (2 if alternative == "two-sided" else 1),
    )
    with np.errstate(all="ignore"):
        critical = special.stdtrit(freedom, 1 - level)
        power = special.nctdtr(freedom, -shift, -critical)  # P(T > c) = P(-T < -c)
        if alternative == "two-sided":
            # scipy gives NaN for this tail from where it is below 1e-15.
            power = power + np.nan_to_num(special.nctdtr(freedom, shift, -critical), nan=0.0)
    return np.where(freedom >= 1, np.minimum(power, 1.0), np.nan)


def t_num_seeds(
    effect: float,
    power: float = 0.8,
    *,
    paired: bool = False,
    alternative: Alternative = "two-sided",
    alpha: float = 0.05,
) -> int:
    """The least number of units in each of two groups (or of pairs) that reaches `power`.

    Raises:
        UserError: `effect` is not above 0, `power` is not in (alpha, 1), or a million are not
            enough.

    >>> [t_num_seeds(d) for d in (0.5, 0.8, 1.0)], t_num_seeds(0.5, paired=True)
    ([64, 26, 17], 34)
    """
    _check_alpha(alpha)
    if not (math.isfinite(effect) and effect > 0):
        raise UserError(f"number of seeds: effect must be above 0, got {effect!r}.")
    if not alpha < power < 1:
        raise UserError(f"number of seeds: power must be in (alpha, 1), got {power!r}.")
    low, high = 1, 2
    options = {"paired": paired, "alternative": alternative, "alpha": alpha}
    while not t_power(effect, high, **options) >= power:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            raise UserError(
                f"number of seeds: an effect of {effect:g} standard deviations needs more than "
                f"{MOST_SEEDS:,}; name a larger one."
            )
    while high - low > 1:
        middle = (low + high) // 2
        reached = t_power(effect, middle, **options) >= power
        low, high = (low, middle) if reached else (middle, high)
    return high


@functools.lru_cache(maxsize=4096)
def t_detectable(
    n: int,
    n_other: int | None = None,
    power: float = 0.8,
    *,
    paired: bool = False,
    alternative: Alternative = "two-sided",
    alpha: float = 0.05,
) -> float:
    """The effect, in standard deviations, that is seen with chance `power`; NaN where none is.

    >>> round(t_detectable(17), 3), round(t_detectable(10, paired=True), 3)
    (0.991, 0.996)
    """
    options = {"paired": paired, "alternative": alternative, "alpha": alpha}
    low, high = 0.0, LARGEST_EFFECT
    if not t_power(high, n, n_other, **options) >= power:
        return math.nan
    for _ in range(60):
        middle = (low + high) / 2
        reached = t_power(middle, n, n_other, **options) >= power
        low, high = (low, middle) if reached else (middle, high)
    return high


def _check_alpha(alpha: np.ndarray | float) -> None:
    if not np.all((np.asarray(alpha) > 0) & (np.asarray(alpha) < 1)):
        raise UserError(f"power: alpha must be in (0, 1), got {alpha!r}.")
