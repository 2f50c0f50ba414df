"""XTrace: each column of a sketch probes the complement of the space that the others span.

Let `Y = A Omega = Q R` have k columns. Leaving out column i leaves the space of `Q (I - s_i s_i')`,
where `s_i` is the normalised column i of `R^-T`. The trace in that space is known, and the column
left out is a probe of its complement. The estimate is the mean over i (Epperly, Tropp and Webber,
arXiv 2301.07825). For symmetric A everything follows from the matrices `R`, `H = Q'AQ` and
`W = Q'Omega`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.estimators.request import Request
from sharpjax.geometry.lanczos import gram_schmidt, krylov, lanes, recurrence, units
from sharpjax.geometry.operators.algebra import linearize

Params = Any

LEAST_COLUMNS = 16  # columns needed before the error is trusted
# The standard error over the spread of the estimates that leave one column out. These depend on
# each other, so their spread is too small; `docs/geometry.md` says what this factor covers.
_FACTOR = 2


class Columns(NamedTuple):
    """The state of a run of XTrace.

    Attributes:
        basis, tests: `Q` and `Omega`, leaves (m, *shape).
        vector: the next vector to multiply, a column of `Omega` or of `Q`.
        test: the last column of `Omega`.
        is_test: whether `vector` is a column of `Omega`.
        key: for the next column.
        unit: of the fields below; 0 until a product is not zero.
        factor: `R`, (m, m), upper triangular; 1 on the diagonal beyond the columns so far.
        known: `H`, (m, m).
        overlaps: `W`, (m, m).
        count: int32, number of columns.
        num_products: int32.
        dropped: the norm of what was left of a product and counted as nothing new.
        whole: the space contains the range of A, but for `dropped`, because a column of `Omega`
            brought nothing new or the space is complete; the trace is then that of `H`.
        done: the requested accuracy is reached.
        finite: no product has held a NaN or an infinity.
        accuracy: the requested accuracy.
    """

    basis: Params
    tests: Params
    vector: Params
    test: Params
    is_test: jax.Array
    key: jax.Array
    unit: jax.Array
    factor: jax.Array
    known: jax.Array
    overlaps: jax.Array
    count: jax.Array
    num_products: jax.Array
    dropped: jax.Array
    whole: jax.Array
    done: jax.Array
    finite: jax.Array
    accuracy: Accuracy


def run(request: Request) -> Columns:
    """Takes columns until the requested error is reached, at most as many as the request allows.

    Each column takes two products.
    """
    like, columns = request.operator.like, request.max_products // 2
    rows = krylov.num_rows(min(columns, tree.size(like)))
    state, _ = loops.iterate(
        ColumnStep(),
        _begin(request.key, like, rows, recurrence.shardings(like), request.accuracy),
        linearize(request.operator),
        max_steps=2 * columns,
        until=is_over,
        donate=True,
    )
    return state


@dataclasses.dataclass(frozen=True)
class ColumnStep:
    """One product, of a column of `Omega` or of `Q`, for `sharpjax.loops.iterate`."""

    def propose(self, state: Columns) -> Params:
        return state.vector

    def absorb(self, state: Columns, product: Params) -> Columns:
        row = lanes.furthest(state.count)
        is_test = lanes.of_furthest(state.num_products, state.is_test)
        product = jax.tree.map(lambda p, x: p.astype(x.dtype), product, state.vector)
        unit, product = units.scale(state.unit, product)
        zeros = jnp.zeros_like(state.factor[0])
        norm = tree.norm(product)
        last = jnp.maximum(row - 1, 0)

        # A product with a column of Omega gives a column of R and the next column of Q.
        free, taken = gram_schmidt.sweep(state.basis, product, zeros, last)
        free, again = gram_schmidt.sweep(state.basis, free, zeros, last)
        length = tree.norm(free)
        gone = length <= 10 * krylov.noise(length.dtype) * norm
        beyond = tree.scale(jnp.where(gone, 0, 1 / jnp.where(gone, 1, length)), free)
        place = jnp.arange(len(zeros), dtype=jnp.int32)
        column = jnp.where(place < row, taken + again, 0) + jnp.where(place == row, length, 0)

        # A product with a column of Q gives a row and a column of H and W.
        q = tree.scale(jnp.where(is_test, 0, 1), state.vector)
        put = functools.partial(_set_row, row=row)
        basis = jax.tree.map(put, state.basis, q)
        tests = jax.tree.map(put, state.tests, state.test)
        known, seen, tested = (
            _dots(a, b) for a, b in ((basis, product), (basis, state.test), (tests, q))
        )

        def either(matrix, new):
            return jnp.where(is_test, matrix, new)

        subkey, key = jax.random.split(state.key)
        fresh = _draw(subkey, tree.zeros_like(q))
        count = state.count + jnp.where(is_test, 0, 1)
        missed = is_test & gone
        state = state._replace(
            basis=basis,
            tests=tests,
            vector=_select(is_test & ~gone, beyond, fresh),
            test=_select(is_test, state.vector, state.test),
            is_test=~state.is_test | missed,
            key=key,
            unit=unit,
            factor=jnp.where(is_test & ~gone, _set_column(state.factor, column, row), state.factor),
            known=either(state.known, _set_row(_set_column(state.known, known, row), known, row)),
            overlaps=either(
                state.overlaps, _set_row(_set_column(state.overlaps, seen, row), tested, row)
            ),
            count=count,
            num_products=state.num_products + 1,
            dropped=jnp.where(missed, length, 0),
            whole=missed | (count >= tree.countable(q)),
            finite=state.finite & jnp.isfinite(norm),
        )
        due = ~is_test & (count >= LEAST_COLUMNS)
        reached = jax.lax.cond(
            lanes.any_lane(due), lambda: due & is_reached(state), lambda: jnp.zeros_like(due)
        )
        return state._replace(done=reached)


def estimate(state: Columns) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The trace, its standard error, and the part of it that was probed."""
    known, overlaps = state.known, state.overlaps
    there, factor, left_out = leave_out(state)
    if_there = functools.partial(jnp.where, there)
    inner = functools.partial(jnp.einsum, "ki,ki->i", precision="highest")
    dot = functools.partial(jnp.matmul, precision="highest")
    whole = jnp.trace(known)
    lost = inner(left_out, dot(known, left_out))
    x = overlaps - left_out * jnp.expand_dims(inner(left_out, overlaps), 0)
    probed = inner(overlaps, factor) - 2 * inner(x, factor) + inner(x, dot(known, x))
    # The part of a normal vector outside of the space, scaled to the length it has on average.
    squares = jax.vmap(tree.vdot)(state.tests, state.tests) - inner(x, x)
    size = float(tree.size(state.vector))
    count = state.count.astype(factor.dtype)
    length = jnp.maximum(size - count + 1, 1)
    probed = probed * if_there(length / jnp.where(squares > 0, squares, 1), 0)
    values = if_there(whole - lost + probed, 0)
    mean = jnp.sum(values) / jnp.maximum(count, 1)
    spread = jnp.sum(if_there(jnp.square(values - mean), 0))
    figure = jnp.sqrt(spread / jnp.maximum(count * (count - 1), 1))
    error = jnp.where(count > 1, _FACTOR * figure, jnp.inf)
    # If the range of A is spanned, only rounding is left: a column counts as gone at that size.
    # The square of what is left, B w, is on average that of `|B|_F`, and `tr B <= sqrt(n) |B|_F`.
    least = krylov.noise(error.dtype) * jnp.sqrt(jnp.sum(jnp.square(known)))
    left = jnp.sqrt(jnp.maximum(size - count, 0)) * state.dropped
    error = jnp.where(state.whole, least + left, jnp.maximum(error, least))
    value = jnp.where(state.whole, whole, mean)
    scale = units.known(state.unit)
    return value * scale, error * scale, (value - whole) * scale


