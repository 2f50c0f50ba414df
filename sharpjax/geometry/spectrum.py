"""Extreme eigenpairs of an operator, each with what is known of its error."""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry import krylov, lanes
from sharpjax.geometry.algebra import Operator, linearize
from sharpjax.geometry.checks import check_key, check_operator
from sharpjax.geometry.status import Status

Which = Literal["LA", "SA", "LM", "BE"]

_UNSEEN = 10  # noise of products over what leaks into the basis: 2 in float32, 7 in bfloat16
_FURTHER = 2  # steps over which a value must go on to pass
_PASSED = 1000  # the count of one that has


class Eigenpairs(NamedTuple):
    """Eigenvalues, their vectors, and how far off they may be.

    Attributes:
        values: (k,), in the order that `which` names.
        vectors: tree like the parameters with a leading axis of k, each of norm 1; None if they
            were not asked for.
        residuals: (k,), `|A y_i - value_i y_i|`: an eigenvalue lies this near.
        value_errors: (k,), `residual_i^2 / gap_i` if it is less: it also lies this near, if the gap
            is what it seems.
        vector_errors: (k,), `residual_i / gap_i`, at most 1: then also a bound on the sine of the
            angle between the vector and the eigenspace of its cluster.
        converged: (k,), see `top_eigenpairs`.
        num_products: int32.
        status: `Status`, int32.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array
    value_errors: jax.Array
    vector_errors: jax.Array
    converged: jax.Array
    num_products: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`lambda_i`, `lambda_i_residual` for each value, and `num_products`.

        Given the start, an eigenvalue is not random: its `standard_error` is `value_errors`, the
        bound on its distance to an eigenvalue, where it has converged, and NaN (not known) where
        it has not. Residuals and counts are exact.
        """
        count = self.num_products
        errors = jnp.where(self.converged, self.value_errors, jnp.nan)
        found = {}
        for i in range(self.values.shape[-1]):
            found[f"lambda_{i + 1}"] = Estimate(self.values[..., i], errors[..., i], count)
            residual = self.residuals[..., i]
            found[f"lambda_{i + 1}_residual"] = Estimate(residual, jnp.zeros_like(residual), count)
        products = count.astype(self.values.dtype)
        return found | {"num_products": Estimate(products, jnp.zeros_like(products), count)}


