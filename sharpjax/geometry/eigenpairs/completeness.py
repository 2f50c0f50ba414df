"""Checks whether an eigenvalue was skipped, by searches in the complement of the vectors found.

From one start, Lanczos sees one copy of a multiple eigenvalue, and it may miss a value whose vector
is nearly orthogonal to the start. A pass runs Lanczos from a random vector on `P A P`, where
`P = I - V V'` removes the vectors V found so far. Each new Lanczos vector is kept orthogonal to V.
So V does not come back with the value 0, which would be among the largest if all other values are
negative. Nor does V come back as a ghost in float32.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.eigenpairs.convergence import (
    BeyondStep,
    Search,
    SearchStep,
    has_passed,
    thresholds,
)
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.eigenpairs.search import solve
from sharpjax.geometry.lanczos import krylov, ritz, units
from sharpjax.geometry.operators.algebra import Matvec
from sharpjax.geometry.status import Status

Params = Any

_CHANCE = 1e-3  # probability of a miss for which `Verification.distance` is stated


class Verification(NamedTuple):
    """A report of the passes that looked for eigenvalues skipped by the search.

    Attributes:
        num_passes: int32, number of passes; if `complete`, the last of them found nothing.
        num_steps: int32, products of all passes together.
        distance: relative to the spread of the spectrum. A value that lies further than this beyond
            the largest value of the last pass had a chance of at most 1e-3 to stay hidden from that
            pass. A distance of 1 or more says nothing.
        complete: the last pass converged and found nothing that belongs among the k, or k is the
            number of parameters.
    """

    num_passes: jax.Array
    num_steps: jax.Array
    distance: jax.Array
    complete: jax.Array


def verify(
    step: SearchStep,
    product: Matvec,
    pairs: Eigenpairs,
    *,
    key: jax.Array,
    like: Params,
    tol: float | jax.Array = 1e-3,
    vector_tol: float | jax.Array = math.inf,
    max_products: int,
    max_passes: int | None = None,
) -> tuple[Eigenpairs, Verification]:
    """Search for skipped eigenvalues and missing copies of multiple ones, and add those found.

    A pass goes on until the outermost value of the complement is known, with guards and persistence
    as in the search itself. If this value belongs among the k, it must meet the threshold of
    `top_eigenpairs`; otherwise its error must be at most a tenth of its distance to the last of the
    k. Any value that belongs among the k is merged, by Rayleigh-Ritz on the found vectors and the
    Krylov space together, which takes no further product. Then another pass follows from another
    random vector.

    Let a value lie above all values seen by a share `delta` of the spread of the spectrum. The
    chance that `q` steps from a random vector miss it is at most
    `1.648 sqrt(n) exp(-sqrt(delta) (2 q - 1))` (Kuczynski and Wozniakowski, SIAM J. Matrix Anal.
    Appl. 13, 1992).

    Memory: the basis of one pass, besides the k vectors. Outside of a trace the basis grows; inside
    a trace it has `max_products` rows.

    Args:
        step: the step of the search to verify.
        product: from `algebra.linearize`.
        pairs: a result of that search, with vectors. If its values are not finite, no pass is run.
        key: for the random vectors.
        like: as `Operator.like`.
        tol, vector_tol: as in `top_eigenpairs`.
        max_products: limit on the products of one pass. If a pass needs more, `status` is
            `NOT_CONVERGED`.
        max_passes: limit on the passes, k + 4 by default. If more are needed, `status` is
            `NOT_CONVERGED`.

    Returns:
        The eigenpairs, with any values found merged in, and a `Verification`.
    """
    size = tree.size(like)
    carry = _begin(pairs, key, tol, vector_tol)
    if step.k < size:
        limit = min(max_products, size - step.k)
        passes = step.k + 4 if max_passes is None else max_passes
        run, operands = _Pass(step, limit), (product, like)
        if loops.is_traced((carry, product)):
            carry, _ = loops.iterate(run, carry, operands, max_steps=passes, until=_is_over)
        else:
            while not carry.over and carry.num_passes < passes:
                carry = run(carry, operands)
    return _finish(step, carry, size)


class _Carry(NamedTuple):
    """`last_steps`: products of the last pass. `over`: no further pass is to run."""

    pairs: Eigenpairs
    key: jax.Array
    tol: jax.Array
    vector_tol: jax.Array
    num_passes: jax.Array
    num_steps: jax.Array
    last_steps: jax.Array
    complete: jax.Array
    over: jax.Array


@jax.jit
def _begin(pairs: Eigenpairs, key, tol, vector_tol) -> _Carry:
    dtype = pairs.values.dtype
    zero = jnp.zeros_like(pairs.num_products)
    return _Carry(
        pairs=pairs,
        key=key,
        tol=jnp.asarray(tol, dtype),
        vector_tol=jnp.asarray(vector_tol, dtype),
        num_passes=zero,
        num_steps=zero,
        last_steps=zero,
        complete=zero != 0,
        over=~jnp.all(jnp.isfinite(pairs.values)),
    )


def _is_over(carry: _Carry) -> jax.Array:
    return carry.over


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass; inside a trace it is a step of `loops.iterate`."""

    step: SearchStep
    limit: int

    def __call__(self, carry: _Carry, operands) -> _Carry:
        product, like = operands
        key, subkey = _split(carry.key)
        step, k = self.step, self.step.k
        traced = loops.is_traced((carry, product))
        rows = k + (self.limit if traced else min(self.limit, 16 + 4 * k))
        state = krylov.start(subkey, like, krylov.num_rows(rows), locked=carry.pairs.vectors)
        state, edges = _begin_pass(step, state, carry.pairs.values, carry.tol)
        found = solve(
            *(BeyondStep(step.k, step.which, step.guards), product, state),
            tol=carry.tol,
            vector_tol=carry.vector_tol,
            max_products=self.limit,
            known=edges,
        )
        return _merge(step, carry._replace(key=key), found)


