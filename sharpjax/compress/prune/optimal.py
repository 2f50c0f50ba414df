"""How much to prune, from the weights alone: the cosine with the pruned weights, and kurtosis."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sharpjax.compress.prune import amounts as shares
from sharpjax.compress.prune import masks
from sharpjax.compress.scope import Scope, in_scope


class OptimalAmount(NamedTuple):
    """The amount whose point (cosine, amount) is nearest to utopia, its cosine and its distance."""

    amount: float
    cosine: float
    distance: float


def cosines(params: Any, amounts: Sequence[float], scope: Scope = "trainable") -> np.ndarray:
    """cos(w, m w) after global magnitude pruning, for each amount: `||m w|| / ||w||`.

    w is the vector of all parameters; those out of scope are kept. Counts are those of `mask`.

    Args:
        params: as in `mask`.
        amounts: numbers in [0, 1).
        scope: as in `mask`.

    Returns:
        a float64 array with one value for each amount, with a relative error of at most n 2^-53 for
        n weights; NaN if all weights are 0.

    Raises:
        UserError: an amount outside [0, 1), or weights that are not finite.

    Cost: one sort, whatever the number of amounts.

    >>> cosines({"w": np.array([3.0, 4.0])}, [0.0, 0.5]).tolist()
    [1.0, 0.8]
    """
    caller = "prune.cosines"
    masks.check(caller, params)
    own = in_scope(caller, params, scope)
    leaves = [np.asarray(jax.device_get(x), np.float64).ravel() for x in jax.tree.leaves(params)]
    ranked = np.concatenate([x for x, chosen in zip(leaves, own, strict=True) if chosen])
    rest = sum(float(x @ x) for x, chosen in zip(leaves, own, strict=True) if not chosen)
    ranked = np.sort(np.abs(ranked))[::-1]
    kept = rest + np.concatenate([[0.0], np.cumsum(ranked**2)])
    counts = [
        len(ranked) - shares.num_pruned(shares.check_amount(caller, amount), len(ranked))
        for amount in amounts
    ]
    with np.errstate(invalid="ignore"):
        return np.sqrt(kept[counts] / kept[-1])


def optimal_amount(
    params: Any, amounts: Sequence[float] | None = None, scope: Scope = "trainable"
) -> OptimalAmount:
    """The amount a whose point (cos(w, m w), a) is nearest to utopia, (1, 1).

    At (1, 1) everything is pruned and the direction of the weights is kept. Pruning is global, by
    magnitude. The rule is that of the code `what_makes_a_good_prune`.

    Args:
        params: as in `mask`.
        amounts: candidates; None: 0, 0.01, ..., 0.99. Of equal distances the first is taken.
        scope: as in `mask`.

    Returns:
        the amount, its cosine and its distance; all NaN if all weights are 0.

    Raises:
        UserError: as `cosines`.

    >>> optimal_amount({"w": np.ones(100)}).amount  # where the cosine is sqrt(1 - a)
    0.65
    """
    tried = [i / 100 for i in range(100)] if amounts is None else list(amounts)
    cosine = cosines(params, tried, scope)
    distance = np.hypot(1 - cosine, 1 - np.asarray(tried, np.float64))
    if np.isnan(distance).all():
        return OptimalAmount(math.nan, math.nan, math.nan)
    i = int(np.argmin(distance))
    return OptimalAmount(float(tried[i]), float(cosine[i]), float(distance[i]))


def kurtosis_of_kurtoses(params: Any, scope: Scope = "trainable") -> float:
    """The kurtosis of the kurtoses of the arrays in scope.

    The kurtosis is `E (x - mean)^4 / var^2`, which is 3 for a normal distribution. Moments divide
    by n, not by n - 1. Each array counts once, whatever its size.

    Args:
        params: as in `mask`.
        scope: as in `mask`.

    Returns:
        the kurtosis; NaN if an array, or the list of kurtoses, has only one distinct value. Biases
        that are still 0 are such arrays: leave them out by scope.

    Raises:
        UserError: weights that are not finite; nothing is in scope.

    >>> arrays = [np.array([-1.0, 1.0]), np.array([1.0, -1.0]), np.array([-1.0, 0.0, 0.0, 1.0])]
    >>> round(kurtosis_of_kurtoses(arrays), 9)  # of 1, 1 and 2
    1.5
    """
    caller = "prune.kurtosis_of_kurtoses"
    masks.check(caller, params)
    own = in_scope(caller, params, scope)
    leaves = [np.asarray(jax.device_get(leaf), np.float64) for leaf in jax.tree.leaves(params)]
    each = [_kurtosis(x) for x, chosen in zip(leaves, own, strict=True) if chosen]
    return _kurtosis(np.array(each))


def safe_amount(amount: float, kurtosis: float) -> float:
    """The amount, lowered by the kurtosis of kurtoses k: a / log2(k) if k < e, else a / ln(k).

    This is the rule of the code `what_makes_a_good_prune`. For k < 2 the result is larger than the
    amount, possibly above 1, and at k = e it jumps. NaN if k <= 1 or k is NaN.

    >>> safe_amount(0.6, 4.0) == 0.6 / math.log(4), safe_amount(0.6, 2.0)
    (True, 0.6)
    """
    if not kurtosis > 1:
        return math.nan
    return amount / (math.log2(kurtosis) if kurtosis < math.e else math.log(kurtosis))


def _kurtosis(values: np.ndarray) -> float:
    if not values.size or not values.max() > values.min():  # also if any is NaN
        return math.nan
    centred = values - values.mean()
    centred = centred / np.abs(centred).max()  # so that no fourth power is too small
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2)
