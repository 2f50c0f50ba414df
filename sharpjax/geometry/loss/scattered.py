"""Which examples a check looks at: spread over the batch, and in no regular order.

Data often have a period: classes in turn, two views one after the other, padding at the end of each
packed sequence. Examples at regular distances, or pairs of them, would all be of one kind there.
The places are drawn at random, the same at each call.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

_PARTS = 1024  # of a stretch, among which a place is drawn


def scattered(count: Any, most: int) -> Any:
    """`most` places of `count`, ascending: one at random in each of as many equal stretches.

    Args:
        count: at least `most`; a number, or a traced one.

    >>> scattered(5, 5).tolist(), scattered(1000, 3).tolist()
    ([0, 1, 2, 3, 4], [269, 361, 725])
    """
    xp = np if isinstance(count, int) else jnp
    number = np.arange(most + 1, dtype=np.int64 if xp is np else np.int32)
    edges = number * (count // most) + number * (count % most) // most  # without overflow
    inside = np.random.default_rng(most).integers(0, _PARTS, most, dtype=np.int32)
    width = edges[1:] - edges[:-1]
    return edges[:-1] + inside * (width // _PARTS) + inside * (width % _PARTS) // _PARTS


def groups(count: int, size: int, most: int) -> np.ndarray:
    """Groups of `size` of some `most` places of `count`, [groups, size].

    They are windows of a circle of the places in random order. Where groups are few or small, there
    are as many again, half a window further: then, wherever two of the places differ in kind, one
    group has both kinds.

    >>> groups(4, 2, 16).tolist()
    [[2, 0], [1, 3], [0, 1], [3, 2]]
    """
    places = scattered(count, min(count, max(most, size)))
    circle = np.random.default_rng(0).permutation(places)
    starts = np.arange(0, len(circle), size)
    if size < 4 or len(starts) < 8:
        starts = np.concatenate([starts, starts + max(1, size // 2)])
    return circle[(starts[:, None] + np.arange(size)) % len(circle)]