@jax.jit
def _split(key):
    return tuple(jax.random.split(key))


@functools.partial(jax.jit, static_argnames="step", donate_argnames="state")
def _begin_pass(step: SearchStep, state: krylov.Lanczos, values, tol):
    """The process, and an edge for each end: a value beyond the last one found was skipped."""
    first, second = step.ends
    edges = values[jnp.array([first - 1, first if second else 0], jnp.int32)]
    size = jnp.max(jnp.abs(values))
    slack = jnp.maximum(tol * jnp.abs(edges), 10 * krylov.noise(values.dtype) * size)
    edges = step.outward(edges, (1, 1)) + slack
    # What is left in the complement may be tiny beside the values found, so their unit is kept.
    unit = units.power_of_two(values)
    return state._replace(unit=unit, scale=size / units.known(unit)), edges


@functools.partial(jax.jit, static_argnames="step")
def _merge(step: SearchStep, carry: _Carry, search: Search) -> _Carry:
    """The k outermost Ritz pairs on the found vectors and the Krylov space together."""
    given, state, k = carry.pairs, search.state, step.k
    found = ritz.bound(state)
    unit, extent = units.known(state.unit), found.extent
    pairs, found = _divide(given, unit), _divide(found, unit)
    size = extent / unit
    count = krylov.num_values(state)
    reached = jnp.arange(len(found.values), dtype=jnp.int32) < count
    weights = jnp.where(jnp.expand_dims(reached, 0), found.weights, 0)

    # A in the basis of the found vectors and the Ritz vectors of the complement.
    coupled = jnp.matmul(state.couplings.T, weights, precision="highest")
    beyond = jnp.where(size > 0, 4 * size, 1)
    values = jnp.where(reached, found.values, beyond)
    diagonal = jnp.diag(jnp.concatenate([pairs.values, values]))
    matrix = diagonal.at[:k, k:].set(coupled).at[k:, :k].set(coupled.T)
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    among = jnp.arange(len(values), dtype=jnp.int32) < k + count
    places = _outermost(step, values, among)
    values, vectors = values[places], vectors[:, places]
    old, new = vectors[:k], vectors[k:]

    # The part of A y_i outside of all rows. That of the Krylov vectors lies along the next vector.
    rest = jnp.square(pairs.residuals) - jnp.sum(jnp.square(state.couplings), axis=0)
    rest = jnp.sqrt(jnp.maximum(rest, 0))
    last = jnp.maximum(state.row - 1, 0)
    along = state.beta[last] * jnp.matmul(weights[last], new, precision="highest")
    residuals = jnp.abs(along) + jnp.matmul(rest, jnp.abs(old), precision="highest")
    residuals = jnp.maximum(residuals, krylov.noise(values.dtype) * size)

    def carried(old_errors, new_errors, power):
        # A rotation keeps the sum of the errors of all Ritz values.
        new_errors = jnp.where(reached, new_errors, 0)
        errors = jnp.concatenate([old_errors, new_errors])
        return jnp.matmul(errors, jnp.abs(vectors) ** power, precision="highest")

    value_errors = carried(pairs.value_errors, found.value_errors, 2)
    value_errors = jnp.minimum(value_errors, residuals)
    vector_errors = jnp.minimum(carried(pairs.vector_errors, found.vector_errors, 1), 1)
    values, residuals, value_errors = (x * unit for x in (values, residuals, value_errors))
    gained = step.outward(values, step.ends) - step.outward(given.values, step.ends)
    grown = jnp.any(gained > thresholds(search, given.values, extent))
    in_basis = jnp.matmul(weights, new).at[:k].add(old)  # the found vectors are its first rows
    merged = given._replace(
        values=values,
        vectors=krylov.combine_rows(state.basis, in_basis),
        residuals=residuals,
        value_errors=value_errors,
        vector_errors=vector_errors,
        converged=(value_errors <= thresholds(search, values, extent))
        & (vector_errors <= search.vector_tol),
    )
    ok = has_passed(search) & state.finite
    taken = jax.tree.map(lambda a, b: jnp.where(grown & ok, a, b), merged, given)
    status = jnp.where(state.finite, given.status, Status.NON_FINITE).astype(jnp.int32)
    return carry._replace(
        pairs=taken._replace(num_products=given.num_products + state.num_products, status=status),
        num_passes=carry.num_passes + 1,
        num_steps=carry.num_steps + state.num_products,
        last_steps=state.num_products,
        complete=ok & ~grown,
        over=~(ok & grown),
    )


