"""Proper scores of single examples, their means, and intervals for any statistic of examples.

losses = scores.nll(logits, label)                # [N]
scores.mean(losses)                               # Estimate, with its standard error
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.metrics import inputs


def nll(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log p(label) of each example in nats, [N]. In log space, so exact even if p rounds to 0.

    Raises:
        UserError: as `metrics.update`.
    """
    batch = _checked("scores.nll", logits, label)
    return optax.softmax_cross_entropy_with_integer_labels(batch.logits, batch.label)


def brier(logits: jax.Array, label: jax.Array) -> jax.Array:
    """sum_k (p_k - [k = label])^2 of each example, [N], from 0 to 2 (Brier, 1950).

    Raises:
        UserError: as `metrics.update`.

    >>> brier(jnp.log(jnp.array([[0.8, 0.2]])), jnp.array([0])).round(6).tolist()
    [0.07999999821186066]
    """
    batch = _checked("scores.brier", logits, label)
    target = jax.nn.one_hot(batch.label, batch.logits.shape[1])
    return jnp.sum(jnp.square(jax.nn.softmax(batch.logits) - target), axis=1)


def entropy(logits: jax.Array) -> jax.Array:
    """-sum_k p_k log p_k of each example in nats, [N], from 0 to log K.

    Raises:
        UserError: as `metrics.update`.
    """
    logits = jnp.asarray(logits)
    batch = _checked("scores.entropy", logits, jnp.zeros(logits.shape[:1], jnp.int32))
    log_p = jax.nn.log_softmax(batch.logits)
    return -jnp.sum(jnp.where(jnp.isneginf(log_p), 0, jnp.exp(log_p) * log_p), axis=1)


def mean(values: jax.Array) -> Estimate:
    """The mean of values [N] with its standard error, sd / sqrt(n), which is NaN for one example.

    Raises:
        UserError: `values` is not [N].

    >>> estimate = mean(np.array([1.0, 3.0]))
    >>> float(estimate.value), float(estimate.standard_error), estimate.num_evaluations
    (2.0, 1.0, 2)
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1:
        raise UserError(
            f"scores.mean: values is {list(x.shape)}; give [N], one number for each example."
        )
    n = len(x)
    error = x.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return Estimate(x.mean() if n else np.nan, error, n)


def bootstrap_interval(
    statistic: Callable[..., jax.Array],
    *arrays: Any,
    key: jax.Array,
    num_draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """The basic bootstrap interval of a statistic of examples, [2 t - q_high, 2 t - q_low].

    t is the statistic, and q_low and q_high are its quantiles on examples drawn with replacement.
    The interval corrects a bias of the statistic, which a percentile interval would double. For
    example, the expected calibration error is biased upwards. If that error is only noise, do not
    trust the interval; see `adaptive.calibration_test`.

    Args:
        statistic: maps the arrays to a scalar; a jax function, compiled once.
        arrays: one or more, with the same N examples on axis 0.
        key: random key of the draws.
        num_draws: number of bootstrap samples, at least 2 / (1 - level): with fewer, less than one
            draw is expected beyond each quantile.
        level: coverage of the interval, in (0, 1).

    Raises:
        UserError: `level` is not between 0 and 1, or `num_draws` is too small for it; the arrays
            differ in their number of examples, or there are none.

    >>> low, high = bootstrap_interval(jnp.mean, jnp.arange(100.0), key=jax.random.key(0))
    >>> 40 < low < 46 and 53 < high < 59  # 49.5 - 1.96 * 2.9 is 43.8
    True
    """
    caller = "scores.bootstrap_interval"
    num_draws = whole_number(caller, "num_draws", num_draws)
    if not 0 < level < 1:
        raise UserError(f"{caller}: level={level}; give a number in (0, 1).")
    least = math.ceil(2 / (1 - level) - 1e-6)  # 2 / (1 - 0.95) may be above 40 by rounding
    if num_draws < least:
        raise UserError(
            f"{caller}: num_draws={num_draws} with level={level}; give {least} or more draws."
        )
    arrays = tuple(map(jnp.asarray, arrays))
    lengths = {x.shape[:1] for x in arrays}
    if len(lengths) != 1 or () in lengths:
        raise UserError(
            f"{caller}: arrays of shapes {[list(x.shape) for x in arrays]}; give one or more, with "
            "the same examples on axis 0."
        )
    n = len(arrays[0])

    @jax.jit
    def draws(arrays: tuple, keys: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            index = jax.random.randint(key, (n,), 0, n)
            return statistic(*(x[index] for x in arrays))

        return jax.lax.map(one, keys)

    value = float(statistic(*arrays))
    drawn = np.asarray(draws(arrays, jax.random.split(key, num_draws)), np.float64)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(2 * value - high), float(2 * value - low)


def _checked(caller: str, logits: jax.Array, label: jax.Array) -> inputs.Checked:
    batch = inputs.checked(caller, logits, label)
    bad = jnp.any(batch.refused)  # only inside a trace, which cannot raise
    return batch._replace(logits=jnp.where(bad, jnp.nan, batch.logits))
