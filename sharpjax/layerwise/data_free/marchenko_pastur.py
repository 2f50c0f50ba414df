"""The Marchenko-Pastur law of the eigenvalues of a random matrix, and the spikes above it.

For entries of variance sigma^2 and large N and M, the eigenvalues of W'W / N, W [N, M], fill the
interval sigma^2 (1 -+ sqrt(M / N))^2 (Marchenko and Pastur, 1967).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax.errors import UserError
from sharpjax.layerwise.data_free.eigenvalues import widened

# The 99 % point of the Tracy-Widom law of real matrices.
_TRACY_WIDOM_99 = 2.0234
_GRID, _THIN, _BANDWIDTH = 1000, 0.01, 0.1
_PENALTY = 1e6


class Bulk(NamedTuple):
    """The law fitted to the eigenvalues of a layer; NaN if none was found.

    Attributes:
        sigma_mp: sigma of the eigenvalues divided by their mean: 1 for a random matrix.
        bulk_min: lower edge, mean sigma^2 (1 - sqrt(M / N))^2, in the units of the eigenvalues.
        bulk_max: upper edge.
        num_spikes: how many eigenvalues lie above the upper edge plus a margin.
        mp_softrank: bulk_max / lambda_max: 1 for a random matrix, near 0 with strong spikes.
    """

    sigma_mp: jax.Array
    bulk_min: jax.Array
    bulk_max: jax.Array
    num_spikes: jax.Array
    mp_softrank: jax.Array


def edges(ratio: float, sigma: float = 1.0) -> tuple[float, float]:
    """sigma^2 (1 -+ sqrt(ratio))^2, ratio = M / N at most 1.

    Raises:
        UserError: a ratio outside (0, 1].

    >>> edges(0.25)
    (0.25, 2.25)
    """
    if not 0 < ratio <= 1:
        raise UserError(
            f"marchenko_pastur: ratio={ratio}; give M / N, shorter over longer side, above 0 and "
            "at most 1."
        )
    return (sigma * (1 - math.sqrt(ratio))) ** 2, (sigma * (1 + math.sqrt(ratio))) ** 2


def density(x: jax.Array, ratio: float, sigma: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """sqrt((b - x) (x - a)) / (2 pi sigma^2 ratio x) between the edges a and b, else 0.

    >>> print(density(jnp.array([1.0, 5.0]), 1.0).round(4))
    [0.2757 0.    ]
    """
    a, b = edges(ratio)
    z = jnp.asarray(x) / jnp.square(sigma)
    inside = (z > a) & (z < b) & (z > 0)
    z = jnp.where(inside, z, 1)
    value = jnp.sqrt(jnp.maximum((b - z) * (z - a), 0)) / (2 * jnp.pi * ratio * z)
    return jnp.where(inside, value / jnp.square(sigma), 0)


@functools.lru_cache
def median(ratio: float) -> float:
    """The median of the law with sigma = 1, to 1e-6.

    >>> round(median(1.0), 3)
    0.653
    """
    edges(ratio)  # refuses a ratio out of range
    return float(_median(ratio, np))


def _median(ratio, xp):
    """With numpy, or with jax.numpy if the ratio is known only at run time."""
    a, b = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    # x = a + (b - a) sin^2(t / 2) removes the square roots from the integrand.
    t = (np.arange(20_000) + 0.5) * np.pi / 20_000
    x = a + (b - a) * np.sin(t / 2) ** 2
    mass = (b - a) ** 2 * np.sin(t) ** 2 / (8 * np.pi * ratio * x)
    below = (xp.cumsum(mass) - mass / 2) / xp.sum(mass)
    return xp.interp(0.5, below, x)


def fit_median(
    values: jax.Array, *, longest: jax.typing.ArrayLike, shortest: jax.typing.ArrayLike
) -> Bulk:
    """The law with the same median as the eigenvalues above 0, and the eigenvalues above its edge.

    Gavish and Donoho (arXiv 1305.5870) estimate noise in this way. Up to half of the eigenvalues
    above 0 may lie outside of the bulk. Zero eigenvalues are left out, and M becomes M' = M n' / n,
    with n' of n eigenvalues above 0: the shorter side of a matrix without its zero columns.

    An eigenvalue is a spike if it is above the 99 % point of the largest eigenvalue of a random
    matrix, with Johnstone's centre and scale, (sqrt N + sqrt M)^2 / N and
    (sqrt N + sqrt M) (1 / sqrt N + 1 / sqrt M)^(1/3) / N (Johnstone, 2001). This point holds for
    large matrices of known variance. Here the variance comes from the median, so more than 1 % of
    pure Gaussian matrices have a spike: 4.1 % (16 x 12), 2.5 % (40 x 20), 2.0 % (100 x 50), 3.2 %
    (64 x 64), 1.2 % (300 x 10), each to within 0.2 %. With k slices, the largest eigenvalue is that
    of k matrices: 13 % of nine slices of 16 x 16 have a spike.

    Args:
        values: ascending eigenvalues of W'W, [n].
        longest, shortest: N and M, without rows and columns of zeros along the longer side.

    Raises:
        UserError: M / N outside (0, 1], if they are known before tracing.

    >>> s = jnp.linalg.svd(jax.random.normal(jax.random.key(0), (200, 50)), compute_uv=False)
    >>> bulk = fit_median(s[::-1] ** 2, longest=200, shortest=50)
    >>> int(bulk.num_spikes), bool(abs(bulk.sigma_mp - 1) < 0.1)
    (0, True)
    """
    if not isinstance(longest, Tracer) and not isinstance(shortest, Tracer):
        edges(float(np.asarray(shortest / longest)))
    values = widened(values)
    n = values.size
    num = jnp.sum(values > 0)
    mean = jnp.sum(values) / num
    middle = (values[n - num + (num - 1) // 2] + values[n - num + num // 2]) / 2
    shortest = shortest * num.astype(values.dtype) / n
    ratio = jnp.minimum(shortest / longest, 1)
    variance = middle / mean / _median(ratio, jnp)
    variance = jnp.where(variance > 0, variance, jnp.nan)
    root, other = jnp.sqrt(jnp.asarray(longest, values.dtype)), jnp.sqrt(shortest)
    centre = (root + other) ** 2 / longest
    scale = (root + other) * (1 / root + 1 / other) ** (1 / 3) / longest
    threshold = variance * (centre + _TRACY_WIDOM_99 * scale)
    law = (1 - jnp.sqrt(ratio)) ** 2, (1 + jnp.sqrt(ratio)) ** 2
    return _bulk(values, mean, jnp.sqrt(variance), law, threshold)


def fit_density(values: jax.Array, *, longest: int, shortest: int) -> Bulk:
    """The law nearest to a kernel density estimate of the eigenvalues, as WeightWatcher fits it.

    The estimate uses a triangle of half-width 0.1 at 1,000 points up to lambda_max + 0.5; points
    where it is above 0.01 count. sigma minimises the sum of squares over 195 values from 0.05 to
    1.99 sigma_0, with sigma_0 that of lambda_max, and then by Nelder and Mead's search as in
    `scipy.optimize.fmin`. A law is rejected if its edges do not enclose the mode, or reach beyond
    the last point. If every sigma is rejected, the fit is NaN. The margin is
    sqrt(sqrt(M / N) b^(2/3) M^(-2/3)), with b the upper edge of eigenvalues of mean 1. A square
    matrix is fitted by its singular values and WeightWatcher's formula
    sqrt(4 - s^2) / (pi sigma^2), unchanged.
    """
    values = widened(values)
    ratio = shortest / longest
    mean = jnp.mean(values)
    scaled = values / mean
    square = longest == shortest
    sample = jnp.sqrt(scaled) if square else scaled
    x = jnp.linspace(0, jnp.max(sample) + 0.5, _GRID)
    near = jnp.maximum(_BANDWIDTH - jnp.abs(x[:, None] - sample[None, :]), 0)
    estimate = jnp.mean(near, axis=1) / _BANDWIDTH**2
    counted = estimate > _THIN
    mode = x[jnp.argmax(estimate)]
    last = jnp.max(jnp.where(counted, x, 0))

    def loss(sigma):
        if square:
            law = jnp.sqrt(jnp.maximum(4 - x**2, 0)) / (jnp.pi * sigma**2)
            return jnp.sum(jnp.where(counted, (law - estimate) ** 2, 0))
        low, high = (edge * sigma**2 for edge in edges(ratio))
        law = density(x, ratio, sigma)
        found = jnp.sum(jnp.where(counted, (law - estimate) ** 2, 0))
        wrong = (high < mode) | (high > last) | (low > mode)
        return jnp.where(wrong, _PENALTY * jnp.sum(counted), found)

    first = jnp.sqrt(scaled[-1]) / (1 + math.sqrt(ratio))
    grid = first * (0.05 + 0.01 * jnp.arange(195))
    losses = jax.lax.map(loss, grid)
    sigma = _nelder_mead(loss, grid[jnp.argmin(losses)])
    found = jnp.isfinite(jnp.min(losses)) & (jnp.min(losses) < _PENALTY)
    sigma = jnp.where(found, sigma, jnp.nan)
    top = sigma**2 * edges(ratio)[1]
    margin = jnp.sqrt(math.sqrt(ratio) * top ** (2 / 3) * shortest ** (-2 / 3))
    return _bulk(values, mean, sigma, edges(ratio), top + margin)


def _bulk(values, mean, sigma, law, threshold):
    """From sigma, the edges for sigma 1, and the threshold of spikes for eigenvalues of mean 1."""
    low, high = (edge * sigma**2 * mean for edge in law)
    spikes = jnp.sum(values / mean > threshold).astype(values.dtype)
    spikes = jnp.where(jnp.isnan(threshold), jnp.nan, spikes)
    return Bulk(sigma, low, high, spikes, high / values[-1])


def _nelder_mead(loss: Callable, start: jax.Array, *, tolerance: float = 1e-4) -> jax.Array:
    """Nelder and Mead's search in one dimension from `start` and 1.05 `start`."""

    def unfinished(carry):
        (a, b), (fa, fb), step = carry
        return (step < 200) & ((jnp.abs(b - a) > tolerance) | (jnp.abs(fb - fa) > tolerance))

    def move(carry):
        (a, b), (fa, fb), step = carry
        # Reflection, expansion, contraction by half outside and inside; a shrink is the last, too.
        points = jnp.stack([2 * a - b, 3 * a - 2 * b, 1.5 * a - 0.5 * b, 0.5 * (a + b)])
        at = jax.lax.map(loss, points)
        expand = jnp.where(at[1] < at[0], 1, 0)
        outside = jnp.where(at[2] <= at[0], 2, 3)
        chosen = jnp.where(at[0] < fa, expand, jnp.where(at[0] < fb, outside, 3))
        new, f = points[chosen], at[chosen]
        ordered = f < fa
        pair = jnp.where(ordered, jnp.stack([new, a]), jnp.stack([a, new]))
        losses = jnp.where(ordered, jnp.stack([f, fa]), jnp.stack([fa, f]))
        return pair, losses, step + 1

    pair = jnp.stack([start, 1.05 * start])
    losses = jax.lax.map(loss, pair)
    order = jnp.argsort(losses)
    pair, _, _ = jax.lax.while_loop(unfinished, move, (pair[order], losses[order], 0))
    return pair[0]
