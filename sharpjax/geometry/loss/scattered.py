"""Which examples a check uses: spread over the batch, at irregular distances.

Data often have a period: alternating classes, pairs of views, padding at the end of each packed
sequence. Examples at regular distances, or pairs of them, could then all be of one kind. So the
places are drawn at random, but they are the same at each call.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

_PARTS = 1024  # equally spaced points of a stretch, from which a place is drawn


def scattered(count: Any, most: int) -> Any:
    """`most` places out of `count`, ascending: a random one in each of `most` equal stretches.

    Args:
        count: at least `most`; a number, possibly traced.

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
    """Groups of `size` places, from about `most` places out of `count`; shape [groups, size].

    The places are put on a circle in random order, and the groups are consecutive windows of it. If
    the groups are few or small, there are as many again, shifted by half a window. Then, if any two
    of the places differ in kind, some group has both kinds.

    >>> groups(4, 2, 16).tolist()
    [[2, 0], [1, 3], [0, 1], [3, 2]]
    """
    places = scattered(count, min(count, max(most, size)))
    circle = np.random.default_rng(0).permutation(places)
    starts = np.arange(0, len(circle), size)
    if size < 4 or len(starts) < 8:
        starts = np.concatenate([starts, starts + max(1, size // 2)])
    return circle[(starts[:, None] + np.arange(size)) % len(circle)]
