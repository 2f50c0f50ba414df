"""The loop of a search for extreme eigenvalues: its basis grows, or is restarted."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops
from sharpjax.geometry.eigenpairs import convergence
from sharpjax.geometry.eigenpairs.convergence import Search, SearchStep, is_done, is_met
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.lanczos import krylov, recurrence
from sharpjax.geometry.operators.algebra import Matvec
from sharpjax.geometry.status import Status


def solve(
    step: SearchStep,
    product: Matvec,
    state: krylov.Lanczos | recurrence.Recurrence,
    *,
    tol: float | jax.Array,
    vector_tol: float | jax.Array = math.inf,
    max_products: int,
    bounded: bool = False,
    known: Any = None,
    done: bool | jax.Array = False,
) -> Search:
    """Continue a Lanczos process until all values that must converge have converged.

    Outside of a trace, a full basis is doubled, or restarted if it is bounded. Inside a trace the
    basis cannot grow, so `state` must have room for `max_products`, or be bounded.

    Args:
        step: what to search for, and the test of convergence.
        product: from `algebra.linearize`.
        state: from `krylov.start` or `recurrence.start`; donated (`loops.iterate`).
        tol, vector_tol: as in `top_eigenpairs`.
        max_products: limit on the products from here on.
        bounded: the basis may not grow; it is restarted when it is full.
        known: what the test of `step` compares with (`Search.known`).
        done: if true, take no product at all.
    """
    search = _begin(step, state, tol, vector_tol, known, done)
    state, rows = search.state, len(state.alpha)
    if loops.is_traced((search, product)):
        first = min(max_products, rows)
        search, used = loops.iterate(step, search, product, max_steps=first, until=is_done)
        if bounded and max_products > rows:
            carry, _ = loops.iterate(
                *(_Cycle(step), _Cycles(search, max_products - used), product),
                max_steps=-(-(max_products - rows) // _num_new(step, rows)),
                until=_is_last_cycle,
            )
            search = carry.search
        return search
    left, room = max_products, rows - int(krylov.num_taken(state))
    while True:
        steps = min(room, left)
        search, used = loops.iterate(
            step, search, product, max_steps=steps, until=is_done, donate=True
        )
        left -= int(used)
        if not left or search.done:
            return search
        if bounded:
            search, room = _restart(step, search), _num_new(step, rows)
        else:
            room = min(krylov.num_rows(rows), krylov.num_rows(left))
            rows += room
            search = search._replace(state=krylov.grow(search.state, rows))


def finish(
    step: SearchStep,
    vectors: bool,
    search: Search,
    error: jax.typing.ArrayLike = 0.0,
    used: jax.typing.ArrayLike = 0,
) -> Eigenpairs:
    """The eigenpairs that a search has found; for use inside a trace.

    Args:
        step, search: the search.
        vectors: whether to return the eigenvectors.
        error, used: from `certificate.certify`.
    """
    state = search.state
    found = step.bound(search, error)
    places, exist = step.places(state, found, step.tested)
    wanted, known = step.wanted(places), step.wanted(exist) & state.finite
    converged = step.converged(search.passes) & known & is_met(search, found)[wanted]
    status = jnp.where(jnp.all(converged), Status.OK, Status.NOT_CONVERGED)
    if isinstance(state, krylov.Lanczos):
        status = jnp.where(state.broken & ~jnp.all(converged), Status.BREAKDOWN, status)
    status = jnp.where(state.finite, status, Status.NON_FINITE)

    def pick(x):
        return jnp.where(known, x[wanted], jnp.nan)

    return Eigenpairs(
        values=pick(found.values),
        vectors=krylov.combine_rows(state.basis, found.weights[:, wanted]) if vectors else None,
        residuals=pick(found.residuals),
        value_errors=pick(found.value_errors),
        vector_errors=pick(found.vector_errors),
        converged=converged,
        num_products=state.num_products + used,
        status=status.astype(jnp.int32),
    )


class _Cycles(NamedTuple):
    search: Search
    left: jax.Array


@dataclasses.dataclass(frozen=True)
class _Cycle:
    """A restart, and steps until the basis is full again."""

    step: SearchStep

    def __call__(self, carry: _Cycles, product) -> _Cycles:
        search = convergence.restart(self.step, carry.search)
        steps = jnp.minimum(carry.left, _num_new(self.step, len(search.state.alpha)))
        search, used = loops.iterate(self.step, search, product, max_steps=steps, until=is_done)
        return _Cycles(search, carry.left - used)


def _is_last_cycle(carry: _Cycles) -> jax.Array:
    return carry.search.done


def _num_new(step, rows) -> int:
    return rows - sum(step.kept(rows))


# Donated, because memory may not hold two bases.
_begin = jax.jit(convergence.begin, static_argnames="step", donate_argnames="state")
_restart = jax.jit(convergence.restart, static_argnames="step", donate_argnames="search")