def leave_out(state: Columns) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which columns exist, (m,); `R`, (m, m); and `s_i`, the columns of `R^-T` at norm 1."""
    # After the first of its two products a column is in R, but not yet in H and W.
    there = jnp.arange(len(state.factor), dtype=jnp.int32) < state.count
    unit = jnp.eye(len(there), dtype=state.factor.dtype)
    inside = jnp.expand_dims(there, 0) & jnp.expand_dims(there, 1)
    factor = jnp.where(inside, state.factor, unit)
    inverse = jax.scipy.linalg.solve_triangular(factor, unit, trans=1, lower=False)
    # Scaled first: the square of a large entry would overflow.
    inverse = inverse / jnp.max(jnp.abs(inverse), axis=0, keepdims=True)
    return there, factor, inverse / jnp.linalg.norm(inverse, axis=0, keepdims=True)


def is_reached(state: Columns) -> jax.Array:
    """Whether the error meets the requested accuracy."""
    value, error, _ = estimate(state)
    return (error <= state.accuracy.allowed(jnp.abs(value))) & state.finite


def is_over(state: Columns) -> jax.Array:
    return state.whole | state.done | ~state.finite


def _draw(key, zeros):
    return tree.add_scaled(zeros, 1.0, tree.random_normal(key, zeros))


def _dots(rows: Params, vector: Params) -> jax.Array:
    """The inner product of each row with a vector, (m,)."""
    return jax.vmap(tree.vdot, in_axes=(0, None))(rows, vector)


def _select(condition, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def _set_row(x, value, row):
    return jax.lax.dynamic_update_index_in_dim(x, value, row, 0)


def _set_column(x, value, column):
    return jax.lax.dynamic_update_index_in_dim(x, value, column, 1)


def _allocate(zeros, rows, lie):
    """Leaves (rows, *shape) of zeros, with the sharding of `zeros`."""

    def allocate(z, sharding):
        # The sum with zeros of the leaf takes the sharding of the leaf, if its type carries one.
        basis = jnp.zeros((rows, *z.shape), z.dtype) + jnp.expand_dims(z, 0)
        if sharding is None:
            return basis
        lies = jax.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
        return jax.lax.with_sharding_constraint(basis, lies)

    leaves, treedef = jax.tree.flatten(zeros)
    return treedef.unflatten([allocate(z, s) for z, s in zip(leaves, lie, strict=True)])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _begin(key, like, rows, lie, accuracy) -> Columns:
    zeros = tree.zeros_like(tree.widen(like))
    zero = tree.vdot(zeros, zeros)
    subkey, key = jax.random.split(key)
    first = _draw(subkey, zeros)
    empty = _allocate(zeros, rows, lie)
    matrix = jnp.full((rows, rows), zero)
    return Columns(
        basis=empty,
        tests=empty,
        vector=first,
        test=first,
        is_test=zero == 0,
        key=key,
        unit=zero,
        factor=jnp.eye(rows, dtype=zero.dtype) + zero,
        known=matrix,
        overlaps=matrix,
        count=zero.astype(jnp.int32),
        num_products=zero.astype(jnp.int32),
        dropped=zero,
        whole=zero != 0,
        done=zero != 0,
        finite=zero == 0,
        accuracy=accuracy.fill(zero),
    )
