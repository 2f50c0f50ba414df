"""Blur. Lengths are in pixels of an image of 32 x 32."""

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.data.corruption import filters


def gaussian_blur(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Blur with a Gaussian kernel."""
    del key
    return filters.gaussian(x, filters.scale_of(x) * np.array([0.4, 0.6, 0.7, 0.8, 1.0]), i)


def defocus_blur(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Blur with a disk."""
    del key
    radii = filters.scale_of(x) * np.array([0.7, 0.9, 1.1, 1.4, 1.8])
    size = 2 * int(np.ceil(radii.max())) + 1
    kernels = np.stack([filters.disk_kernel(radius, size) for radius in radii])
    return filters.convolved(x, jnp.asarray(kernels)[i])


def glass_blur(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """A share of the pixels are replaced by random neighbours, and the image is blurred a little.
    (The original swaps pixels one after another.)"""
    share = jnp.asarray(np.array([0.15, 0.3, 0.5, 0.75, 1.0], np.float32))[i]
    row, column = filters.grid(x)
    height, width = x.shape[:2]
    reach = round(filters.scale_of(x))
    of_moves, of_pixels = jax.random.split(key)
    moves = jax.random.randint(of_moves, (2, height, width), -reach, reach + 1)
    moves = jnp.where(jax.random.uniform(of_pixels, (height, width)) < share, moves, 0)
    rows = jnp.clip(row.astype(jnp.int32) + moves[0], 0, height - 1)
    columns = jnp.clip(column.astype(jnp.int32) + moves[1], 0, width - 1)
    blur = (filters.gaussian_matrix(n, 0.3) for n in (height, width))
    return filters.separable(x[rows, columns], *blur)


def motion_blur(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Each image is smeared along its own direction, at most 45 degrees from the horizontal."""
    sigmas = filters.scale_of(x) * np.array([1.0, 1.5, 2.0, 2.5, 3.0], np.float32)
    angle = jax.random.uniform(key, (), minval=-jnp.pi / 4, maxval=jnp.pi / 4)
    return filters.streaked(x, angle, jnp.asarray(sigmas)[i], int(3 * sigmas.max()))


def zoom_blur(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """The mean of the image and of enlarged ones, in steps of 1 %, up to 5, 10, 15, 20 or 25 %."""
    del key
    steps = jnp.arange(26, dtype=jnp.float32)
    weights = (steps <= 5 * (i + 1)).astype(x.dtype).at[0].set(2)  # itself, and enlarged by 0 %
    total = filters.weighted_sum(lambda n: filters.zoomed(x, 1 + 0.01 * n), steps, weights)
    return total / jnp.sum(weights)
