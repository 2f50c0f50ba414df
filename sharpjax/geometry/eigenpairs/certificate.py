"""A check of the residuals of all vectors together, by one further product."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.eigenpairs.convergence import Search, SearchStep
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.lanczos import krylov, ritz, units
from sharpjax.geometry.operators.algebra import Matvec
from sharpjax.geometry.status import Status, tells_unknown

Params = Any


def certify(
    step: SearchStep,
    search: Search,
    product: Matvec,
    key: jax.Array,
    wanted: bool | jax.Array = True,
) -> tuple[jax.Array, jax.Array]:
    """The part of the residuals of the k Ritz vectors that the recurrence does not show.

    With random signs, the mean of `|sum_i +-(A y_i - value_i y_i)|^2` is the sum of all squared
    residuals. The residuals that Lanczos knows all lie along its next vector, where the signs may
    cancel them. Any other part comes from accumulated rounding, or from an operator that is not
    symmetric or not the same at each product.

    Args:
        step, search: the k values, and the process they come from, which must have a basis.
        product: the product that the process was run with.
        key: for the signs.
        wanted: whether to check at all; if false, no product is taken.

    Returns:
        The root of the sum of squares, less what the noise of one product adds, in units of the
        process; and the number of products, 1 or 0.
    """
    carry = _begin(step, search, key)
    steps = jnp.asarray(wanted, jnp.int32)
    carry, used = loops.iterate(_CertifyStep(), carry, product, max_steps=steps)
    return carry.error, used


def count_errors(
    pairs: Eigenpairs, error_of: Matvec, tol: jax.typing.ArrayLike, vector_tol: jax.typing.ArrayLike
) -> Eigenpairs:
    """The pairs, with the error of the products along their vectors added to all their errors.

    The true `|A y - value y|` is at most the residual of the approximate product plus the error of
    that product along y. At first order, the value may move by as much as this error. Cost: two
    products for each pair.

    Args:
        pairs: eigenpairs from the approximate product, with vectors.
        error_of: gives the error of a product along a vector; from `operators.differences`.
        tol, vector_tol: as in `top_eigenpairs`.
    """
    carry = _Errors(pairs.vectors, jnp.zeros_like(pairs.residuals), jnp.int32(0))
    carry, used = loops.iterate(_ErrorStep(), carry, error_of, max_steps=len(pairs.values))
    return _count(pairs, carry.errors, 2 * used, tol, vector_tol)


class _Errors(NamedTuple):
    vectors: Params
    errors: jax.Array
    index: jax.Array


@dataclasses.dataclass(frozen=True)
class _ErrorStep:
    def propose(self, carry: _Errors):
        return tree.index(carry.vectors, carry.index)

    def absorb(self, carry: _Errors, product) -> _Errors:
        errors = carry.errors.at[carry.index].set(units.norm(product).astype(carry.errors.dtype))
        return carry._replace(errors=errors, index=carry.index + 1)


@tells_unknown
@jax.jit
def _count(pairs, errors, used, tol, vector_tol) -> Eigenpairs:
    residuals, value_errors = pairs.residuals + errors, pairs.value_errors + errors
    growth = residuals / jnp.where(pairs.residuals > 0, pairs.residuals, 1)
    grown = jnp.where(pairs.residuals > 0, pairs.vector_errors * growth, 1)
    vector_errors = jnp.where(errors > 0, jnp.minimum(grown, 1), pairs.vector_errors)
    size = jnp.abs(pairs.values)
    least = 10 * krylov.noise(size.dtype) * jnp.max(size)
    near = (value_errors <= jnp.maximum(tol * size, least)) & (vector_errors <= vector_tol)
    converged = pairs.converged & near
    off = (pairs.status == Status.OK) & ~jnp.all(converged)
    return pairs._replace(
        residuals=residuals,
        value_errors=value_errors,
        vector_errors=vector_errors,
        converged=converged,
        num_products=pairs.num_products + used,
        status=jnp.where(off, jnp.int32(Status.NOT_CONVERGED), pairs.status),
    )


class _Carry(NamedTuple):
    vector: Params
    expected: Params
    unit: jax.Array
    noise: jax.Array
    error: jax.Array


@functools.partial(jax.jit, static_argnames="step")
def _begin(step, search, key) -> _Carry:
    state = search.state
    found = ritz.bound(state)
    places, exist = step.places(state, found, step.tested)
    wanted = step.wanted(places)
    signs = jax.random.rademacher(key, wanted.shape, found.values.dtype)
    signs = jnp.where(step.wanted(exist), signs, 0)
    signed = found.weights[:, wanted] * jnp.expand_dims(signs, 0)
    unit = units.known(state.unit)
    scaled = signed * jnp.expand_dims(found.values[wanted] / unit, 0)
    pair = jnp.stack([jnp.sum(signed, 1), jnp.sum(scaled, 1)], axis=1)
    both = krylov.combine_rows(state.basis, pair)
    last = jnp.maximum(state.row - 1, 0)
    along = state.beta[last] * pair[last, 0]
    return _Carry(
        vector=tree.index(both, 0),
        expected=tree.add_scaled(tree.index(both, 1), along, state.vector),
        unit=unit,
        noise=len(wanted) ** 0.5 * krylov.noise(found.values.dtype) * state.scale,
        error=jnp.zeros_like(state.scale),
    )


@dataclasses.dataclass(frozen=True)
class _CertifyStep:
    def propose(self, carry: _Carry):
        return carry.vector

    def absorb(self, carry: _Carry, product) -> _Carry:
        rest = tree.add_scaled(carry.expected, -1 / carry.unit, product)
        square = jnp.square(tree.norm(rest)) - jnp.square(carry.noise)
        return carry._replace(error=jnp.sqrt(jnp.maximum(square, 0)))
