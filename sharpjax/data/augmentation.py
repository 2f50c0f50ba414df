"""Processing of images on the device: random crops, mirroring, normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax.errors import UserError


def augment(
    key: jax.Array, image: jax.Array, *, pad: int, flip: bool, fill: ArrayLike = 0
) -> jax.Array:
    """Crop each image at random after padding, and mirror half of them.

    Every image has its own offset, one of (2 pad + 1)^2, and its own coin flip. Crop and mirror are
    one gather: 0.2 ms for 128 CIFAR images on one CPU core, against 4 ms for selecting among
    shifted copies and 0.3 ms for a vmapped `dynamic_slice`.

    Args:
        key: a new one for each batch.
        image: uint8 [B, H, W, C].
        pad: pixels on each side; 0: no crop. Static.
        flip: whether to mirror left and right. Static.
        fill: value of the padding: 0 (black), as in the usual CIFAR recipe; another grey level; or
            a pixel, uint8 [C], such as `data.padding_value` returns.

    Returns:
        uint8 [B, H, W, C].

    Raises:
        UserError: `image` is not uint8 [B, H, W, C], `pad` is negative, or `fill` is not a pixel.

    >>> image = jnp.arange(9, dtype=jnp.uint8).reshape(1, 3, 3, 1)
    >>> augment(jax.random.key(0), image, pad=1, flip=True).shape
    (1, 3, 3, 1)
    """
    if image.ndim != 4 or image.dtype != jnp.uint8:
        raise UserError(
            f"data.augment: image is {image.dtype}{list(image.shape)}; give uint8 [B, H, W, C], "
            "before normalisation."
        )
    if pad < 0:
        raise UserError(f"data.augment: pad={pad}; give 0 or more pixels.")
    fill = _pixel(fill, image.shape[-1])
    if pad == 0 and not flip:
        return image
    num, height, width, _ = image.shape
    offset_key, flip_key = jax.random.split(key)
    offset = jax.random.randint(offset_key, (num, 2), 0, 2 * pad + 1, dtype=jnp.int32)
    row = jnp.arange(height, dtype=jnp.int32)[None, :]
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    if flip:
        coin = jax.random.bernoulli(flip_key, 0.5, (num, 1))
        column = jnp.where(coin, width - 1 - column, column)
    row, column = row + offset[:, :1], column + offset[:, 1:]  # [B, H], [B, W]
    # Bytes wrap around, so adding `fill` back restores the image exactly.
    padded = jnp.pad(image - fill, ((0, 0), (pad, pad), (pad, pad), (0, 0))) + fill
    example = jnp.arange(num, dtype=jnp.int32)[:, None, None]
    # Every index is in range by construction: no need to clip or fill.
    return padded.at[example, row[:, :, None], column[:, None, :]].get(mode="promise_in_bounds")


def _pixel(fill: ArrayLike, channels: int) -> jax.Array:
    """`fill` as uint8 [1, 1, 1, C]."""
    if isinstance(fill, int) and 0 <= fill < 256:
        fill = np.uint8(fill)
    pixel = jnp.asarray(fill)
    if pixel.dtype != jnp.uint8 or pixel.shape not in ((), (channels,)):
        raise UserError(
            f"data.augment: fill is {pixel.dtype}{list(pixel.shape)} {fill}; give a whole number "
            f"from 0 to 255, or uint8 [{channels}], a number for each channel."
        )
    return jnp.broadcast_to(pixel, (1, 1, 1, channels))


def normalize(image: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """(image / 255 - mean) / std as float32: uint8 [..., C], with mean and std [C].

    Raises:
        UserError: `image` is not uint8, or `mean` and `std` are not one number for each channel.

    >>> float(normalize(jnp.full((1, 1, 1), 255, jnp.uint8), [0.5], [0.25])[0, 0, 0])
    2.0
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if image.dtype != jnp.uint8 or not mean.shape == std.shape == image.shape[-1:]:
        raise UserError(
            f"data.normalize: image is {image.dtype}{list(image.shape)}, mean {list(mean.shape)}, "
            f"std {list(std.shape)}; give uint8 [..., C], [C] and [C]."
        )
    shape = (1,) * (image.ndim - 1) + mean.shape
    scaled = image.astype(jnp.float32) / 255.0
    return (scaled - mean.reshape(shape)) / std.reshape(shape)
