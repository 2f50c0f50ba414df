"""Images of another size, in exact arithmetic."""

import numpy as np

BLOCK = 500  # images in float64 beside the result


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Images of `size` x `size` pixels, each the mean of the area that it covers.

    A new pixel covers H / S by W / S old ones, and counts each by the area of its part within;
    means are rounded to the nearest grey level, a half up. So an integer factor down is the mean of
    blocks, an integer factor up repeats pixels, and nothing rings. Numerators are integers below
    2^53: exact, and the same on every machine.

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
    """How much of each new pixel each old one covers, [new, old], where a row of pixels has length
    old * new: integers in float64, `old` in each row.

    >>> overlaps(3, 2).tolist()
    [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """
    first, start = np.arange(new)[:, None] * old, np.arange(old)[None, :] * new
    common = np.minimum(first + old, start + new) - np.maximum(first, start)
    return np.maximum(common, 0).astype(np.float64)
