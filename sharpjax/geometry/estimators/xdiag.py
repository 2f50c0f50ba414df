"""XDiag: the diagonal from a sketch, each column a probe of what the others leave.

With the columns of `xtrace`, and `Q_i` for Q without column i: the estimate that
leaves out i is `diag(Q_i Q_i'A) + w_i (I - Q_i Q_i') A w_i`, `w_i` signs, and the diagonal is their
mean (Epperly, Tropp and Webber, arXiv 2301.07825, section 5). `Q_i Q_i' = Q (I - s_i s_i') Q'`, so
it is `diag(Q Q'A) + u_i (w_i R_i's_i - A u_i)` with `u_i = Q s_i`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.estimators import xtrace
from sharpjax.geometry.lanczos import krylov, units
from sharpjax.geometry.operators.algebra import Operator, linearize

Params = Any

LEAST_SIZE = 30  # of a diagonal; at 6 entries the error that is claimed is 2/3 of the true one
_FIRST = 8  # columns before the figure is looked at; then at each doubling


class Found(NamedTuple):
    """A diagonal and what is known of its error.

    Attributes:
        columns: what it comes from, in whose unit all that follows is.
        value: tree like a vector.
        variance: of each entry, such a tree.
        norm, error: as in `Diagonal`.
    """

    columns: xtrace.Columns
    value: Params
    variance: Params
    norm: jax.Array
    error: jax.Array


def run(key: jax.Array, operator: Operator, *, accuracy: Accuracy, max_products: int) -> Found:
    """Columns until the figure is as asked for, as many as `max_products` allow at the most.

    Raises:
        UserError: there are fewer entries than columns that tell their error.
    """
    if tree.size(operator.like) < LEAST_SIZE:
        raise UserError(
            f"diagonal: the errors of method='xdiag' mean nothing for {tree.size(operator.like)} "
            f"parameters; leave it out, or give {LEAST_SIZE} parameters or more."
        )
    product = linearize(operator)
    most = min(max_products // 2, tree.size(operator.like))
    columns = xtrace.begin(key, operator.like, most, accuracy, signs=True)
    size = min(_FIRST, most) if accuracy.is_asked else most
    columns = _advance(columns, product, size)
    found = assemble(columns)
    while size < most:
        met = is_reached(found)
        if loops.is_traced(met):
            columns = columns._replace(done=met)
        elif met:
            break
        more = min(size, most - size)
        columns = _advance(columns, product, more)
        size += more
        found = assemble(columns)
    return found


@jax.jit
def assemble(columns: xtrace.Columns) -> Found:
    """The mean over the estimates that leave out one column, one after another."""
    there, factor, left_out = xtrace.leave_out(columns)
    count = columns.count.astype(factor.dtype)
    lengths = jnp.where(there, jnp.sum(left_out * factor, axis=0), 0)
    known = jax.tree.map(
        lambda q, z: jnp.sum(q * z, axis=0, where=_like_rows(there, q)),
        *(columns.basis, columns.images),
    )

    def add(i, sums):
        weights = jnp.where(there & there[i], left_out[:, i], 0)
        u, image = (
            krylov.combine_rows(x, jnp.expand_dims(weights, 1))
            for x in (columns.basis, columns.images)
        )

        def value(u, image, tests):
            return u[0] * (tests[i] * lengths[i].astype(u.dtype) - image[0])

        values = jax.tree.map(value, u, image, columns.tests)
        plus = functools.partial(jax.tree.map, jnp.add)
        return plus(sums[0], values), plus(sums[1], jax.tree.map(jnp.square, values))

    zeros = tree.zeros_like(columns.vector)
    total, squares = jax.lax.fori_loop(0, len(there), add, (zeros, zeros))
    used = jnp.where(columns.whole, 0, 1 / jnp.maximum(count, 1))
    pairs = jnp.maximum(count * (count - 1), 1)

    def spread(s, square):
        number = count.astype(s.dtype)
        both = jnp.maximum(square - jnp.square(s) / jnp.maximum(number, 1), 0)
        return jnp.where(columns.whole, 0, both / pairs.astype(s.dtype))

    value = tree.add_scaled(known, used, total)
    variance = jax.tree.map(spread, total, squares)
    whole = tree.vdot(variance, jax.tree.map(jnp.ones_like, variance))
    return Found(
        columns=columns,
        value=value,
        variance=variance,
        norm=jnp.sqrt(jnp.maximum(tree.vdot(value, value) - whole, 0)),
        error=jnp.where(columns.whole | (columns.count > 1), jnp.sqrt(whole), jnp.inf),
    )


def is_reached(found: Found) -> jax.Array:
    columns = found.columns
    enough = columns.whole | (columns.count >= _FIRST)
    unit = units.known(columns.unit)
    return enough & (found.error * unit <= columns.accuracy.allowed(found.norm * unit))


def _advance(columns, product, size):
    step = xtrace.ColumnStep(signs=True)
    return loops.iterate(step, columns, product, max_steps=2 * size, until=xtrace.is_over)[0]


def _like_rows(there, rows):
    return there.reshape(-1, *(1,) * (rows.ndim - 1))
