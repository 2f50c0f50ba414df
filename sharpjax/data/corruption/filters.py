"""Building blocks of the corruptions: matrices that blur and resize, sampling, cloud-like noise.

Images are float32 [H, W, C] in [0, 1], fields [H, W]. Everything is linear algebra on small static
matrices and gathers, so that it is fast under `jax.vmap` and on every backend.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax.data.resizing import overlaps

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def scale_of(image: jax.Array) -> float:
    """The factor for lengths, which are given for images of 32 pixels; at least 1."""
    return max(min(image.shape[:2]) / 32, 1.0)


def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """[size, size]: Gaussian blur along one axis, cut at 4 sigma. Pixels outside have the value at
    the edge (as `scipy.ndimage.gaussian_filter1d` with mode 'nearest').

    >>> gaussian_matrix(3, 0.0).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    radius = int(4 * sigma + 0.5)
    offset = np.arange(-radius, radius + 1)
    weights = np.exp(-(offset**2) / (2 * sigma**2)) if radius else np.ones(1)
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], np.clip(row + offset, 0, size - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def gaussian_matrices(size: int, sigmas: ArrayLike) -> np.ndarray:
    """A `gaussian_matrix` for each sigma, [S, size, size]."""
    return np.stack([gaussian_matrix(size, float(sigma)) for sigma in np.asarray(sigmas)])


def box_matrix(size: int, between: int) -> np.ndarray:
    """[size, size]: resizes to `between` pixels and back, each the mean of the area it covers."""
    down = overlaps(size, between) / size
    up = overlaps(between, size) / between
    return (up @ down).astype(np.float32)


def separable(image: jax.Array, rows: ArrayLike, columns: ArrayLike) -> jax.Array:
    """Applies a matrix along each axis of an image [H, W, C]."""
    high = jax.lax.Precision.HIGHEST
    image = jnp.einsum("ij,jwc->iwc", jnp.asarray(rows), image, precision=high)
    return jnp.einsum("ij,hjc->hic", jnp.asarray(columns), image, precision=high)


def gaussian(image: jax.Array, sigmas: ArrayLike, index: jax.Array) -> jax.Array:
    """The image blurred with the sigma at `index`."""
    rows, columns = (gaussian_matrices(n, sigmas) for n in image.shape[:2])
    return separable(image, jnp.asarray(rows)[index], jnp.asarray(columns)[index])


def disk_kernel(radius: float, size: int, samples: int = 33) -> np.ndarray:
    """[size, size], size odd: the share of each pixel that a disk covers, normalised to sum 1."""
    fine = (np.arange(size * samples) + 0.5) / samples - size / 2
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).astype(float)
    kernel = inside.reshape(size, samples, size, samples).mean((1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


def convolved(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Filters with a small kernel of odd size, as a sum of shifted copies. Pixels outside have the
    value at the edge."""
    size, (height, width) = kernel.shape[0], image.shape[:2]
    r = size // 2
    padded = jnp.pad(image, ((r, r), (r, r), (0, 0)), mode="edge")
    total = jnp.zeros_like(image)
    for i in range(size):
        for j in range(size):
            total = total + kernel[i, j] * padded[i : i + height, j : j + width]
    return total


def sampled(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """[H, W, C] at positions between its pixels, by linear interpolation. Positions outside are
    mirrored at the centres of the edge pixels."""

    def one(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(channel, [row, column], order=1, mode="mirror")

    return jax.vmap(one, -1, -1)(image)


def grid(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row and column of each pixel, float32 [H, W]."""
    height, width = image.shape[:2]
    row, column = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return row.astype(jnp.float32), column.astype(jnp.float32)


def zoomed(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """The centre of an image, enlarged by `factor`."""
    row, column = grid(image)
    middle = [(n - 1) / 2 for n in image.shape[:2]]
    return sampled(
        image, middle[0] + (row - middle[0]) / factor, middle[1] + (column - middle[1]) / factor
    )


def streaked(image: jax.Array, angle: jax.Array, sigma: jax.Array, longest: int) -> jax.Array:
    """The image smeared along a direction, to one side, with weights exp(-t^2 / (2 sigma^2)) at
    t = 0, 1, ..., `longest` pixels."""
    row, column = grid(image)
    t = jnp.arange(longest + 1, dtype=jnp.float32)
    weights = jnp.exp(-(t**2) / (2 * sigma**2))

    def at(t: jax.Array) -> jax.Array:
        return sampled(image, row + t * jnp.sin(angle), column + t * jnp.cos(angle))

    return weighted_sum(at, t, weights / jnp.sum(weights))


def weighted_sum(
    fn: Callable[[jax.Array], jax.Array], places: jax.Array, weights: jax.Array
) -> jax.Array:
    """The sum of weights[t] fn(places[t]), in a loop. (In an unrolled sum XLA repeats the common
    inputs in each term: snow took 30 s to compile.)"""
    like = jax.eval_shape(fn, places[0])

    def add(total: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, weight = term
        return total + weight * fn(place), None

    return jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), (places, weights))[0]


def clouds(key: jax.Array, shape: tuple[int, ...], decay: ArrayLike) -> jax.Array:
    """A field rescaled to the range 0 to 1: the sum of interpolated uniform noise on grids of 2, 4,
    8, ... cells, each `decay` times weaker than the one before."""
    octaves = max(1, math.ceil(math.log2(max(shape))))
    cells = [2 ** (octave + 1) for octave in range(octaves)]
    # One draw for all grids: each would cost a second to compile.
    noise = jax.random.uniform(key, (sum((n + 1) ** 2 for n in cells),))
    total, start = jnp.zeros(shape), 0
    for octave, n in enumerate(cells):
        of_grid = noise[start : start + (n + 1) ** 2].reshape(n + 1, n + 1)
        start += of_grid.size
        rows, columns = (jnp.asarray(_interpolation(size, n)) for size in shape)
        total = total + rows @ of_grid @ columns.T / jnp.asarray(decay) ** octave
    low, high = jnp.min(total), jnp.max(total)
    return (total - low) / jnp.where(high > low, high - low, 1)


def _interpolation(size: int, cells: int) -> np.ndarray:
    """[size, cells + 1]: linear interpolation of a grid at `size` positions from end to end."""
    place = np.linspace(0, cells, size) if size > 1 else np.zeros(1)
    left = np.minimum(place.astype(int), cells - 1)
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), left] = 1 - (place - left)
    matrix[np.arange(size), left + 1] += place - left
    return matrix


def coloured(field: jax.Array, color: np.ndarray, channels: int) -> jax.Array:
    """[H, W, C]: a field times a colour; for grey images, times its brightness."""
    of = color if channels == 3 else np.full(channels, color @ LUMA)
    return field[..., None] * jnp.asarray(of, jnp.float32)
