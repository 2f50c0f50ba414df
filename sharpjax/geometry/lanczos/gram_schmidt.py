"""Gram-Schmidt on pytrees: orthogonalises a vector against a basis, with one product per leaf."""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos.lanes import any_lane

Params = Any

BLOCK = 4  # a basis has a multiple of this many rows; on CPU it is swept in blocks of this size
_DGKS = 0.7  # a sweep that shortens a vector below this share is repeated (Daniel et al., 1976)


class Orthogonal(NamedTuple):
    """A vector that is being orthogonalised against a basis.

    Attributes:
        vector, norm: the vector, not normalised, and its norm.
        overlaps: (m,), the components along the basis that were removed from the given vector.
        scale: the largest norm so far of a given vector before anything was removed from it.
        sweeps: number of sweeps of this vector.
        fresh: nothing was left of the given vector, so another one has replaced it.
        broken: nothing was left of the replacement either.
        more: a further sweep is needed.
    """

    vector: Params
    norm: jax.Array
    overlaps: jax.Array
    scale: jax.Array
    sweeps: jax.Array
    fresh: jax.Array
    broken: jax.Array
    more: jax.Array


def orthogonalize(
    basis: Params,
    vector: Params,
    *,
    row: jax.Array,
    taken: jax.Array,
    scale: jax.Array,
    tiny: float,
    seed: jax.Array,
    exhausted: jax.Array,
) -> Orthogonal:
    """Orthogonalise a vector against a basis; if nothing is left of it, replace it by another.

    One sweep, and a second one if the first has shortened the vector (Daniel, Gragg, Kaufman and
    Stewart, 1976). The norm before a sweep is the root of `norm^2 + |overlaps|^2`, which takes no
    pass over the vector. All sweeps run in one loop, so that a sweep is compiled once.

    Args:
        basis: leaves (m, *shape), orthonormal rows or zero; m is a multiple of `BLOCK`.
        vector: a tree of leaves of `shape`.
        row: index of the last row that is not zero.
        taken: norm of what was removed from the vector before this call.
        scale: the largest norm so far of a vector before anything was removed.
        tiny: a vector shorter than this share of `scale` counts as vanished.
        seed: uint32, seed of the replacement vector; different in each call.
        exhausted: the basis spans the whole space, so that no vector can be a replacement.
    """
    dtype = taken.dtype
    zeros = jnp.zeros_like(tree.vdot(vector, vector), shape=_num_rows(basis))

    def step(now: Orthogonal) -> Orthogonal:
        vector, overlaps = sweep(basis, now.vector, zeros, row)
        norm = tree.norm(vector)
        before = jnp.hypot(norm, jnp.sqrt(jnp.sum(jnp.square(overlaps))))
        first = ~now.fresh & (now.sweeps == 0)
        scale = jnp.where(first, jnp.maximum(now.scale, jnp.hypot(before, taken)), now.scale)
        again = (norm < _DGKS * before) & (now.sweeps < jnp.where(now.fresh, 2, 1))
        gone = norm <= tiny * jnp.where(now.fresh, jnp.ones((), dtype), scale)
        vanished = now.more & gone & ~again & ~exhausted
        replace = vanished & ~now.fresh
        vector = jax.lax.cond(
            any_lane(replace),
            lambda: _select(replace, _unrelated(vector, seed), vector),
            lambda: vector,
        )
        return Orthogonal(
            vector=vector,
            norm=norm,
            overlaps=now.overlaps + jnp.where(now.fresh, 0, overlaps),
            scale=scale,
            sweeps=jnp.where(replace, 0, now.sweeps + 1),
            fresh=now.fresh | replace,
            broken=vanished & now.fresh,
            more=now.more & (again | replace),
        )

    yes = zeros[0] == 0
    start = Orthogonal(
        vector=vector,
        norm=zeros[0],
        overlaps=zeros,
        scale=scale,
        sweeps=zeros[0].astype(jnp.int32),
        fresh=~yes,
        broken=~yes,
        more=yes,
    )
    return jax.lax.while_loop(lambda now: any_lane(now.more), step, start)


