"""Resizing of images, in exact arithmetic."""

import numpy as np

BLOCK = 500  # images held in float64 at a time


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Images of `size` x `size` pixels, each pixel the mean of the area that it covers.

    A new pixel covers H / S by W / S old ones, and weights each by the area that it covers. Means
    are rounded to the nearest grey level, a half up. Reducing by an integer factor thus takes the
    mean of blocks, and enlarging by an integer factor repeats pixels. There is no ringing.
    Numerators are integers below 2^53, so the result is exact and the same on every machine.

    Args:
        image: uint8 [N, H, W, C].
        size: S, positive.

    Returns:
        uint8 [N, S, S, C].

    >>> resized(np.uint8([0, 1, 2, 3]).reshape(1, 2, 2, 1), 1).tolist()  # 1.5, rounded
    [[[[2]]]]
    """
    num, height, width, channels = image.shape
    rows, columns = overlaps(height, size), overlaps(width, size)
    area = height * width
    result = np.empty((num, size, size, channels), np.uint8)
    for start in range(0, num, BLOCK):
        total = np.tensordot(rows, image[start : start + BLOCK].astype(np.float64), (1, 1))
        total = np.tensordot(columns, total, (1, 2))  # [column, row, image, channel]
        exact = total.astype(np.int64).transpose(2, 1, 0, 3)
        result[start : start + BLOCK] = (2 * exact + area) // (2 * area)
    return result


def overlaps(old: int, new: int) -> np.ndarray:
    """The overlap of each new pixel with each old one, [new, old], in units in which the row of
    pixels has length old * new. The entries are integers in float64; each row has the sum `old`.

    >>> overlaps(3, 2).tolist()
    [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """
    first, start = np.arange(new)[:, None] * old, np.arange(old)[None, :] * new
    common = np.minimum(first + old, start + new) - np.maximum(first, start)
    return np.maximum(common, 0).astype(np.float64)