def top_eigenpairs(
    operator: Operator,
    *,
    key: jax.Array,
    k: int = 1,
    which: Which = "LA",
    tol: float | jax.Array = 1e-3,
    guards: int = 2,
    max_products: int | None = None,
    vectors: bool = True,
) -> Eigenpairs:
    """The k extreme eigenvalues of an operator, and their vectors, by Lanczos.

    It stops when they have converged, after some 10 to 20 products for k = 1 and 3 k to 4 k for
    k >= 10 on networks; smallest values take several times as many.

    **What `converged[i]` promises**: an eigenvalue lies within `max(tol |value_i|, 10 eps |A|)` of
    `value_i`, where `|A|` is the largest Ritz value in magnitude and `eps` the noise of one product
    (6e-7 in float32). The residual `r_i`, or `r_i^2 / gap_i`, is within that threshold; `gap_i` is
    the distance to the nearest Ritz value outside of i's cluster, less that value's own residual.
    Values nearer than their residuals are one cluster, and `r_i^2` in the second bound is then the
    sum over the cluster. All values before i and `guards` beyond it have converged, too (a guard by
    its own `r^2 / gap`), in this step and the two before it. Without guards and persistence, a pair
    1 % apart at the top is certified wrong in 80 of 100 runs; with them in none. It is not promised
    that none was skipped: the second copy of a multiple eigenvalue cannot be seen from one start.

    Products that are noisier than their type, as those of a model that computes in bfloat16, are
    noticed: residuals are not less than the noise, and a `tol` below it is not met.

    Memory: a basis of 16 + 4 k vectors, doubled when it is full; inside a trace it cannot grow and
    has `max_products`. On CPU, do not call it inside your own jit if the loss convolves
    (`sharpjax.loops`).

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the random start.
        k: how many, at most the number of parameters.
        which: "LA" the largest, descending; "SA" the smallest, ascending; "LM" the largest in
            magnitude, by descending magnitude; "BE" both ends, ceil(k / 2) from the top and
            floor(k / 2) from the bottom, descending.
        tol: relative error that is asked for; may be traced.
        guards: values beyond the k (at each end for "BE") that must converge, too. They take most
            of the products where they lie in a dense part of the spectrum.
        max_products: products at the most, at least k; default 64 + 8 k. Values that have not
            converged by then are marked, and `status` is `NOT_CONVERGED`.
        vectors: False leaves them out; this costs no accuracy.

    Raises:
        UserError: an argument does not fit.

    References: Parlett, The Symmetric Eigenvalue Problem, 1998, chapters 11 and 13.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(jnp.arange(1.0, 6.0) * w**2) / 2
    >>> pairs = top_eigenpairs(hessian(loss, jnp.ones(5), jnp.ones(8)), key=jax.random.key(0), k=2)
    >>> pairs.values.round(4).tolist(), pairs.converged.tolist()
    ([5.0, 4.0], [True, True])
    """
    check_operator("top_eigenpairs", operator)
    size = tree.size(operator.like)
    caller = "top_eigenpairs"
    k = whole_number(caller, "k", k)
    guards = whole_number(caller, "guards", guards, least=0)
    if k > size:
        raise UserError(f"top_eigenpairs: k={k} of an operator on {size} parameters; k <= {size}.")
    if which not in get_args(Which):
        raise unknown("which", which, get_args(Which))
    if not isinstance(tol, Tracer) and not (jnp.ndim(tol) == 0 and 0 <= tol < math.inf):
        raise UserError(f"top_eigenpairs: tol must be a number >= 0, got {tol}.")
    limit = 64 + 8 * k
    if max_products is not None:
        limit = whole_number(caller, "max_products", max_products)
    if limit < k:
        raise UserError(
            f"top_eigenpairs: max_products={limit} cannot give k={k} values; each takes one "
            f"product at least, and 3 k + 10 are usual."
        )
    check_key("top_eigenpairs", key)
    limit = min(limit, size)
    step = _TopStep(k, which, guards)

    product = linearize(operator)
    rows = krylov.num_rows(min(size, 16 + 4 * k))
    state = krylov.start(key, operator.like, rows)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((state, product, tol))):
        # One loop: nothing can be looked at on the way.
        state = krylov.start(key, operator.like, krylov.num_rows(limit))
        carry, _ = loops.iterate(
            step, _begin(step, state, tol), product, max_steps=limit, until=_is_done
        )
    else:
        carry, used = _begin(step, state, tol), 0
        while used < limit:
            if used:
                rows = krylov.num_rows(min(size, 2 * rows))
                carry = carry._replace(lanczos=krylov.grow(carry.lanczos, rows))
            steps = min(rows, limit) - used
            carry, _ = loops.iterate(step, carry, product, max_steps=steps, until=_is_done)
            used += steps
            if carry.done:
                break
    return _finish(step, vectors, carry)


class _Carry(NamedTuple):
    """`passes`: for each value that must converge, the tests passed without a break."""

    lanczos: krylov.Lanczos
    tol: jax.Array
    passes: jax.Array
    done: jax.Array


class _Ritz(NamedTuple):
    """All (m,) in ascending order of the values; only the first `num_products` mean anything."""

    values: jax.Array
    weights: jax.Array
    residuals: jax.Array
    value_errors: jax.Array
    vector_errors: jax.Array
    passed: jax.Array
    passed_as_guard: jax.Array


