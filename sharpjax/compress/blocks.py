"""Blocks of an array that share a scale: the whole array, its channels, or tiles of an axis.

An array of shape [n_1, ..] is cut into blocks of shape [b_1, ..], with each b_i a divisor of n_i.
Values for the blocks are an array of shape [n_1 / b_1, ..], so the two shapes determine the blocks.
One value for each channel is the case b_i = 1 along the channel axis.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from sharpjax.errors import UserError

Axis = int | Sequence[int] | None


def shape_of_blocks(
    caller: str, shape: Sequence[int], axis: Axis, tiles: Mapping[int, int] | None = None
) -> tuple[int, ...]:
    """The shape of one block: 1 along channel axes, the tile along tiled axes, else full length.

    Args:
        caller: the name used in error messages.
        shape: shape of the array.
        axis: the axis or axes of which each index has its own block; None for no axis.
        tiles: the length of a tile, by axis.

    Raises:
        UserError: an axis that the array lacks or that is named twice; a tile that does not divide
            the length of its axis.

    >>> shape_of_blocks("quantise", (6, 4), -1, {0: 3})
    (3, 1)
    """
    lengths = {} if axis is None else dict.fromkeys(_axes(axis), 1)
    given = [*lengths, *(tiles or {})]
    lengths |= dict(tiles or {})
    blocks = list(shape)
    places = [_place(caller, one, shape) for one in given]
    if len(set(places)) < len(given):
        raise UserError(f"{caller}: axis={axis} and tiles={dict(tiles or {})} name an axis twice.")
    for one, place in zip(given, places, strict=True):
        length, size = lengths[one], shape[place]
        if not isinstance(length, int) or length < 1 or size % length:
            raise UserError(
                f"{caller}: tiles={{{one}: {length}}} do not cut axis {one} of an array "
                f"{list(shape)} into equal parts; give a divisor of {size}."
            )
        blocks[place] = length
    return tuple(blocks)


def _axes(axis: int | Sequence[int]) -> list[int]:
    return [*axis] if isinstance(axis, Sequence) else [axis]


def _place(caller: str, axis: int, shape: Sequence[int]) -> int:
    try:
        place = operator.index(axis)
    except TypeError:
        place = len(shape)
    if isinstance(axis, bool) or not -len(shape) <= place < len(shape):
        raise UserError(
            f"{caller}: axis {axis!r} of an array {list(shape)}, which has {len(shape)}; give "
            "whole numbers, or None for one scale."
        )
    return place % len(shape)


def reduce(fn: Callable[..., jax.Array], x: jax.Array, blocks: Sequence[int]) -> jax.Array:
    """Reduces each block by `fn(.., axis=)`, such as `jnp.max`: an array with one value per block.

    >>> reduce(jnp.sum, jnp.arange(6.0).reshape(2, 3), (2, 1)).tolist()
    [[3.0, 5.0, 7.0]]
    """
    parts = [part for n, b in zip(x.shape, blocks, strict=True) for part in (n // b if b else 1, b)]
    return fn(x.reshape(parts), axis=tuple(range(1, len(parts), 2)))


def expand(values: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Values of the blocks, repeated to the shape of the array.

    >>> expand(jnp.array([[1.0, 2.0]]), (1, 4)).tolist()
    [[1.0, 1.0, 2.0, 2.0]]
    """
    counts = values.shape
    sizes = [n // c if c else 1 for n, c in zip(shape, counts, strict=True)]
    apart = [part for c in counts for part in (c, 1)]
    full = [part for c, b in zip(counts, sizes, strict=True) for part in (c, b)]
    return jnp.broadcast_to(values.reshape(apart), full).reshape(shape)


def count(shape: Sequence[int], blocks: Sequence[int]) -> int:
    """The number of blocks.

    >>> count((6, 4), (3, 1))
    8
    """
    return math.prod(n // b if b else 1 for n, b in zip(shape, blocks, strict=True))
