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
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.geometry.eigenpairs.convergence import SearchStep
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.lanczos import krylov, lanes, ritz, units
from sharpjax.geometry.operators.algebra import Matvec
from sharpjax.geometry.status import Status

Params = Any

_FURTHER = 2  # tests over which a pass must go on to be complete
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
        operands = (product, like)
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((carry, product))):
            cycle = _Cycle(step, limit)
            carry, _ = loops.iterate(cycle, carry, operands, max_steps=passes, until=_is_over)
        else:
            while not carry.over and carry.num_passes < passes:
                carry = _pass(step, carry, product, like, limit)
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
class _Cycle:
    """A pass as a step, inside a trace."""

    step: SearchStep
    limit: int

    def __call__(self, carry: _Carry, operands) -> _Carry:
        product, like = operands
        return _pass(self.step, carry, product, like, self.limit)


def _pass(step: SearchStep, carry: _Carry, product, like, limit: int) -> _Carry:
    key, subkey = _split(carry.key)
    carry = carry._replace(key=key)
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((carry, product)))
    room = limit if traced else min(limit, 16 + 4 * step.k)
    rows = krylov.num_rows(step.k + room)
    state = krylov.start(subkey, like, rows, locked=carry.pairs.vectors)
    search = _start(step, state, carry)
    pass_step, left = _PassStep(step), limit
    while True:
        search, used = loops.iterate(
            pass_step, search, product, max_steps=min(room, left), until=_is_done, donate=True
        )
        if traced:
            break
        left -= int(used)
        if search.done or not left:
            break
        room = min(krylov.num_rows(rows), krylov.num_rows(left))
        rows += room
        search = _grow(search, rows)
    return _merge(step, carry, search)


@jax.jit
def _split(key):
    return tuple(jax.random.split(key))


class _Pass(NamedTuple):
    """A pass under way.

    Attributes:
        state: Lanczos in the complement.
        couplings: (k, m), `y_i' A q_j` of the found vectors and the basis, in units of `state`.
        edges: (2,), the last of the found values at either end: what is beyond was skipped.
        size: what `|A|` is not below.
        passed: tests passed without a break.
    """

    state: krylov.Lanczos
    couplings: jax.Array
    edges: jax.Array
    size: jax.Array
    tol: jax.Array
    vector_tol: jax.Array
    passed: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnames="step", donate_argnames="state")
def _start(step: SearchStep, state: krylov.Lanczos, carry: _Carry) -> _Pass:
    values = carry.pairs.values
    first, second = step.ends
    edges = values[jnp.array([first - 1, first if second else 0], jnp.int32)]
    couplings = jnp.expand_dims(values, 1) * jnp.expand_dims(jnp.zeros_like(state.alpha), 0)
    return _Pass(
        # There may be nothing left in the complement, but beside what was found.
        state=state._replace(unit=units.power_of_two(values)),
        couplings=couplings,
        edges=jnp.abs(edges) if step.which == "LM" else edges,
        size=jnp.max(jnp.abs(values)),
        tol=carry.tol,
        vector_tol=carry.vector_tol,
        passed=state.num_products,
        done=~state.finite,
    )


@functools.partial(jax.jit, static_argnames="rows")
def _grow(search: _Pass, rows: int) -> _Pass:
    more = rows - search.couplings.shape[1]
    return search._replace(
        state=krylov.grow(search.state, rows),
        couplings=jnp.pad(search.couplings, ((0, 0), (0, more))),
    )


def _is_done(search: _Pass) -> jax.Array:
    return search.done