def _unrelated(like, seed):
    """A unit vector that does not depend on the operator and differs for each seed.

    Its entries are `cos(2 pi h)`, with h a hash of their position. That is as good as random here,
    and compiles far faster than a random generator for each leaf.
    """
    leaves, treedef = jax.tree.flatten(like)
    found = []
    for i, leaf in enumerate(leaves):
        place = jnp.broadcast_to(seed + jnp.uint32(i * 0x85EBCA6B % 2**32), leaf.shape)
        for axis, length in enumerate(leaf.shape):
            place = place * jnp.uint32(length % 2**32)
            place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        angle = 2 * math.pi * 2**-32 * hashed(place).astype(leaf.dtype)
        found.append(jnp.zeros_like(leaf) + jnp.cos(angle))
    vector = jax.tree.unflatten(treedef, found)
    return tree.scale(1 / tree.norm(vector), vector)


def hashed(x):
    """A 32-bit hash: Appleby's finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _select(condition, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def sweep(
    basis: Params, vector: Params, zeros: jax.Array, row: jax.typing.ArrayLike
) -> tuple[Params, jax.Array]:
    """`x - Q Q'x` and `Q'x` for a vector x.

    Args:
        basis: leaves (m, *shape), orthonormal rows or zero; m is a multiple of `BLOCK`.
        vector: a tree of leaves of `shape`.
        zeros: (m,), zeros.
        row: index of the last row that is not zero; the same in all lanes.
    """
    # On CPU a few rows at a time; each block is read once, and acts on the vector that the blocks
    # before it leave (modified Gram-Schmidt). Inside a loop, XLA copies the whole basis before a
    # product with all of it: 48 rows of 670,000 numbers took 39 ms this way, and 13 ms in blocks.
    return jax.lax.platform_dependent(
        *(basis, vector, zeros, jnp.asarray(row, jnp.int32)),
        cpu=_sweep_blocks,
        default=_sweep_all,
    )


def _sweep_blocks(basis, w, zeros, row):
    def sweep(i, state):
        w, overlaps = state
        block = jax.tree.map(lambda q: jax.lax.dynamic_slice_in_dim(q, i * BLOCK, BLOCK), basis)
        w, found = _sweep_rows(block, w, overlaps.dtype)
        return w, jax.lax.dynamic_update_slice_in_dim(overlaps, found, i * BLOCK, 0)

    return jax.lax.fori_loop(0, row // BLOCK + 1, sweep, (w, zeros))


def _sweep_all(basis, w, zeros, row):
    del row
    return _sweep_rows(basis, w, zeros.dtype)


def _sweep_rows(block, w, dtype):
    pairs = zip(jax.tree.leaves(block), jax.tree.leaves(w), strict=True)
    terms = [_project(q, x).astype(dtype) for q, x in pairs]
    found = functools.reduce(operator.add, terms)
    return jax.tree.map(lambda q, x: _subtract(q, found.astype(q.dtype), x), block, w), found


def _project(q, x):
    """`Q'x` for one leaf."""
    axes = tuple(range(1, q.ndim))
    if any(jax.typeof(x).sharding.spec):
        return jnp.sum(
            q * jnp.expand_dims(x, 0), axis=axes
        )  # a contraction over Explicit axes is refused
    return jax.lax.dot_general(q, x, ((axes, tuple(range(x.ndim))), ((), ())), precision="highest")


def _subtract(q, overlaps, x):
    """`x - Q overlaps` for one leaf."""
    return x - jnp.sum(q * overlaps.reshape(-1, *(1,) * x.ndim), axis=0)


def _num_rows(basis) -> int:
    return jax.tree.leaves(basis)[0].shape[0]
