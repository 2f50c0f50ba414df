"""Linear systems `A x = b` by conjugate gradients."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.accuracy import number_of
from sharpjax.geometry.lanczos import krylov, packing, recurrence, units
from sharpjax.geometry.loss.assumptions import solver
from sharpjax.geometry.operators.algebra import Operator, linearize, without_derivative
from sharpjax.geometry.operators.arguments import check_operator
from sharpjax.geometry.operators.matrix import check_vector
from sharpjax.geometry.status import Status, tells_unknown

Params = Any


class Solution(NamedTuple):
    """A solution x of `A x = b`.

    Attributes:
        value: x, a tree like b. If `status` is not `OK`, the last iterate; NaN if `status` is
            `NON_FINITE`.
        residual: `|b - A x| / |b|` of x itself, computed by a product of its own; 0 for b = 0.
        num_products: int32, total number of products.
        status: `Status`, int32. `OK`: the residual is at most `tol`. `NOT_CONVERGED`: it is
            larger, after `max_products` or because rounding prevents a smaller one.
            `NOT_POSITIVE`: along some direction the curvature was not positive, or below the noise
            of products; add damping, such as `operator + 0.1`. `NON_FINITE`: a number was NaN or
            infinite.
    """

    value: Params
    residual: jax.Array
    num_products: jax.Array
    status: jax.Array


@solver
def solve(
    operator: Operator,
    vector: Params,
    *,
    tol: float | jax.Array = 1e-4,
    max_products: int = 1000,
    start: Params | None = None,
) -> Solution:
    """The solution of `A x = b` for a positive operator, such as `hessian(...) + damping`.

    Use it for influence functions, Newton and natural-gradient steps, and anything else that needs
    `(H + damping)^-1 v` for a matrix too large to form. For several right-hand sides use
    `jax.vmap`.

    Conjugate gradients (Hestenes and Stiefel, 1952) takes about `sqrt(k) / 2 log(2 / tol)`
    products, with k the condition number; fewer if only a few eigenvalues lie apart from the
    others. The residual of the recurrence drifts from the true one. So when it has converged, the
    true residual is computed by a product of its own. The search continues from there as long as
    this at least halves the true residual.

    **Error bound.** With the smallest eigenvalue `lambda_min > 0`, the error is
    `|x - x*| <= residual |b| / lambda_min`. For a matrix without negative eigenvalues plus damping
    d, lambda_min is at least d. Rounding keeps the residual above about `eps |A| |x| / |b|`, which
    may be k eps: in float32 it reached 3e-4 for k = 1e4. A system may be solved even if the
    operator is not positive; the bound then has the smallest eigenvalue in magnitude.

    Memory: 4 vectors in addition to the linearisation. On CPU, do not call it inside your own jit
    if the loss has convolutions (`sharpjax.loops`).

    Args:
        operator: symmetric and positive.
        vector: b, a tree like the vectors of the operator.
        tol: target for the residual, between 0 and 1; may be traced.
        max_products: largest number of products, at least 1; the last one is for the residual.
        start: initial x, such as the solution for an earlier checkpoint; default zero. It costs one
            product.

    Raises:
        UserError: an argument does not fit.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1.0, 5.0) * w**2) / 2
    >>> found = solve(hessian(loss, jnp.ones(4), jnp.ones(8)) + 1.0, jnp.ones(4))
    >>> print(found.value.round(3), int(found.status))
    [0.5   0.333 0.25  0.2  ] 0
    """
    caller = "solve"
    check_operator(caller, operator)
    max_products = min(whole_number(caller, "max_products", max_products), 2**31 - 1)
    if not isinstance(tol, Tracer) and not 0 < number_of(tol) < 1:
        raise UserError(f"{caller}: tol must be a number between 0 and 1, got {tol}.")
    vector = check_vector(caller, "vector", "solve(operator, v)", operator, vector)
    if start is not None:
        start = check_vector(caller, "start", "solve(operator, b, start=v)", operator, start)
    like, product = operator.like, linearize(operator)
    packed = packing.of(like, (product, vector, start, tol))
    if packed is not None:
        product, like = packed.product(product), packed.like
        vector = packed.store(vector)
        start = None if start is None else packed.store(start)
    state, unit = _begin(
        *(without_derivative(vector), without_derivative(start), like),
        *(tol, max_products, recurrence.shardings(like)),
    )
    state, _ = loops.iterate(
        ConjugateGradientStep(),
        state,
        product,
        max_steps=max_products,
        until=_is_done,
        donate=True,
    )
    found = _finish(state, unit)
    return found if packed is None else found._replace(value=packed.read(found.value))


class ConjugateGradients(NamedTuple):
    """The state of a solve, with b scaled so that its largest entry is of order one.

    Attributes:
        value: x.
        right: b.
        residual: r, from the recurrence.
        direction: p.
        size: |b|.
        tol: target for `|b - A x| / |b|`.
        squared: r'r.
        unit: unit of products with directions; 0 until one is not zero.
        largest: the largest |A p| / |p| so far, in this unit.
        true_residual: `|b - A x| / |b|` from the last product with x itself; infinite before.
        limit: largest number of products, int32.
        num_products: int32.
        verify: the next product is with x itself.
        done: the solve has ended.
        status: the final status, unless the true residual meets `tol`.
    """

    value: Params
    right: Params
    residual: Params
    direction: Params
    size: jax.Array
    tol: jax.Array
    squared: jax.Array
    unit: jax.Array
    largest: jax.Array
    true_residual: jax.Array
    limit: jax.Array
    num_products: jax.Array
    verify: jax.Array
    done: jax.Array
    status: jax.Array


@dataclasses.dataclass(frozen=True)
class ConjugateGradientStep:
    """One product, with a direction or with x, for `sharpjax.loops.iterate`."""

    def propose(self, state: ConjugateGradients) -> Params:
        return jax.tree.map(
            lambda x, p: jnp.where(state.verify, x, p), state.value, state.direction
        )

    def absorb(self, state: ConjugateGradients, product: Params) -> ConjugateGradients:
        product = jax.tree.map(lambda y, x: y.astype(x.dtype), product, state.value)
        state = jax.lax.cond(state.verify, _verified, _stepped, state, product)
        count = state.num_products + 1
        # The last product is with x.
        last = count + 1 >= state.limit
        return state._replace(num_products=count, verify=state.verify | last)


def _stepped(state: ConjugateGradients, product) -> ConjugateGradients:
    """Moves x to the minimum along the direction, if there is a minimum."""
    p = state.direction
    unit, product = units.scale(state.unit, product)
    curvature, length = tree.vdot(p, product), tree.norm(p)
    largest = jnp.maximum(state.largest, tree.norm(product) / length)
    noise = krylov.noise(curvature.dtype)
    positive = curvature > noise * largest * jnp.square(length)
    finite = jnp.isfinite(curvature) & jnp.isfinite(largest)
    goes = positive & finite
    rate = jnp.where(goes, state.squared / jnp.where(goes, curvature, 1), 0)
    residual = tree.add_scaled(state.residual, -rate, product)
    squared = tree.vdot(residual, residual)
    ahead = tree.add_scaled(residual, squared / state.squared, p)

    def moved(new, old):
        return jax.tree.map(lambda a, b: jnp.where(goes, a, b), new, old)

    failed = jnp.where(finite, Status.NOT_POSITIVE, Status.NON_FINITE).astype(jnp.int32)
    return state._replace(
        value=tree.add_scaled(state.value, rate / units.known(unit), p),
        residual=moved(residual, state.residual),
        direction=moved(ahead, p),
        squared=jnp.where(goes, squared, state.squared),
        unit=unit,
        largest=largest,
        verify=~goes | (jnp.sqrt(squared) <= state.tol * state.size),
        status=jnp.where(goes, state.status, failed),
    )


def _verified(state: ConjugateGradients, product) -> ConjugateGradients:
    """Takes the residual of x itself; the search goes on from it as long as that helps."""
    residual = tree.add_scaled(state.right, -1.0, product)
    squared = tree.vdot(residual, residual)
    found = jnp.sqrt(squared) / state.size
    met = found <= state.tol
    goes_on = ~met & (found < 0.5 * state.true_residual) & (state.status == Status.NOT_CONVERGED)
    finite = jnp.isfinite(found) & (state.status != Status.NON_FINITE)
    status = jnp.where(met, Status.OK, state.status)
    return state._replace(
        residual=residual,
        direction=residual,
        squared=squared,
        true_residual=found,
        verify=jnp.zeros_like(met),
        done=~goes_on,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )


def _is_done(state: ConjugateGradients) -> jax.Array:
    return state.done


@functools.partial(jax.jit, static_argnames="lie")
def _begin(vector, start, like, tol, limit, lie) -> tuple[ConjugateGradients, jax.Array]:
    """The state before the first product, and the unit of b."""
    zeros = tree.zeros_like(tree.widen(like))
    zero = tree.vdot(zeros, zeros)  # with the sharding of a sum
    unit = units.known(units.power_of_two(vector, zero.dtype))

    def scaled(x):
        # A sum with zeros of the leaf takes the sharding of the leaf, if types carry it.
        return recurrence.constrain(tree.add_scaled(zeros, 1 / unit, x), lie)

    right = scaled(vector)
    squared = tree.vdot(right, right)
    empty, finite = squared == 0, jnp.isfinite(squared)
    limit = zero.astype(jnp.int32) + limit
    status = jnp.where(empty, Status.OK, Status.NOT_CONVERGED)
    first = zeros if start is None else scaled(start)
    state = ConjugateGradients(
        value=jax.tree.map(lambda x: jnp.where(empty, 0, x), first),
        right=right,
        residual=right,
        direction=right,
        size=jnp.sqrt(squared),
        tol=zero + jnp.asarray(tol, zero.dtype),
        squared=squared,
        unit=zero,
        largest=zero,
        true_residual=jnp.where(empty, 0, zero + jnp.inf),
        limit=limit,
        num_products=zero.astype(jnp.int32),
        verify=limit <= (1 if start is None else limit),
        done=empty | ~finite,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )
    return state, unit


@tells_unknown
@jax.jit
def _finish(state: ConjugateGradients, unit) -> Solution:
    finite = state.status != Status.NON_FINITE
    value = tree.scale(unit, state.value)
    return Solution(
        value=jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), value),
        residual=jnp.where(finite, state.true_residual, jnp.nan),
        num_products=state.num_products,
        status=state.status,
    )
