"""Ritz values of a Lanczos process, with bounds on their distance to eigenvalues."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import krylov, recurrence, units

_UNSEEN = 10  # bound on noise of products over `leak`; measured 2 in float32, 7 in bfloat16
_SHIFT = 5  # bound on shift of a value over `leak`; measured at most 3 with a basis, 4 without


class Ritz(NamedTuple):
    """Ritz values and their bounds, each (m,) in ascending order of the values.

    Only the first `krylov.num_values` entries have a meaning.

    Attributes:
        values: as from `krylov.ritz`, but in absolute units, like all numbers here but `squares`.
        weights: as from `krylov.ritz`.
        residuals: `|A y - value y|`, at least the noise of products.
        squares: the sum of the squared residuals of the cluster, in units of the process.
        gaps: distance to the nearest Ritz value outside of the cluster, less the residual of that
            value.
        value_errors: `residual^2 / gap`, with the sum over the cluster as numerator, or the
            residual if it is less; at least `shift`.
        vector_errors: `residual / gap`, at most 1.
        shift: a scalar, how far the noise of products may move a value; no error is below it.
        heads: (2, m), whether a value is the outermost of its cluster, from above and from below.
        extent: a scalar, a lower bound on `|A|`.
        unit: the unit of the process, or 1 if it is not known.
    """

    values: jax.Array
    weights: jax.Array
    residuals: jax.Array
    squares: jax.Array
    gaps: jax.Array
    value_errors: jax.Array
    vector_errors: jax.Array
    shift: jax.Array
    heads: jax.Array
    extent: jax.Array
    unit: jax.Array


def bound(state: krylov.Lanczos | recurrence.Recurrence, error: jax.typing.ArrayLike = 0.0) -> Ritz:
    """Ritz values and their bounds; with a basis, no residual is below `error` (in units of the
    process).

    Values whose intervals `value +- residual` overlap, directly or through others, form one
    cluster. The noise of products moves values at first order, so no bound on a value is below the
    measured noise. Without a basis the noise is measured only between neighbouring vectors, and
    copies of a converged value are as near to it as rounding allows.
    """
    values, weights = krylov.ritz(state)
    count = krylov.num_values(state)
    index = jnp.arange(len(values), dtype=jnp.int32)
    reached = index < count
    size = jnp.maximum(jnp.max(jnp.where(reached, jnp.abs(values), 0)), state.scale)
    noise = krylov.noise(values.dtype) * size
    lost = units.lost(state.unit, tree.size(state.vector))
    if isinstance(state, krylov.Lanczos):
        last = jnp.maximum(state.row - 1, 0)
        floor = jnp.maximum(jnp.maximum(jnp.maximum(noise, _UNSEEN * state.leak), error), lost)
        exhausted = state.row >= tree.countable(state.vector)
    else:
        last = jnp.maximum(count - 1, 0)
        floor = least_residual(state, size, state.leak)
        exhausted = state.invariant
    raw = jnp.abs(state.beta[last] * weights[last])
    # No residual is below the noise of a product, which the recurrence itself does not see.
    residuals = jnp.maximum(raw, floor)

    upper = jnp.where(reached, values + residuals, -jnp.inf)
    lower = jnp.where(reached, values - residuals, jnp.inf)
    highest_so_far = _running_max(upper)
    lowest_from_here = -_running_max(-lower, reverse=True)
    below = jnp.concatenate([jnp.full_like(upper[:1], -jnp.inf), highest_so_far[:-1]])
    is_first = lowest_from_here > below
    above = jnp.concatenate([lowest_from_here[1:], jnp.full_like(lower[:1], jnp.inf)])
    is_last = highest_so_far < above
    edge_below = _running_max(jnp.where(is_first, below, -jnp.inf))
    edge_above = -_running_max(jnp.where(is_last, -above, -jnp.inf), reverse=True)
    gaps = jnp.minimum(values - edge_below, edge_above - values)
    # Without any other Ritz value the gap is unknown, unless the whole space is spanned: then there
    # is no other eigenvalue.
    gaps = jnp.where(jnp.isinf(gaps) & ~exhausted, 0, gaps)

    cluster = jnp.sum(_before(len(values)) & jnp.expand_dims(is_first, 0), axis=1, dtype=jnp.int32)
    together = jnp.expand_dims(cluster, 1) == jnp.expand_dims(cluster, 0)
    own = jnp.expand_dims(jnp.where(reached, jnp.square(residuals), 0), 0)
    squares = jnp.sum(jnp.where(together, own, 0), axis=1)
    shift = jnp.maximum(jnp.maximum(noise, _SHIFT * state.leak), lost)
    unit = units.known(state.unit)
    found = Ritz(
        values=values * unit,
        weights=weights,
        residuals=residuals * unit,
        squares=squares,
        gaps=gaps * unit,
        value_errors=residuals * unit,
        vector_errors=jnp.ones_like(residuals),
        shift=shift * unit,
        heads=jnp.stack([is_last, is_first]),
        extent=size * unit,
        unit=unit,
    )
    return with_gaps(found, found.gaps)


def least_residual(state: recurrence.Recurrence, size: jax.Array, seen: jax.Array) -> jax.Array:
    """What no residual without a basis is below, in units of the process.

    It covers what a process drops when it ends, 50 eps of its scale.

    Args:
        state: of the process.
        size: that of the operator.
        seen: the measured noise of products.
    """
    noise = 10 * krylov.noise(size.dtype) * size
    lost = units.lost(state.unit, tree.size(state.vector))
    return jnp.maximum(jnp.maximum(noise, _UNSEEN * seen), lost)


def _running_max(x: jax.Array, reverse: bool = False) -> jax.Array:
    """The running maximum of a few numbers, in one fusion; `jax.lax.cummax` takes several."""
    seen = _before(len(x)).T if reverse else _before(len(x))
    return jnp.max(jnp.where(seen, jnp.expand_dims(x, 0), -jnp.inf), axis=1)


def _before(count: int) -> jax.Array:
    """Whether j <= i, [i, j]."""
    index = jnp.arange(count, dtype=jnp.int32)
    return jnp.expand_dims(index, 0) <= jnp.expand_dims(index, 1)


def with_gaps(found: Ritz, gaps: jax.Array) -> Ritz:
    """The same values, with the errors that follow from the given gaps."""
    safe = jnp.where(gaps > 0, gaps, found.unit)
    quadratic = jnp.maximum(found.squares / (safe / found.unit) * found.unit, found.shift)
    residuals = found.residuals
    return found._replace(
        gaps=gaps,
        value_errors=jnp.where(gaps > 0, jnp.minimum(quadratic, residuals), residuals),
        vector_errors=jnp.where(gaps > residuals, residuals / safe, 1),
    )