def _divide(found: Any, unit: jax.Array) -> Any:
    return found._replace(
        values=found.values / unit,
        residuals=found.residuals / unit,
        value_errors=found.value_errors / unit,
    )


def _outermost(step: SearchStep, values, among) -> jax.Array:
    """The indices of the k outermost values, in the order of the result."""
    first, second = step.ends
    key = {"LA": -values, "BE": -values, "SA": values, "LM": -jnp.abs(values)}[step.which]
    top = jnp.argsort(jnp.where(among, key, jnp.inf))[:first]
    bottom = jnp.argsort(jnp.where(among, values, jnp.inf))[:second]
    return jnp.concatenate([top, bottom[::-1]])


@functools.partial(jax.jit, static_argnames=("step", "size"))
def _finish(step: SearchStep, carry: _Carry, size: int) -> tuple[Eigenpairs, Verification]:
    pairs = carry.pairs
    dtype = pairs.values.dtype
    dimension = float(size - step.k)
    steps = carry.last_steps.astype(dtype)
    power = jnp.log(jnp.asarray(1.648 * math.sqrt(max(dimension, 1)) / _CHANCE, dtype))
    distance = jnp.square(power / jnp.maximum(2 * steps - 1, 0))
    complete = carry.complete | ((dimension == 0) & ~carry.over)
    distance = jnp.where((steps >= dimension) & complete, 0, distance)
    fine = jnp.all(pairs.converged) & complete
    settled = (pairs.status == Status.OK) | (pairs.status == Status.NOT_CONVERGED)
    status = jnp.where(fine, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(settled, status, pairs.status).astype(jnp.int32)
    return pairs._replace(status=status), Verification(
        num_passes=carry.num_passes,
        num_steps=carry.num_steps,
        distance=distance,
        complete=complete,
    )