@dataclasses.dataclass(frozen=True)
class _PassStep:
    """A Lanczos step in the complement, and the test whether it was the last."""

    step: SearchStep

    def propose(self, search: _Pass):
        return search.state.vector

    def absorb(self, search: _Pass, product) -> _Pass:
        before, k = search.state, self.step.k
        row = lanes.of_furthest(before.num_products, before.row)

        state = krylov.LanczosStep().absorb(before, product)
        product = tree.scale(1 / units.known(state.unit), product)

        def along(i):
            y = jax.tree.map(lambda b: b[i], before.basis)
            return tree.vdot(y, product)

        coupled = jax.lax.map(along, jnp.arange(k, dtype=jnp.int32))
        couplings = jax.lax.dynamic_update_slice_in_dim(
            search.couplings, jnp.expand_dims(coupled.astype(search.couplings.dtype), 1), row, 1
        )
        search = search._replace(state=state, couplings=couplings)
        period = max(1, len(state.alpha) // 32)
        count = lanes.furthest(state.num_products)
        last = state.row >= tree.countable(state.vector)
        due = (count % period == 0) | lanes.any_lane(last)
        ok = jax.lax.cond(due, lambda: self._test(search), lambda: search.passed >= 0)
        passed = jnp.where(due, jnp.where(ok, search.passed + 1, 0), search.passed)
        enough = last | (passed > -(-_FURTHER // period))
        done = ok & due & enough | ~state.finite | state.broken
        return search._replace(passed=passed, done=done)

    def _test(self, search: _Pass) -> jax.Array:
        """Whether the outermost values of the complement are known well enough."""
        step, state = self.step, search.state
        found = ritz.bound(state)
        places, exist = step.places(state, found, step.tested)
        values, tolerance = found.values[places], _threshold(search, found.values[places])
        excess = _beyond(step, values, search.edges) - self._edge_threshold(search)
        beyond = exist & (excess > 0)
        enough = jnp.where(beyond, tolerance, jnp.maximum(tolerance, 0.1 * -excess))
        met = found.value_errors[places] <= enough
        met &= ~beyond | (found.vector_errors[places] <= search.vector_tol)
        met_as_guard = (found.residuals * found.vector_errors)[places] <= enough
        exhausted = state.row >= tree.countable(state.vector)
        split, ok = step.tested[0], []
        for part in (slice(0, split), slice(split, len(values))):
            rank = jnp.arange(part.stop - part.start, dtype=jnp.int32)
            needed = jnp.maximum(jnp.sum(beyond[part], dtype=jnp.int32), 1)
            passed = jnp.where(rank < needed, met[part], met_as_guard[part])
            passed = jnp.where(exist[part], passed, exhausted)
            ok.append(passed | (rank >= needed + step.guards))
        return jnp.all(jnp.concatenate(ok))

    def _edge_threshold(self, search: _Pass) -> jax.Array:
        first, second = self.step.tested
        thresholds = _threshold(search, search.edges)
        return jnp.concatenate([jnp.full(first, thresholds[0]), jnp.full(second, thresholds[1])])


def _threshold(search: _Pass, values) -> jax.Array:
    extent = search.state.scale * units.known(search.state.unit)
    noise = krylov.noise(values.dtype) * jnp.maximum(search.size, extent)
    return jnp.maximum(search.tol * jnp.abs(values), 10 * noise)


def _beyond(step: SearchStep, values, edges) -> jax.Array:
    """How far values lie beyond the last one that was found at their end."""
    split = step.tested[0]
    first, second = values[:split], values[split:]
    if step.which == "LM":
        return jnp.abs(first) - edges[0]
    if step.which == "SA":
        return edges[0] - first
    return jnp.concatenate([first - edges[0], edges[1] - second])


@functools.partial(jax.jit, static_argnames="step")
def _merge(step: SearchStep, carry: _Carry, search: _Pass) -> _Carry:
    """The k outermost Ritz pairs on the found vectors and the Krylov space together."""
    given, state, k = carry.pairs, search.state, step.k
    found = ritz.bound(state)
    unit = units.known(state.unit)
    pairs, found = _divide(given, unit), _divide(found, unit)
    size = jnp.maximum(search.size / unit, found.extent / unit)
    count = krylov.num_values(state)
    index = jnp.arange(len(found.values), dtype=jnp.int32)
    reached = index < count
    weights = jnp.where(jnp.expand_dims(reached, 0), found.weights, 0)

    # In the basis of the found vectors and the Ritz vectors of the complement.
    coupled = jnp.matmul(search.couplings, weights, precision="highest")
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
    rest = jnp.square(pairs.residuals) - jnp.sum(jnp.square(search.couplings), axis=1)
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
    gained = (
        jnp.abs(values) - jnp.abs(given.values)
        if step.which == "LM"
        else jnp.where(_from_top(step), values - given.values, given.values - values)
    )
    grown = jnp.any(gained > _threshold(search, given.values))
    merged = given._replace(
        values=values,
        vectors=krylov.combine_rows(state.basis, _in_basis(old, jnp.matmul(weights, new))),
        residuals=residuals,
        value_errors=value_errors,
        vector_errors=vector_errors,
        converged=(value_errors <= _threshold(search, values))
        & (vector_errors <= search.vector_tol),
    )
    ok = search.done & state.finite
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


def _from_top(step: SearchStep) -> jax.Array:
    first, _ = step.ends
    return (jnp.arange(step.k) < first) & (step.which != "SA")


def _in_basis(old, new):
    """Weights of the rows: the found vectors are the first."""
    return new.at[: old.shape[0]].add(old)


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
