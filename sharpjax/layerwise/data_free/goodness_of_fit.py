"""Whether a power law is plausible, and how precise its exponent is: Clauset's bootstrap."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.layerwise.data_free import power_law
from sharpjax.layerwise.data_free.eigenvalues import widened


class GoodnessOfFit(NamedTuple):
    """What samples drawn from the fitted law say about the fit; NaN if there is no fit.

    Attributes:
        p_value: (1 + number of samples that are at least as far from their own fit) / (1 + number
            of samples); small if the tail is no power law. Clauset, Shalizi and Newman reject at
            0.1.
        p_error: its Monte Carlo standard error.
        alpha_low, alpha_high: interval for alpha, if the law holds.
        alphas: alpha of each sample, [num_samples], NaN for a sample without a fit.
    """

    p_value: jax.Array
    p_error: jax.Array
    alpha_low: jax.Array
    alpha_high: jax.Array
    alphas: jax.Array


def goodness_of_fit(
    key: jax.Array,
    values: jax.Array,
    floor: jax.typing.ArrayLike = 0.0,
    *,
    num_samples: int = 200,
    level: float = 0.95,
    resolution: jax.typing.ArrayLike | None = None,
) -> GoodnessOfFit:
    """The semiparametric bootstrap of Clauset, Shalizi and Newman (arXiv 0706.1062, section 4.1).

    Each sample has as many values as were kept. A value is drawn from the fitted law with
    probability m / n, otherwise from the values below xmin. Then xmin and alpha are fitted again.
    The interval is 1 + (alpha - 1) / q with the quantiles q of (alpha* - 1) / (alpha - 1). If all
    values follow a power law, the distribution of this ratio does not depend on alpha. So the
    interval then has its nominal level, and corrects the bias from choosing xmin.

    Cost: `num_samples` fits. The standard error of p is at most 0.5 / sqrt(num_samples).

    Args:
        key: one random key.
        values, floor, resolution: as in `power_law.fit`.
        num_samples: how many samples are drawn.
        level: of the interval.

    Raises:
        UserError: no key or several, fewer than 20 samples, or a level outside (0, 1); values that
            `power_law.fit` refuses.

    >>> x = (1 - (jnp.arange(60) + 0.5) / 60) ** -0.5
    >>> bool(goodness_of_fit(jax.random.key(0), x, num_samples=50).p_value > 0.1)
    True
    """
    whole_number("goodness_of_fit", "num_samples", num_samples, least=20)
    key = check_key("goodness_of_fit", key)
    if isinstance(level, bool) or not isinstance(level, float | int) or not 0 < level < 1:
        raise UserError(f"goodness_of_fit: level={level!r}; give a number between 0 and 1.")
    found = power_law.fit(values, floor, resolution=resolution)
    values = widened(values)
    return _resampled(
        key, values, jnp.asarray(floor, values.dtype), found, num_samples=num_samples, level=level
    )


@functools.partial(jax.jit, static_argnames=("num_samples", "level"))
def _resampled(key, values, floor, found, *, num_samples, level):
    n, dtype = values.size, values.dtype
    x = jnp.sort(jnp.where(values > floor, values, -jnp.inf))
    body = found.num_kept - found.num_tail  # how many lie below xmin
    used = jnp.arange(n) >= n - found.num_kept
    share = found.num_tail / jnp.maximum(found.num_kept, 1)

    def once(key):
        which, high, low = jax.random.split(key, 3)
        tail = jax.random.uniform(which, (n,), dtype) < share
        drawn = found.xmin * jnp.exp(jax.random.exponential(high, (n,), dtype) / (found.alpha - 1))
        place = jax.random.randint(low, (n,), 0, jnp.maximum(body, 1))
        below = x[jnp.minimum(n - found.num_kept + place, n - 1)]
        sample = jnp.where(used, jnp.where(tail | (body < 1), drawn, below), -jnp.inf)
        again = power_law.fit(sample, floor)
        return again.D, again.alpha

    distances, alphas = jax.lax.map(once, jax.random.split(key, num_samples))
    there = jnp.isfinite(found.D)
    # A sample without a fit counts as far from a power law.
    far = jnp.sum(~(distances < found.D))
    p = (1 + far) / (1 + num_samples)
    outside = (1 - level) / 2
    ratios = (alphas - 1) / (found.alpha - 1)
    low, high = jnp.nanquantile(ratios, jnp.array([outside, 1 - outside], dtype))
    return GoodnessOfFit(
        p_value=jnp.where(there, p, jnp.nan),
        p_error=jnp.where(there, jnp.sqrt(p * (1 - p) / num_samples), jnp.nan),
        alpha_low=1 + (found.alpha - 1) / high,
        alpha_high=1 + (found.alpha - 1) / low,
        alphas=jnp.where(there, alphas, jnp.nan),
    )
