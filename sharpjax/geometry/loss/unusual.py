"""Examples that stand out in a data set by a mask, or by a label that means none.

A loss that is not a mean over examples may still look like one on examples without masked entries.
So a check on a few examples of the data should include unusual ones beside ordinary ones. They are
found on the host, from the numbers alone: no loss is called, and nothing is compiled.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax.geometry.loss.scattered import scattered

Batch = Any

_MOST_BYTES = 2**26  # bytes read at most; of larger data, a share of the examples, `scattered`
_RARE = 3  # least ratio of the largest distance from the median to the mean distance


def unusual(batches: Sequence[Batch], seen: Sequence[Batch], most: int) -> list[Batch]:
    """Up to two batches of `most` examples, half of them unusual and half ordinary.

    For each array of integers or booleans, or of floats that are 0 and 1, two shares are computed
    for every example: of its numbers that are 0, and of those below 0. Shares that are constant
    over the examples of `seen`, but not over all, come first; then those that rarely differ from
    their median. The list is empty if nothing stands out, if an array is not on the host, or if
    `most` is less than 2.

    >>> mask, x = np.arange(100) != 57, np.arange(100)
    >>> few = unusual([{"mask": mask, "x": x}], [{"mask": mask[:9], "x": x[:9]}], 4)
    >>> few[0]["mask"].tolist(), few[0]["x"].tolist()
    ([False, False, True, True], [57, 57, 0, 99])
    """
    if most < 2 or not all(map(_is_on_host, jax.tree.leaves((batches, seen)))):
        return []
    columns, known = _columns(batches), _columns(seen)
    step = max(1, -(-sum(x.nbytes for column in columns for x in column) // _MOST_BYTES))
    found = []
    for column, other in zip(columns, known, strict=True):
        if _is_flag(other[0]):
            for all_shares, shares in zip(_shares(column, step), _shares(other, 1), strict=True):
                distance = np.abs(all_shares - np.sort(all_shares)[len(all_shares) // 2])
                if distance.any():
                    rarity = distance.max() / distance.mean()
                    found.append((np.ptp(shares) == 0, rarity, distance))
    found.sort(key=lambda each: each[:2], reverse=True)
    places = [(b, r) for b, x in enumerate(columns[0]) for r in _places(len(x), step)]
    few = []
    for is_new, rarity, distance in found[:2]:
        if is_new or rarity >= _RARE:
            kinds = 2 * distance >= distance.max(), distance == 0
            rows = [places[i] for kind in kinds for i in _some(np.flatnonzero(kind), most // 2)]
            taken = [np.stack([column[b][r] for b, r in rows]) for column in columns]
            few.append(jax.tree.unflatten(jax.tree.structure(batches[0]), taken))
    return few


def _columns(batches) -> list[list[np.ndarray]]:
    """For each leaf, its arrays in all batches."""
    leaves = [jax.tree.leaves(batch) for batch in batches]
    return [[np.asarray(batch[i]) for batch in leaves] for i in range(len(leaves[0]))]


def _is_on_host(x) -> bool:
    if not isinstance(x, jax.Array):
        return isinstance(x, np.ndarray)
    if isinstance(x, Tracer) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return False
    devices = x.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _is_flag(x: np.ndarray) -> bool:
    if not x.size:
        return False
    if x.dtype == bool or np.issubdtype(x.dtype, np.integer):
        return True
    return bool(((x == 0) | (x == 1)).all())


def _shares(column: list[np.ndarray], step: int) -> Iterator[np.ndarray]:
    """For each example, the share of its numbers that are 0, then the share of those below 0."""
    some = [x if step == 1 else x[_places(len(x), step)] for x in column]
    rows = [x.reshape(len(x), -1) for x in some]
    yield np.concatenate([np.mean(x == 0, axis=1) for x in rows])
    if rows[0].dtype != bool:
        yield np.concatenate([np.mean(x < 0, axis=1) for x in rows])


def _places(count: int, step: int) -> np.ndarray:
    """The places of one in `step` rows, scattered."""
    return scattered(count, -(-count // step))


def _some(places: np.ndarray, count: int) -> np.ndarray:
    """`count` of the places, spread evenly; if there are fewer, some are repeated, so that one
    compiled program serves."""
    chosen = np.linspace(0, len(places) - 1, count).round()
    return places[chosen.astype(int)]
