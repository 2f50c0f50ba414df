"""All eigenvalues above a threshold, followed from call to call; their number may change."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.accuracy import number_of
from sharpjax.geometry.eigenpairs import warm_start
from sharpjax.geometry.eigenpairs.convergence import BeyondStep, Search, has_passed
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.eigenpairs.search import finish, solve
from sharpjax.geometry.lanczos import krylov, ritz
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator, linearize
from sharpjax.geometry.operators.arguments import check_key, check_operator
from sharpjax.geometry.status import Status, tells_unknown

_FOR_EACH = ("values", "vectors", "residuals", "value_errors", "vector_errors", "converged")
_GUARDS = 2
_CARRIED = 4  # vectors of values below the threshold that enter the start of the next search
_SPARE = _CARRIED - _GUARDS
_LEAST, _TIMES = 6, 2  # room for 6 values, 12, 24, ...: few sizes mean few compilations
_SMALL = 64  # up to so many parameters, there is room for all eigenvalues
# In the start, the random direction has this length times the root of `tol`; the rest has length 1.
# A residual of the root of `tol` passes; the direction is longer, so the search goes on in it.
_FRESH = 3.0


@solver
def track(
    operator: Operator,
    start: Eigenpairs | None = None,
    *,
    threshold: float,
    key: jax.Array,
    tol: float = 1e-3,
    max_products: int | None = None,
) -> Eigenpairs:
    """All eigenvalues above a threshold and their eigenvectors, starting from an earlier result.

    For the edge of stability use the threshold `1.5 / learning_rate` and call this function every
    few training steps. The set grows when an eigenvalue rises above the threshold and shrinks when
    one falls below it.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1.0, 9.0) * w**2) / 2
    >>> pairs = None
    >>> for scale in (1.0, 1.3, 0.5):
    ...     operator = hessian(loss, jnp.ones(8), jnp.full(4, scale))
    ...     pairs = track(operator, pairs, threshold=6.1, key=jax.random.key(0))
    ...     print([round(float(x), 2) for x in pairs.values])
    [8.0, 7.0]
    [10.4, 9.1, 7.8, 6.5]
    []

    If `status` is OK, every value of the set has converged as in `top_eigenpairs`, and the next two
    values found lie below the threshold. Three kinds of eigenvalue may still be missing: one that
    exceeds the threshold by less than its error; the second copy of a multiple eigenvalue; and one
    that has risen since `start` and whose vector is orthogonal to all carried vectors, those of the
    set and of four values below it. The last kind stays missing until the next search from a random
    vector, which is every 20th. In a test on six paths of 12 to 16 steps, 12 times each, no set was
    wrong; of the searches from random vectors 3 of 1,080 were wrong. That test had room for four
    values; now there is room for six or more.

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        start: an earlier result of `track` or `top_eigenpairs`, for an operator that has changed a
            little since; None starts from a random vector.
        threshold: a number; only eigenvalues above it are searched for.
        key: for the random start.
        tol: requested relative error of the values.
        max_products: limit on the products; default 64 plus 8 for each value that there is room
            for. If the limit is reached, `status` is `NOT_CONVERGED`, and there may be more values.

    Returns:
        `Eigenpairs`, descending. Its k is the number of eigenvalues found above the threshold and
        may be 0.

    Raises:
        UserError: an argument does not fit, or the call is inside a trace, where k cannot change.

    Cost: about 11 products, where a search from a random vector takes 13 to 16; measured for one to
    four values among 200 or 20,000 that move by up to .15 of the threshold per step. Memory: a
    basis of 16 vectors plus 2 for each value that there is room for (6, 12, 24, ...), doubled when
    it is full.
    """
    caller = "track"
    check_operator(caller, operator)
    key = check_key(caller, key)
    if loops.is_traced((operator, start, threshold, key, tol)) or loops.inside_jit():
        raise UserError(
            f"{caller}: how many eigenvalues lie above the threshold decides the shapes of the "
            f"result, which a trace (jit, vmap, a loop of jax) must know before. Call it outside, "
            f"or take top_eigenpairs with a fixed k."
        )
    if not math.isfinite(number_of(threshold)):
        raise UserError(f"{caller}: threshold must be a finite number, got {threshold}.")
    if not 0 <= number_of(tol) < math.inf:
        raise UserError(f"{caller}: tol must be a number >= 0, got {tol}.")
    if max_products is not None:
        max_products = whole_number(caller, "max_products", max_products)
    like, size = operator.like, tree.size(operator.like)
    begun, vector, room = None, None, size if size <= _SMALL else _LEAST
    if start is not None:
        begun = warm_start.check(caller, start, like, None, "LA")
        while room < start.values.shape[0] + _SPARE:
            room *= _TIMES
        # The vectors of the set and of some values below it.
        weights = np.arange(len(begun.values)) < start.values.shape[0] + _CARRIED
        weights = jnp.asarray(weights / np.sqrt(np.sum(weights)), begun.values.dtype)
        fresh = _FRESH * max(float(tol), 1e-3) ** 0.5
        vector, due = warm_start.combine(begun, weights, fresh, key, like)
        begun, vector = (None, None) if due else (begun, vector)

    product = linearize(operator)
    step = BeyondStep(min(room, size), "LA", _GUARDS)
    rows = krylov.num_rows(min(size, 16 + 2 * step.k))
    state = krylov.start(key, like, rows, vector=vector)
    used = 0
    while True:
        limit = min(size, 64 + 8 * step.k if max_products is None else max_products)
        search = solve(
            *(step, product, state),
            tol=tol,
            max_products=limit - used,
            known=jnp.asarray([threshold, -math.inf], state.alpha.dtype),
        )
        state = search.state
        count, used = int(_count(step, search)), int(state.num_products)
        if count + _SPARE <= step.k or step.k == size or used >= limit or not state.finite:
            break
        step = BeyondStep(min(step.k * _TIMES, size), "LA", _GUARDS)
    kept = min(count, step.k)
    pairs = _finish(step, search, jnp.int32(0) if begun is None else begun.age + 1)
    cut = {name: jax.tree.map(lambda x: x[:kept], getattr(pairs, name)) for name in _FOR_EACH}
    return pairs._replace(**cut)


@tells_unknown
@functools.partial(jax.jit, static_argnames="step")
def _finish(step: BeyondStep, search: Search, age) -> Eigenpairs:
    """A result with all values that there is room for; those below the threshold mean nothing."""
    all_found = has_passed(search) & (_count(step, search) <= step.k)
    status = jnp.where(all_found, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(search.state.finite, status, Status.NON_FINITE)
    carried = warm_start.carry(step, search.state)._replace(age=age)
    pairs = finish(step, True, search)
    return pairs._replace(status=status.astype(jnp.int32), carried=carried)


@functools.partial(jax.jit, static_argnames="step")
def _count(step: BeyondStep, search: Search) -> jax.Array:
    """How many of the tested values lie above the threshold."""
    found = ritz.bound(search.state)
    _, exist = step.places(search.state, found, step.tested)
    return jnp.sum(exist & (step.excess(search, found) > 0), dtype=jnp.int32)
