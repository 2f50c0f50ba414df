"""Brightness, contrast, colour, compression and geometry."""

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.data.corruption import filters

# The quantisation tables of JPEG, ITU-T T.81, annex K, for brightness and for colour.
_BRIGHTNESS = np.array(
    """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56
    14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99""".split(),
    float,
).reshape(8, 8)
_COLOUR = np.full((8, 8), 99.0)
_COLOUR[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
QUALITY = (80, 65, 58, 50, 40)


def brightness(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """The largest channel rises by c, to at most 1; hue and saturation stay the same."""
    del key
    added = jnp.asarray(np.array([0.05, 0.10, 0.15, 0.20, 0.30], np.float32))[i]
    value = jnp.max(x, axis=-1, keepdims=True)
    after = jnp.clip(value + added, 0, 1)
    return jnp.where(value > 0, x * after / jnp.where(value > 0, value, 1), after)


def contrast(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """c (x - mean) + mean, with the mean of each channel."""
    del key
    factor = jnp.asarray(np.array([0.75, 0.5, 0.4, 0.3, 0.15], np.float32))[i]
    mean = jnp.mean(x, axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


def saturate(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Changes the saturation s (HSV) to a s + b, at most 1; grey stays grey. (The original lowers
    it at the first severities.)"""
    del key
    table = np.array([(1.2, 0.02), (1.4, 0.05), (1.7, 0.08), (2.0, 0.12), (2.5, 0.20)], np.float32)
    factor, added = jnp.asarray(table)[i]
    value = jnp.max(x, axis=-1, keepdims=True)
    spread = value - jnp.min(x, axis=-1, keepdims=True)
    is_grey = spread == 0
    saturation = spread / jnp.where(is_grey, 1, value)
    after = jnp.clip(saturation * factor + added, 0, 1)
    return jnp.where(is_grey, x, value - (value - x) * after / jnp.where(is_grey, 1, saturation))


def pixelate(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Resizes to 95, 90, 85, 75 or 65 % of the pixels along each side, and back."""
    del key
    shares = (0.95, 0.9, 0.85, 0.75, 0.65)
    rows, columns = (
        np.stack([filters.box_matrix(n, max(int(n * share), 1)) for share in shares])
        for n in x.shape[:2]
    )
    return filters.separable(x, jnp.asarray(rows)[i], jnp.asarray(columns)[i])


def elastic_transform(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Pixels are taken from smoothly displaced positions. The root mean square displacement is `a`
    pixels in each direction."""
    amounts = filters.scale_of(x) * np.array([0.3, 0.5, 0.7, 0.95, 1.25], np.float32)
    height, width = x.shape[:2]
    noise = jax.random.normal(key, (height, width, 2))
    rows, columns = (filters.gaussian_matrix(n, 2 * filters.scale_of(x)) for n in (height, width))
    moves = filters.separable(noise, rows, columns)
    size = jnp.sqrt(jnp.mean(moves**2, axis=(0, 1)))
    moves = jnp.asarray(amounts)[i] * moves / jnp.where(size > 0, size, 1)
    row, column = filters.grid(x)
    return filters.sampled(x, row + moves[..., 0], column + moves[..., 1])


def jpeg_compression(key: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
    """Baseline JPEG at quality 80, 65, 58, 50 or 40, with colours at half the resolution."""
    del key
    tables = jnp.asarray(np.stack([[_scaled(t, q) for t in (_BRIGHTNESS, _COLOUR)]
                                   for q in QUALITY]), jnp.float32)[i]  # fmt: skip
    height, width, channels = x.shape
    pixels = jnp.round(x * 255)
    padding = ((0, -height % 16), (0, -width % 16), (0, 0))
    padded = jnp.pad(pixels, padding, mode="edge")
    if channels != 3:
        planes = [_quantized(padded[..., c], tables[0]) for c in range(channels)]
        return jnp.stack(planes, -1)[:height, :width] / 255
    r, g, b = padded[..., 0], padded[..., 1], padded[..., 2]
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    blue = 128 + (b - luma) * (0.5 / (1 - 0.114))
    red = 128 + (r - luma) * (0.5 / (1 - 0.299))
    luma = _quantized(luma, tables[0])
    blue, red = (_doubled(_quantized(_halved(c), tables[1])) - 128 for c in (blue, red))
    r = luma + red * ((1 - 0.299) / 0.5)
    b = luma + blue * ((1 - 0.114) / 0.5)
    g = (luma - 0.299 * r - 0.114 * b) / 0.587
    return jnp.stack([r, g, b], -1)[:height, :width] / 255


def _scaled(table: np.ndarray, quality: int) -> np.ndarray:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * percent + 50) // 100, 1, 255)


def _quantized(plane: jax.Array, table: jax.Array) -> jax.Array:
    """A plane [H, W] of 8 x 8 blocks, with cosine coefficients rounded to multiples of a table."""
    k, n = np.arange(8)[:, None], np.arange(8)[None, :]
    basis = np.cos(np.pi * (2 * n + 1) * k / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)
    d, high = jnp.asarray(basis, jnp.float32), jax.lax.Precision.HIGHEST
    height, width = plane.shape
    blocks = jnp.round(plane).reshape(height // 8, 8, width // 8, 8) - 128
    found = jnp.einsum("ki,aibj,lj->akbl", d, blocks, d, precision=high)
    kept = jnp.round(found / table[None, :, None, :]) * table[None, :, None, :]
    back = jnp.einsum("ki,akbl,lj->aibj", d, kept, d, precision=high).reshape(height, width)
    return jnp.clip(jnp.round(back + 128), 0, 255)


def _halved(plane: jax.Array) -> jax.Array:
    height, width = plane.shape
    return jnp.mean(plane.reshape(height // 2, 2, width // 2, 2), axis=(1, 3))


def _doubled(plane: jax.Array) -> jax.Array:
    """A plane enlarged by 2. Each new pixel is 3/4 of the nearest old one and 1/4 of the next,
    along both axes, as in libjpeg."""
    for axis in (0, 1):
        size = plane.shape[axis]
        before = jnp.take(plane, jnp.maximum(jnp.arange(size) - 1, 0), axis=axis)
        after = jnp.take(plane, jnp.minimum(jnp.arange(size) + 1, size - 1), axis=axis)
        pairs = jnp.stack([0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after], axis + 1)
        shape = [n * (1 + (a == axis)) for a, n in enumerate(plane.shape)]
        plane = pairs.reshape(shape)
    return plane
