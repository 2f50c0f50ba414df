"""Lanczos on pytrees: an orthonormal basis of a Krylov space, one array per leaf.

After j products, `Q' A Q = T` is tridiagonal with `alpha` on and `beta` beside its diagonal, and
`A Q = Q T + beta_j q_{j+1} e_j'` (Paige, 1972; Parlett, The Symmetric Eigenvalue Problem, 1998,
chapter 13). A leaf of shape `s` has a basis of shape `(m, *s)`, sharded like the leaf: no large
leaf is ever flattened (small ones may be packed: `lanczos.packing`). Values of the operator are
held in units of its first product (`sharpjax.geometry.lanczos.units`).

A basis that may not grow is restarted when it is full: Ritz vectors `Y` replace it. Then
`A Y = Y Theta + q_{j+1} s'` again has this form, with the couplings `s`, an "arrow", in the column
after them (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.lanczos import gram_schmidt, lanes, recurrence, units

Params = Any


class Lanczos(NamedTuple):
    """The state of a Lanczos process.

    Attributes:
        basis: leaves (m, *shape); row j is `q_j`, rows not reached are zero.
        vector: the next basis vector, of norm 1; the operator is applied to it next.
        unit: the unit of the values below; 0 until a product is not zero.
        alpha, beta: (m,); `beta[j]` couples `q_j` and `q_{j+1}`. It is 0 if the space spanned so
            far is invariant.
        arrow: (m,); couples the rows kept at a restart with the row `kept`; 0 elsewhere.
        row: int32, the row that `vector` will take.
        kept: int32, how many rows the last restart kept; 0 before the first restart.
        couplings: (m, l), components of `A q_j` along the l locked vectors. These are the first
            rows of the basis. The process runs in their orthogonal complement, and its Ritz values
            do not include them.
        scale: the largest `|A q_j|`, a lower bound on `|A|`.
        leak: the largest component of a product in the basis that should be zero by the
            recurrence: the visible part of the noise of products.
        seed: uint32, for vectors that replace one that has vanished.
        num_products: int32.
        finite: no product has held a NaN or an infinity.
        broken: the space was invariant, and no vector outside of it could be made.
    """

    basis: Params
    vector: Params
    unit: jax.Array
    alpha: jax.Array
    beta: jax.Array
    arrow: jax.Array
    row: jax.Array
    kept: jax.Array
    couplings: jax.Array
    scale: jax.Array
    leak: jax.Array
    seed: jax.Array
    num_products: jax.Array
    finite: jax.Array
    broken: jax.Array

    @property
    def locked(self) -> int:
        """The number of locked rows."""
        return self.couplings.shape[-1]


def num_rows(count: int) -> int:
    """The number of basis rows to allocate for `count` products."""
    return gram_schmidt.BLOCK * math.ceil(count / gram_schmidt.BLOCK)


def noise(dtype: Any) -> float:
    """The error of one product relative to `|A|`.

    It is five times machine epsilon: 6e-7 in float32, as measured on Hessian products of networks.
    """
    return 5 * float(jnp.finfo(dtype).eps)


def start(
    key: jax.Array,
    like: Params,
    rows: int,
    *,
    vector: Params | None = None,
    locked: Params | None = None,
) -> Lanczos:
    """A process at a random vector, with room for `rows` products; compiled once per structure.

    Args:
        key: random key.
        like: tree of arrays; only shapes, types and shardings matter.
        rows: number of basis rows, from `num_rows`.
        vector: start vector in place of a random one, a tree like `like`; not zero, of any norm,
            and not in the span of `locked`.
        locked: leaves (l, *shape), orthonormal. The process runs in their orthogonal complement,
            as if on `P A P`. They take l of the rows.
    """
    return _start(key, like, rows, vector, locked, recurrence.shardings(like))


def begin(
    key: jax.Array,
    like: Params,
    rows: int,
    vector: Params | None = None,
    locked: Params | None = None,
    lie: tuple[jax.NamedSharding | None, ...] | None = None,
) -> Lanczos:
    """As `start`, for use inside a trace; `lie` from `recurrence.shardings`, or None."""
    lie = (None,) * len(jax.tree.leaves(like)) if lie is None else lie
    return _start(key, like, rows, vector, locked, lie)


@functools.partial(jax.jit, static_argnames="rows")
def grow(state: Any, rows: int) -> Any:
    """The same process, with a basis or without, with room for `rows` products."""
    state = state._replace(alpha=_pad(state.alpha, rows), beta=_pad(state.beta, rows))
    if isinstance(state, recurrence.Recurrence):
        return state
    return state._replace(
        basis=jax.tree.map(lambda q: _pad(q, rows), state.basis),
        arrow=_pad(state.arrow, rows),
        couplings=_pad(state.couplings, rows),
    )


def restart(state: Lanczos, values: jax.Array, weights: jax.Array) -> Lanczos:
    """The process with its full basis replaced by some of its Ritz vectors; for use inside a trace.

    Memory: the vectors that are kept, in addition to the basis.

    Args:
        state: a process with all rows of its basis taken, and none locked.
        values, weights: (l,) and (m, l), from `ritz`: the Ritz pairs to keep.
    """
    keep, rows = weights.shape[1], len(state.alpha)

    def replace(q):
        y = combine_rows(q, weights)
        return jnp.concatenate([y, jnp.zeros_like(q[keep:])])

    return state._replace(
        basis=jax.tree.map(replace, state.basis),
        alpha=_pad(values, rows),
        beta=jnp.zeros_like(state.beta),
        arrow=_pad(state.beta[-1] * weights[-1], rows),
        row=jnp.full_like(state.row, keep),
        kept=jnp.full_like(state.kept, keep),
    )


@dataclasses.dataclass(frozen=True)
class LanczosStep:
    """One product, for `sharpjax.loops.iterate`.

    Each new vector is orthogonalised against the two before it, by the recurrence, then against the
    whole basis by one sweep of Gram-Schmidt. This sweep alone keeps `|Q'Q - I|` below 1e-6 in
    float32 over 160 steps, and prevents ghosts (copies of converged values). A second sweep runs if
    the first has shortened the vector.
    """

    def propose(self, state: Lanczos) -> Params:
        return state.vector

    def absorb(self, state: Lanczos, product: Params) -> Lanczos:
        row = lanes.of_furthest(state.num_products, state.row)
        q = state.vector
        product = jax.tree.map(lambda p, x: p.astype(x.dtype), product, q)
        unit, product = units.scale(state.unit, product)
        basis = jax.tree.map(lambda b, x: _set_row(b, x, row), state.basis, q)
        last = jnp.maximum(row - 1, 0)
        alpha = tree.vdot(q, product)
        beta = _get_row(state.beta, last)  # 0 in the first step, and the first after a restart
        w = tree.add_scaled(product, -alpha, q)
        w = tree.add_scaled(w, -beta, jax.tree.map(lambda b: _get_row(b, last), basis))

        exhausted = row + 1 >= tree.countable(q)
        # Not the row: a restart returns to it, and may have kept an earlier replacement vector.
        turn = (state.locked + state.num_products).astype(jnp.uint32)
        found = gram_schmidt.orthogonalize(
            basis,
            w,
            row=row,
            taken=jnp.hypot(alpha, beta),
            scale=state.scale,
            tiny=10 * noise(alpha.dtype),
            seed=state.seed + turn * jnp.uint32(0x9E3779B9),
            exhausted=exhausted,
        )
        invariant = exhausted | found.fresh
        vector = tree.scale(jnp.where(found.norm == 0, 0, 1 / found.norm), found.vector)
        unforeseen = found.overlaps - jnp.where(row == state.kept, state.arrow, 0)
        own = jnp.arange(len(unforeseen), dtype=jnp.int32) >= state.locked
        leak = jnp.sqrt(jnp.sum(jnp.where(own, jnp.square(unforeseen), 0)))
        return state._replace(
            basis=basis,
            vector=vector,
            unit=unit,
            alpha=_set_row(state.alpha, alpha + _get_row(found.overlaps, row), row),
            beta=_set_row(state.beta, jnp.where(invariant, 0, found.norm), row),
            row=state.row + 1,
            couplings=_set_row(state.couplings, found.overlaps[: state.locked], row),
            scale=found.scale,
            leak=jnp.maximum(state.leak, leak),
            num_products=state.num_products + 1,
            finite=state.finite & jnp.isfinite(alpha) & jnp.isfinite(found.norm),
            broken=state.broken | found.broken,
        )


def num_taken(state: Lanczos | recurrence.Recurrence) -> jax.Array:
    """How many entries of `alpha` and `beta` are in use, int32."""
    return state.row if isinstance(state, Lanczos) else state.num_products


def num_values(state: Lanczos | recurrence.Recurrence) -> jax.Array:
    """How many Ritz values there are, int32."""
    return state.row - state.locked if isinstance(state, Lanczos) else state.num_products


def ritz(state: Lanczos | recurrence.Recurrence) -> tuple[jax.Array, jax.Array]:
    """Ritz values and the weights of their vectors, by a dense eigensolver that every backend has.

    Returns:
        Values (m,), ascending, in units of the process. Values from index `num_values` on have no
        meaning, and lie above the others. Weights (m, m): column i holds the coefficients of
        vector i in the basis.
    """
    index = jnp.arange(len(state.alpha), dtype=jnp.int32)
    end = num_taken(state)
    reached = (index >= end - num_values(state)) & (index < end)
    joined = reached & (index + 1 < end)
    alpha = jnp.where(reached & state.finite, state.alpha, 0)
    beta = jnp.where(joined & state.finite, state.beta, 0)
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    if isinstance(state, Lanczos):
        arrow = jnp.where(state.finite & (state.kept < end), state.arrow, 0)
        is_column = jnp.expand_dims(index == state.kept, 0)
        column = jnp.where(is_column, jnp.expand_dims(arrow, 1), 0)
        matrix += column + column.T
    # Rows not reached are decoupled and get a value above every Gershgorin disc, so they sort last.
    bound = jnp.max(jnp.sum(jnp.abs(matrix), axis=0))
    beyond = jnp.where(bound > 0, 2 * bound, 1)
    matrix += jnp.diag(jnp.where(reached, 0, beyond))
    values, weights = jnp.linalg.eigh(matrix, symmetrize_input=False)
    return values, weights


def combine_rows(basis: Params, weights: jax.Array) -> Params:
    """`Q weights`: vectors from their coefficients; basis leaves (m, *shape), weights (m, k).

    Returns:
        Leaves (k, *shape).
    """

    def leaf(q):
        return jax.lax.dot_general(
            *(weights.astype(q.dtype), q, (((0,), (0,)), ((), ()))), precision="highest"
        )

    return jax.tree.map(leaf, basis)


@functools.partial(loops.compiled_quickly, static_argnames=("rows", "lie"))
def _start(key, like, rows, vector, locked, lie) -> Lanczos:
    # Sums with zeros of the leaf, not new zeros: they take the leaf's sharding on an Explicit mesh
    # and the axes it varies over inside shard_map.
    zeros = tree.zeros_like(tree.widen(like))
    zero = tree.vdot(zeros, zeros)
    if vector is None:
        vector = recurrence.random_unit(key, zeros)
    vector = jax.tree.map(lambda z, x: z + x.astype(z.dtype), zeros, vector)
    count = 0 if locked is None else jax.tree.leaves(locked)[0].shape[0]

    def allocate(z, first, sharding):
        basis = jnp.zeros((rows, *z.shape), z.dtype) + jnp.expand_dims(z, 0)
        if first is not None:
            basis = jax.lax.dynamic_update_slice_in_dim(basis, first.astype(z.dtype), 0, 0)
        if sharding is None:
            return basis
        lies = jax.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
        return jax.lax.with_sharding_constraint(basis, lies)

    leaves, treedef = jax.tree.flatten(zeros)
    firsts = [None] * len(leaves) if locked is None else jax.tree.leaves(locked)
    basis = [allocate(*x) for x in zip(leaves, firsts, lie, strict=True)]
    basis = jax.tree.unflatten(treedef, basis)
    if count:
        for _ in range(2):
            vector, _ = gram_schmidt.sweep(basis, vector, jnp.full(rows, zero), count - 1)
    vector = tree.scale(1 / tree.norm(vector), vector)
    none = zero.astype(jnp.int32)
    seed = zero.astype(jnp.uint32) + jnp.sum(jax.random.key_data(key), dtype=jnp.uint32)
    return Lanczos(
        basis=basis,
        vector=vector,
        unit=zero,
        alpha=jnp.full(rows, zero),
        beta=jnp.full(rows, zero),
        arrow=jnp.full(rows, zero),
        row=none + count,
        kept=none,
        couplings=jnp.full((rows, count), zero),
        scale=zero,
        leak=zero,
        seed=seed,
        num_products=none,
        finite=zero == 0,
        broken=zero != 0,
    )


def _get_row(x, row):
    return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)


def _set_row(x, value, row):
    return jax.lax.dynamic_update_index_in_dim(x, value, row, 0)


def _pad(x, rows):
    widths = [(0, rows - x.shape[0], 0)] + [(0, 0, 0)] * (x.ndim - 1)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)