@dataclasses.dataclass(frozen=True)
class _TopStep:
    """A Lanczos step and the test whether it was the last."""

    k: int
    which: str
    guards: int

    @property
    def ends(self) -> tuple[int, int]:
        """How many of the k values come from the first and from the second end."""
        return (-(-self.k // 2), self.k // 2) if self.which == "BE" else (self.k, 0)

    @property
    def tested(self) -> tuple[int, int]:
        """The same with guards: an end with no value needs none."""
        first, second = self.ends
        return first + self.guards, (second + self.guards if second else 0)

    def propose(self, carry: _Carry):
        return carry.lanczos.vector

    def absorb(self, carry: _Carry, product) -> _Carry:
        lanczos = krylov.LanczosStep().absorb(carry.lanczos, product)
        carry = carry._replace(lanczos=lanczos)
        # The small eigenproblem takes longer than a product where the basis is large.
        period = max(1, len(lanczos.alpha) // 32)
        count = lanes.furthest(lanczos.num_products)
        due = (count % period == 0) | (count >= tree.size(lanczos.vector))
        passes = jax.lax.cond(
            due, lambda: self._test(carry, 1 + -(-_FURTHER // period)), lambda: carry.passes
        )
        done = jnp.all(passes >= _PASSED) | ~lanczos.finite | lanczos.broken
        return carry._replace(passes=passes, done=done)

    def _test(self, carry: _Carry, enough: int) -> jax.Array:
        """Counts up to `enough` tests passed without a break, then gives `_PASSED`."""
        lanczos = carry.lanczos
        found = _ritz(lanczos, carry.tol)
        places, exist = self.places(lanczos, found.values)
        exhausted = lanczos.num_products >= tree.size(lanczos.vector)
        passed = jnp.where(self.is_guard(), found.passed_as_guard[places], found.passed[places])
        passed &= exist
        passes = jnp.where(passed, carry.passes + 1, 0)
        all_there_is = exhausted & (passed | ~exist)
        return jnp.where(all_there_is | (passes >= enough), _PASSED, passes)

    def places(self, lanczos, values) -> tuple[jax.Array, jax.Array]:
        """Where the values that must converge lie among the Ritz values, and which exist."""
        count = lanczos.num_products
        top, bottom = (jnp.arange(n, dtype=jnp.int32) for n in self.tested)
        if self.which == "LM":
            reached = jnp.arange(len(values), dtype=jnp.int32) < count
            by_size = jnp.argsort(jnp.where(reached, -jnp.abs(values), jnp.inf))
            places = by_size[jnp.minimum(top, len(values) - 1)]
        elif self.which == "SA":
            places = top
        else:
            places = jnp.concatenate([count - 1 - top, bottom])
        exist = jnp.concatenate([top, bottom]) < count
        return jnp.clip(places, 0, len(values) - 1), exist

    def is_guard(self) -> jax.Array:
        """Which of the values that must converge were not asked for."""
        return jnp.concatenate(
            [jnp.arange(n) >= m for n, m in zip(self.tested, self.ends, strict=True)]
        )

    def converged(self, passes) -> jax.Array:
        """(k,): those that have persisted with all values before them and the guards beyond."""
        ok = passes >= _PASSED
        split = self.tested[0]
        ends = zip((ok[:split], ok[split:]), self.ends, strict=True)
        first, second = (jnp.cumprod(x)[self.guards :][:n] == 1 for x, n in ends)
        return jnp.concatenate([first, second[::-1]])

    def wanted(self, places) -> jax.Array:
        """The k places, in the order of the result."""
        split, (first, second) = self.tested[0], self.ends
        return jnp.concatenate([places[:first], places[split:][:second][::-1]])


def _ritz(lanczos: krylov.Lanczos, tol) -> _Ritz:
    values, weights = krylov.ritz(lanczos)
    count = lanczos.num_products
    index = jnp.arange(len(values), dtype=jnp.int32)
    reached = index < count
    size = jnp.max(jnp.where(reached, jnp.abs(values), 0))
    eps = krylov.noise(values.dtype)
    last = jnp.maximum(count - 1, 0)
    raw = jnp.abs(lanczos.beta[last] * weights[last])
    # None is known better than a product is: the recurrence goes on as if there were no noise.
    residuals = jnp.maximum(raw, jnp.maximum(eps * size, _UNSEEN * lanczos.leak))

    # Clusters: values whose intervals value +- residual overlap, directly or through others.
    upper = jnp.where(reached, values + residuals, -jnp.inf)
    lower = jnp.where(reached, values - residuals, jnp.inf)
    highest_so_far = jax.lax.cummax(upper)
    lowest_from_here = jax.lax.cummin(lower, reverse=True)
    below = jnp.concatenate([jnp.full_like(upper[:1], -jnp.inf), highest_so_far[:-1]])
    is_first = lowest_from_here > below
    above = jnp.concatenate([lowest_from_here[1:], jnp.full_like(lower[:1], jnp.inf)])
    is_last = highest_so_far < above
    edge_below = jax.lax.cummax(jnp.where(is_first, below, -jnp.inf))
    edge_above = jax.lax.cummin(jnp.where(is_last, above, jnp.inf), reverse=True)
    gaps = jnp.minimum(values - edge_below, edge_above - values)
    # Without any other value nothing is known of the gap, but that there is none in all of space.
    exhausted = count >= tree.size(lanczos.vector)
    gaps = jnp.where(jnp.isinf(gaps) & ~exhausted, 0, gaps)

    cluster = jnp.cumsum(is_first)
    together = jnp.expand_dims(cluster, 1) == jnp.expand_dims(cluster, 0)
    own = jnp.expand_dims(jnp.where(reached, jnp.square(residuals), 0), 0)
    squares = jnp.sum(jnp.where(together, own, 0), axis=1)
    safe = jnp.where(gaps > 0, gaps, 1)
    quadratic = jnp.maximum(squares / safe, eps * size)
    value_errors = jnp.where(gaps > 0, jnp.minimum(quadratic, residuals), residuals)
    vector_errors = jnp.where(gaps > residuals, residuals / safe, 1)
    threshold = jnp.maximum(tol * jnp.abs(values), 10 * eps * size)
    return _Ritz(
        values=values,
        weights=weights,
        residuals=residuals,
        value_errors=value_errors,
        vector_errors=vector_errors,
        passed=reached & (value_errors <= threshold),
        passed_as_guard=reached & (residuals * vector_errors <= threshold),
    )


@functools.partial(jax.jit, static_argnames="step")
def _begin(step, state: krylov.Lanczos, tol) -> _Carry:
    zero = state.num_products
    return _Carry(
        lanczos=state,
        tol=jnp.asarray(tol, state.alpha.dtype),
        passes=jnp.full(sum(step.tested), zero),
        done=zero != 0,
    )


def _is_done(carry: _Carry) -> jax.Array:
    return carry.done


@functools.partial(jax.jit, static_argnames=("step", "vectors"))
def _finish(step, vectors, carry: _Carry) -> Eigenpairs:
    lanczos = carry.lanczos
    found = _ritz(lanczos, carry.tol)
    places, exist = step.places(lanczos, found.values)
    wanted, known = step.wanted(places), step.wanted(exist) & lanczos.finite
    converged = step.converged(carry.passes) & known
    status = jnp.where(jnp.all(converged), Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(lanczos.broken & ~jnp.all(converged), Status.BREAKDOWN, status)
    status = jnp.where(lanczos.finite, status, Status.NON_FINITE)

    def pick(x):
        return jnp.where(known, x[wanted], jnp.nan)

    found_vectors = (
        krylov.combine_rows(lanczos.basis, found.weights[:, wanted]) if vectors else None
    )
    return Eigenpairs(
        values=pick(found.values),
        vectors=found_vectors,
        residuals=pick(found.residuals),
        value_errors=pick(found.value_errors),
        vector_errors=pick(found.vector_errors),
        converged=converged,
        num_products=lanczos.num_products,
        status=status.astype(jnp.int32),
    )
