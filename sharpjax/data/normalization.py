"""The mean and deviation with which images are normalised, and the padding of crops."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpjax.errors import UserError, unknown

NORMALIZATIONS = ("measured", "mean_std", "half", "none")
PADDINGS = ("zero", "mean")


def statistics(
    normalization: str, image: np.ndarray, published: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [C], for `data.normalize`.

    Args:
        normalization: 'measured': `channel_statistics` of `image`; 'mean_std': `published`;
            'half': 0.5 and 0.5, so that grey levels become -1 to 1; 'none': 0 and 1, so that
            they become 0 to 1.
        image: uint8 [N, H, W, C], the training images.
        published: mean and deviation of each channel of the whole training split.

    Raises:
        UserError: an unknown normalisation.

    >>> statistics("half", np.zeros((1, 8, 8, 1), np.uint8), ((0.3,), (0.4,)))[0].tolist()
    [0.5]
    """
    channels = image.shape[-1]
    match normalization:
        case "measured":
            return channel_statistics(image)
        case "mean_std":
            mean, std = (np.asarray(numbers, np.float32) for numbers in published)
            return mean, std
        case "half":
            return np.full(channels, 0.5, np.float32), np.full(channels, 0.5, np.float32)
        case "none":
            return np.zeros(channels, np.float32), np.ones(channels, np.float32)
    raise unknown("normalization", normalization, NORMALIZATIONS)


def channel_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [C], of uint8 [N, H, W, C] images / 255.

    They are computed from counts of the 256 values, in exact integers, and so are the same on every
    machine. A standard deviation is at least one grey level, so that a constant channel can be
    divided by it.

    >>> mean, std = channel_statistics(np.array([[[[0]], [[255]]]], np.uint8))
    >>> float(mean[0]), float(std[0])
    (0.5, 0.5)
    """
    level = np.arange(256, dtype=np.int64)
    mean, std = [], []
    for channel in range(image.shape[-1]):
        count = np.zeros(256, np.int64)
        for start in range(0, len(image), 1_000):  # bincount needs eight bytes for each pixel
            count += np.bincount(image[start : start + 1_000, ..., channel].ravel(), minlength=256)
        num, total, squares = int(count.sum()), int(count @ level), int(count @ level**2)
        mean.append(total / (255 * num))
        std.append(max(math.sqrt((num * squares - total**2) / num**2), 1.0) / 255)
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def padding_value(padding: str, mean: ArrayLike) -> jax.Array:
    """The value of padding pixels, uint8 [C], for `data.augment`.

    'zero' is black. 'mean' is the grey level nearest to `mean`, which normalises to about 0: 128
    for a mean of 0.5. `mean` may be traced.

    Raises:
        UserError: an unknown padding.

    >>> padding_value("mean", np.float32([0.5])).tolist()
    [128]
    """
    if padding not in PADDINGS:
        raise unknown("padding", padding, PADDINGS)
    return jnp.rint(255 * jnp.asarray(mean) * (padding == "mean")).astype(jnp.uint8)


def check(normalization: str, padding: str) -> None:
    """Check the names of a normalisation and a padding.

    Raises:
        UserError: a name is unknown, or the padding is the mean of images that are not centred.
    """
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)
    if padding not in PADDINGS:
        raise unknown("padding", padding, PADDINGS)
    if (normalization, padding) == ("none", "mean"):
        raise UserError(
            "data.Images: normalization='none' takes no mean away, so padding='mean' would be "
            "'zero'; give that, or another normalization."
        )
