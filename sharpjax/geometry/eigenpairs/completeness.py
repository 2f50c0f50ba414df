"""Whether an eigenvalue was skipped: further searches in the complement of those that were found.

From one start Lanczos sees one copy of a multiple eigenvalue, and may miss a value whose vector is
nearly orthogonal to the start. A pass runs Lanczos from a random vector on `P A P`, where `P = I -
V V'` takes the vectors V out that were found. Its vectors are kept orthogonal to V at each step, so
V does not come back as a value 0, which would be among the largest where all others are negative,
nor as a ghost of itself in float32.
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

_CHANCE = 1e-3  # of a miss, at which `Verification.distance` is stated


class Verification(NamedTuple):
    """What was done to find an eigenvalue that the search had skipped.

    Attributes:
        num_passes: int32, the last of which found nothing, if `complete`.
        num_steps: int32, products in all passes together.
        distance: a value that lies further than this beyond the largest one of the last pass,
            relative to the spread of the spectrum, had a chance of at most 1e-3 to stay hidden from
            a pass of so many steps. 1 or more says nothing.
        complete: a pass has found nothing, and would have gone on if it had not been sure.
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
    """Eigenpairs with none skipped, and with multiple eigenvalues as often as they are there.

    A pass goes on until the outermost value of the complement is known, with guards and
    persistence as in the search itself: to the threshold of `top_eigenpairs` if it belongs among
    the k, else to a tenth of its distance to the last of them. If any belongs there, it is merged
    (Rayleigh and Ritz on the found vectors and the Krylov space together, which takes no further
    product), and another pass follows from another random vector.

    The chance that `q` steps from a random vector miss a value a share `delta` of the spread above
    all that they see is at most `1.648 sqrt(n) exp(-sqrt(delta) (2 q - 1))` (Kuczynski and
    Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992).

    Memory: a basis of one pass beside the k vectors. Outside of a trace it grows; inside it has
    `max_products` rows.

    Args:
        step: what was searched for.
        product: from `algebra.linearize`.
        pairs: a result of that search with vectors. One that holds NaN is returned as it is.
        key: for the random vectors.
        like: as `Operator.like`.
        tol, vector_tol: as in `top_eigenpairs`.
        max_products: for one pass. Where one takes more, `status` is `NOT_CONVERGED`.
        max_passes: k + 4 by default; the same.
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
    """`last_steps`: of the last pass. `over`: no pass shall follow."""

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
    """A pass; a step of `loops.iterate` inside a trace."""

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
    """The process, and the last of the found values at either end: what is beyond was skipped."""
    first, second = step.ends
    edges = values[jnp.array([first - 1, first if second else 0], jnp.int32)]
    size = jnp.max(jnp.abs(values))
    slack = jnp.maximum(tol * jnp.abs(edges), 10 * krylov.noise(values.dtype) * size)
    edges = step.outward(edges, (1, 1)) + slack
    # There may be nothing left in the complement, but beside what was found.
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

    # In the basis of the found vectors and the Ritz vectors of the complement.
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

    # What A y_i has outside of all rows; what the Krylov vectors have is along the next one.
    rest = jnp.square(pairs.residuals) - jnp.sum(jnp.square(state.couplings), axis=0)
    rest = jnp.sqrt(jnp.maximum(rest, 0))
    last = jnp.maximum(state.row - 1, 0)
    along = state.beta[last] * jnp.matmul(weights[last], new, precision="highest")
    residuals = jnp.abs(along) + jnp.matmul(rest, jnp.abs(old), precision="highest")
    residuals = jnp.maximum(residuals, krylov.noise(values.dtype) * size)

    def carried(old_errors, new_errors, power):
        # The sum of the errors of all Ritz values is kept by a rotation.
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
    """The k places in the order of the result."""
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
