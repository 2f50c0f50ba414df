"""Power laws fitted to the upper tail of a sample: Clauset, Shalizi and Newman (arXiv 0706.1062).

    found = fit(eigenvalues)           # alpha, xmin, D
    jax.vmap(fit)(of_many_layers)      # [B, n] each

p(x) = (alpha - 1) / xmin (x / xmin)^-alpha for x >= xmin. alpha is the maximum-likelihood estimate.
xmin is the value of the sample whose tail is nearest to its own fit by the Kolmogorov-Smirnov
distance.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.errors import UserError
from sharpjax.layerwise.data_free.eigenvalues import widened

_POINTS = 64  # of each tail, for a bound of its distance before that is computed


class PowerLaw(NamedTuple):
    """The power law of a tail. If the sample has no tail, the values are NaN and `num_tail` is 0.

    Attributes:
        alpha: exponent of the density, 1 + m / sum ln(x / xmin) over the m values from xmin on.
        xmin: where the tail begins.
        D: Kolmogorov-Smirnov distance between tail and fit, with the empirical distribution
            function from the left, 0, 1/m .. (m - 1)/m, as in powerlaw and WeightWatcher.
        sigma: (alpha - 1) / sqrt(m), the standard error of alpha if xmin were known.
        num_tail: m, int32.
        num_kept: how many values are above the floor, int32.
    """

    alpha: jax.Array
    xmin: jax.Array
    D: jax.Array
    sigma: jax.Array
    num_tail: jax.Array
    num_kept: jax.Array


def fit(
    values: jax.Array,
    floor: jax.typing.ArrayLike = 0.0,
    *,
    resolution: jax.typing.ArrayLike | None = None,
) -> PowerLaw:
    """The power law whose tail is nearest to the sample.

    Every kept value but the largest is a candidate xmin, with alpha = 1 + 1 / mean ln(x / xmin) and
    D = max_j |1 - (x_j / xmin)^(1 - alpha) - j / m|. The first xmin with the least D is taken. The
    fit is scale-free: c x has the same alpha, D and sigma if the floor is scaled, too.

    Cost: n candidates of at most n values each would be n^2 / 2 powers. First, D is bounded from
    below at 64 values of each tail. It is then computed only if this bound is not above the least D
    so far, which gives the same answer. Works under `jit` and `vmap`. On CPU use `jax.lax.map` for
    many samples, because a vmapped loop runs until its last lane is done.

    Args:
        values: [n], in any order. Values that are NaN or not above `floor` are left out. Types
            narrower than float32 are computed in float32.
        floor: values up to it count as 0.
        resolution: if mean ln(x / xmin) is not above it, the values of a tail count as equal, and
            this is no tail. Default: 1e3 eps of the type of the computation. Values that were
            computed from narrower numbers need the rounding of those.

    Raises:
        UserError: `values` is not a vector of two floats or more; `floor` or `resolution` is not a
            number.

    >>> sample = 3 * (1 - (jnp.arange(200) + 0.5) / 200) ** -0.5  # quantiles of alpha = 3
    >>> print(jnp.round(fit(sample).alpha, 1))
    3.0
    """
    if jnp.ndim(values) != 1 or jnp.size(values) < 2:
        raise UserError(
            f"power_law.fit: values must be a vector of at least two numbers, got shape "
            f"{jnp.shape(values)}; `jax.vmap` this function over more axes."
        )
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise UserError(f"power_law.fit: values must be floats, got {values.dtype}.")
    values = widened(values)
    eps = float(jnp.finfo(values.dtype).eps)
    spread = 1e3 * eps if resolution is None else resolution
    return _fit(
        values,
        _number("floor", floor, values.dtype),
        _number("resolution", spread, values.dtype),
    )


def _number(name: str, given: jax.typing.ArrayLike, dtype: jnp.dtype) -> jax.Array:
    try:
        number = jnp.asarray(given, dtype)
    except (TypeError, ValueError):
        number = None
    if number is None or number.ndim:
        raise UserError(f"power_law.fit: {name}={given!r}; give one number.")
    return number


@jax.jit
def _fit(values, floor, resolution):
    n, dtype = values.size, values.dtype
    kept = values > floor
    num_kept = jnp.sum(kept, dtype=jnp.int32)
    x = jnp.sort(jnp.where(kept, values, -jnp.inf))
    kept = x > -jnp.inf
    log_x = jnp.log(jnp.where(kept, x, 1))
    place = jnp.arange(n)
    size = (n - place).astype(dtype)
    excess = jnp.cumsum(log_x[::-1])[::-1] / size - log_x
    # Equal eigenvalues differ in their last bits by rounding: that is no tail.
    spread = excess > resolution
    rate = jnp.where(kept & spread & (place < n - 1), 1 / jnp.where(spread, excess, 1), jnp.nan)
    lower = jnp.where(jnp.isnan(rate), jnp.inf, _lower_bounds(log_x, rate))

    def unfinished(carry):
        lower, best, _ = carry
        least = jnp.min(lower)
        return (least <= best) & (least < jnp.inf)

    def look(carry):
        lower, best, chosen = carry
        i = jnp.argmin(lower)
        found = _distance(log_x, i, rate[i])
        better = (found < best) | ((found == best) & (i < chosen))
        return (
            lower.at[i].set(jnp.inf),
            jnp.where(better, found, best),
            jnp.where(better, i, chosen),
        )

    start = lower, jnp.asarray(jnp.inf, dtype), jnp.asarray(0, place.dtype)
    _, best, i = jax.lax.while_loop(unfinished, look, start)
    there = jnp.isfinite(best)

    def known(value):
        return jnp.where(there, value, jnp.nan)

    return PowerLaw(
        alpha=known(1 + rate[i]),
        xmin=known(x[i]),
        D=known(best),
        sigma=known(rate[i] / jnp.sqrt(size[i])),
        num_tail=jnp.where(there, jnp.sum(kept & (x >= x[i]), dtype=jnp.int32), 0),
        num_kept=num_kept,
    )


def _distance(log_x, i, rate):
    """D of the tail that starts at index i."""
    place = jnp.arange(log_x.size)
    fitted = -jnp.expm1(-rate * (log_x - log_x[i]))
    counted = (place - i).astype(log_x.dtype) / (log_x.size - i).astype(log_x.dtype)
    return jnp.max(jnp.where(place >= i, jnp.abs(fitted - counted), 0))


def _lower_bounds(log_x, rate):
    """The largest distance over some values of each tail, [n]."""
    n = log_x.size
    first = jnp.arange(n)[:, None]
    steps = jnp.arange(min(_POINTS, n))[None, :]
    j = first + (n - 1 - first) * steps // max(steps.size - 1, 1)
    size = (n - first).astype(log_x.dtype)
    fitted = -jnp.expm1(-rate[:, None] * (log_x[j] - log_x[:, None]))
    # A little less: the same distance may be rounded in another way when it is computed alone.
    bound = jnp.max(jnp.abs(fitted - (j - first).astype(log_x.dtype) / size), axis=1)
    return bound - 8 * jnp.finfo(log_x.dtype).eps


def hill(values: jax.Array, k: int) -> jax.Array:
    """Hill's estimate of alpha from the k largest values, 1 + k / sum_(i<=k) ln(x_(i) / x_(k+1)).

    The length of the tail is given, not fitted (Hill, 1975). Infinite if the k + 1 largest values
    are equal, NaN if one of them is not positive. Types narrower than float32 are computed in
    float32.

    Raises:
        UserError: not 1 <= k < n.

    >>> print(f"{hill(jnp.exp(jnp.array([0.0, 1.0, 3.0])), 2):.3f}")
    1.500
    """
    n = jnp.shape(values)[-1] if jnp.ndim(values) else 0
    if not isinstance(k, int | np.integer) or not 1 <= k < n:
        raise UserError(f"power_law.hill: k={k!r}; give a whole number from 1 to {max(n - 1, 1)}.")
    return _hill(widened(values), k=int(k))


def hill_of_tenth(values: jax.Array, resolution: jax.typing.ArrayLike = 0.0) -> jax.Array:
    """Hill's estimate from the upper tenth of the values above 0, at least two of them; NaN if
    there are fewer than three.

    Infinite if these are equal to within the resolution, as in `fit`.

    >>> print(f"{hill_of_tenth(jnp.exp(jnp.array([0.0, 1.0, 3.0]))):.3f}")
    1.500
    >>> print(hill_of_tenth(jnp.ones(2)))
    nan
    """
    n = values.size
    if n < 3:
        return jnp.full((), jnp.nan, values.dtype)
    x = jnp.sort(values)
    k = jnp.maximum(jnp.sum(x > 0) // 10, 2)
    logs = jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), jnp.nan)
    above = jnp.where(jnp.arange(n) >= n - k, logs - logs[n - 1 - k], 0)
    excess = jnp.sum(above) / k
    return 1 + 1 / jnp.where(excess <= resolution, 0, excess)


@functools.partial(jax.jit, static_argnames="k")
def _hill(values, k):
    top = jnp.sort(values, axis=-1)[..., -(k + 1) :]
    logs = jnp.where(top > 0, jnp.log(jnp.where(top > 0, top, 1)), jnp.nan)
    return 1 + 1 / jnp.mean(logs[..., 1:] - logs[..., :1], axis=-1)
