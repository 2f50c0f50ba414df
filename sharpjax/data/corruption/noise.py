"""Noise that is independent for each pixel and channel."""

import jax
import jax.numpy as jnp
import numpy as np


def gaussian_noise(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """x + sd n, with n standard normal."""
    return x + _at((0.04, 0.06, 0.08, 0.09, 0.10), i) * jax.random.normal(key, x.shape)


def shot_noise(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Poisson(c x) / c."""
    photons = _at((500, 250, 100, 75, 50), i)
    return jax.random.poisson(key, photons * x).astype(x.dtype) / photons


def impulse_noise(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """A share of the values is replaced by 0 or 1 at random."""
    share = _at((0.01, 0.02, 0.03, 0.05, 0.07), i)
    where, what = jax.random.split(key)
    salt = jax.random.bernoulli(what, 0.5, x.shape).astype(x.dtype)
    return jnp.where(jax.random.uniform(where, x.shape) < share, salt, x)


def speckle_noise(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """x + sd x n, with n standard normal."""
    return x + _at((0.06, 0.10, 0.12, 0.16, 0.20), i) * x * jax.random.normal(key, x.shape)


def _at(values: tuple[float, ...], i: jax.Array) -> jax.Array:
    return jnp.asarray(np.array(values, np.float32))[i]
