"""Weather. Fog, frost, snow and dirt are computed; none is a photograph."""

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.data.corruption import filters

_FROST = np.array([0.85, 0.93, 1.0], np.float32)
_WATER = np.array([175, 238, 238], np.float32) / 255
_MUD = np.array([63, 42, 20], np.float32) / 255


def fog(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """(x + c clouds) max / (max + c), with max the largest value of the image."""
    table = jnp.asarray(
        np.array([(0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)], np.float32)
    )
    amount, decay = table[i]
    largest = jnp.max(x)
    hazy = x + amount * filters.clouds(key, x.shape[:2], decay)[..., None]
    return hazy * largest / (largest + amount)


def frost(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """a x + b crystals: ridges of cloud-like noise, whitish blue."""
    table = jnp.asarray(
        np.array([(1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.45), (0.75, 0.55)], np.float32)
    )
    kept, amount = table[i]
    ridges = 1 - jnp.abs(2 * filters.clouds(key, x.shape[:2], 1.4) - 1)
    return kept * x + amount * filters.coloured(ridges**2, _FROST, x.shape[-1])


def snow(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Snowflakes and whitening. The flakes are noise above a threshold, enlarged and smeared
    downwards; they are added twice, the second time turned by 180 degrees."""
    table = np.array(
        [
            (0.10, 0.25, 0.60, 1.5, 1.0, 0.95),
            (0.12, 0.26, 0.57, 1.5, 1.3, 0.92),
            (0.15, 0.28, 0.54, 1.5, 1.6, 0.90),
            (0.20, 0.30, 0.52, 1.5, 2.0, 0.86),
            (0.25, 0.32, 0.50, 1.5, 2.5, 0.82),
        ],
        np.float32,
    )
    mean, spread, threshold, zoom, sigma, kept = jnp.asarray(table)[i]
    of_noise, of_angle = jax.random.split(key)
    flakes = mean + spread * jax.random.normal(of_noise, (*x.shape[:2], 1))
    flakes = filters.zoomed(flakes, zoom)
    flakes = jnp.clip(jnp.where(flakes < threshold, 0, flakes), 0, 1)
    angle = jax.random.uniform(of_angle, (), minval=jnp.pi / 4, maxval=3 * jnp.pi / 4)
    sigma = sigma * filters.scale_of(x)
    longest = int(3 * table[:, 4].max() * filters.scale_of(x))
    flakes = filters.streaked(flakes, angle, sigma, longest)
    grey = jnp.sum(x * filters.LUMA, -1, keepdims=True) if x.shape[-1] == 3 else x
    white = jnp.maximum(x, 1.5 * grey + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes[::-1, ::-1]


def spatter(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Drops on a lens, where smooth noise is highest: water on 6, 10 and 15 % of the image, mud on
    20 and 30 %."""
    table = np.array([(0.06, 0.5), (0.10, 0.6), (0.15, 0.7), (0.20, 0.9), (0.30, 1.0)], np.float32)
    share, strength = jnp.asarray(table)[i]
    noise = jax.random.normal(key, (*x.shape[:2], 1))
    rows, columns = (filters.gaussian_matrix(n, 1.5 * filters.scale_of(x)) for n in x.shape[:2])
    field = filters.separable(noise, rows, columns)[..., 0]
    wet = (field > jnp.quantile(field, 1 - share)).astype(x.dtype)
    edges = [filters.gaussian_matrix(n, 0.5) for n in x.shape[:2]]
    cover = strength * filters.separable(wet[..., None], *edges)
    ones = jnp.ones(x.shape[:2])
    water, mud = (filters.coloured(ones, color, x.shape[-1]) for color in (_WATER, _MUD))
    return (1 - cover) * x + cover * jnp.where(i < 3, water, mud)
