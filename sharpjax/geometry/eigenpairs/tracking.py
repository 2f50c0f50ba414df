"""Eigenpairs of an operator that has changed a little since they were last found.

Along training, or from a sample of the data to all of it, the leading eigenvectors turn slowly. A
search that starts from a combination of the earlier ones spans them again in a few products, and
what was known of the values beyond the k stands in for the guards that a search from nothing needs.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.geometry.eigenpairs.convergence import SearchStep, Which
from sharpjax.geometry.eigenpairs.result import Eigenpairs
from sharpjax.geometry.eigenpairs.starts import GUARDS, MOST_DRIFT, Start, innermost
from sharpjax.geometry.lanczos import krylov, lanes, ritz, units
from sharpjax.geometry.operators.algebra import Matvec
from sharpjax.geometry.status import Status, tells_unknown

Params = Any

PERIOD = 20  # every so many results come from a search from nothing

_GUARD_WEIGHTS = (0.1, 0.05)  # of their vectors in the start, where those asked for have 1
_FRESH = 0.003  # the length of a random direction in it
_STRICTER = 0.3  # of the tolerance: what is known of the gap is a guess
_LEAST_DRIFT = 0.01  # of the largest value: how far a guard may move, whatever the last one did
_SEEN, _MEASURED = 0.1, 0.3  # of how far a guard may have moved: a residual that shows where it is


def follow(
    product: Matvec,
    start: Start,
    *,
    key: jax.Array,
    like: Params,
    k: int,
    which: Which,
    tol: float | jax.Array,
    vector_tol: float | jax.Array,
) -> tuple[Eigenpairs, Start, jax.Array]:
    """Eigenpairs by Lanczos from a combination of earlier ones and one random direction.

    The start is the sum of the vectors asked for, with little of the two beyond them and less of a
    random vector: so values that change places are followed, and one that comes up from below is
    met. It takes k + 2 products at the least.

    There are no guards and no persistence. In their place the gap of a value is taken no larger
    than to where the next values were in `start`, further out by as much as those asked for have
    moved since and any of them had moved before, until these next values are found again; and the
    error has to be within .3 of the threshold. On eight paths of 13 steps on which eigenvalues
    cross, from 32 starts each, no value so found was off by more than 1e-3, and it took 2 to 2.3
    times fewer products than from nothing; on Hessians of two small nets in training, where the
    largest two are 1 to 34 % apart, 1.8 to 2.1 times, every 5 or every 50 steps, and none of 234
    was off. The constants were chosen on these Hessians and the first of the paths, and not with
    much to spare: what is a little looser was off in 20 of 416 on that path.
    That none was skipped is shown by a search from nothing alone, so every `PERIOD`-th is asked to
    be one: what is new at the top and orthogonal to all that is carried is not met before.

    Memory: a basis of 16 + 4 k vectors.

    Args:
        product: from `algebra.linearize`.
        start: from `carried` or an earlier `follow`, and checked by `check_start`.
        key: for the random direction.
        like: as `Operator.like`.
        k, which, tol, vector_tol: as in `top_eigenpairs`.

    Returns:
        The eigenpairs, what to carry on, and whether they are to be found from nothing instead: the
        period is over, or they have not converged in 16 + 4 k products, or `start` is not finite.
    """
    step = SearchStep(k, which, GUARDS)
    size = tree.size(like)
    limit = min(16 + 4 * k, size)
    vector, due = _combine(step, start, key, like)
    state = krylov.start(key, like, krylov.num_rows(limit), vector=vector)
    carry = _begin(state, start, tol, vector_tol)
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((carry, due, product)))
    steps = jnp.where(due, 0, limit) if traced else 0 if due else limit
    carry, _ = loops.iterate(
        _FollowStep(step), carry, product, max_steps=steps, until=_is_done, donate=True
    )
    return _finish(step, carry, start, due)


def choose(again: jax.Array, anew: Eigenpairs, followed: Eigenpairs) -> Eigenpairs:
    """The one or the other, with the products of both."""
    chosen = jax.tree.map(lambda a, b: jnp.where(again, a, b), anew, followed)
    count = followed.num_products + jnp.where(again, anew.num_products, 0)
    return chosen._replace(num_products=count)


class _Follow(NamedTuple):
    """`old`: values of the start, in the order of `SearchStep.places`; `drift`: its own."""

    state: krylov.Lanczos
    old: jax.Array
    drift: jax.Array
    tol: jax.Array
    vector_tol: jax.Array
    done: jax.Array


class _Found(NamedTuple):
    """Ritz values asked for and guards, (t,), with errors by what was known before."""

    places: jax.Array
    exist: jax.Array
    weights: jax.Array
    values: jax.Array
    residuals: jax.Array
    value_errors: jax.Array
    vector_errors: jax.Array
    converged: jax.Array
    moved: jax.Array


@dataclasses.dataclass(frozen=True)
class _FollowStep:
    """A Lanczos step and the test whether it was the last."""

    step: SearchStep

    def propose(self, carry: _Follow):
        return carry.state.vector

    def absorb(self, carry: _Follow, product) -> _Follow:
        state = krylov.LanczosStep().absorb(carry.state, product)
        carry = carry._replace(state=state)
        exhausted = state.row >= tree.countable(state.vector)
        due = (lanes.furthest(state.num_products) >= sum(self.step.tested)) | exhausted
        asked = ~self.step.is_guard()

        def test():
            return jnp.all(_bound(self.step, carry).converged | ~asked)

        done = due & jax.lax.cond(lanes.any_lane(due), test, lambda: ~state.finite)
        return carry._replace(done=done | ~state.finite | state.broken)


def _is_done(carry: _Follow) -> jax.Array:
    return carry.done


@functools.partial(jax.jit, static_argnames="step")
def _combine(step: SearchStep, start: Start, key, like) -> tuple[Params, jax.Array]:
    """The vector to start from, and whether there is none or the period is over."""
    zeros = tree.zeros_like(tree.widen(like))
    fresh = tree.add_scaled(zeros, 1.0, tree.random_normal(key, zeros))
    weights = [
        ([1.0] * asked + list(_GUARD_WEIGHTS))[:count]
        for asked, count in zip(step.ends, step.tested, strict=True)
    ]
    weights = jnp.array(weights[0] + weights[1], start.values.dtype)
    known = krylov.combine_rows(start.vectors, jnp.expand_dims(weights, 1))
    known = tree.index(known, 0)
    size = tree.norm(known)
    usable = jnp.isfinite(size) & (size > 0) & jnp.all(~jnp.isnan(start.values))
    share = jnp.where(usable, _FRESH * step.k**0.5 / tree.norm(fresh), 1)
    known = jax.tree.map(lambda x: jnp.where(usable, x, 0), known)
    return tree.add_scaled(known, share, fresh), ~usable | (start.age + 1 >= PERIOD)


@functools.partial(jax.jit, donate_argnames="state")
def _begin(state: krylov.Lanczos, start: Start, tol, vector_tol) -> _Follow:
    dtype = state.alpha.dtype
    return _Follow(
        state=state,
        old=start.values.astype(dtype),
        drift=start.drift.astype(dtype),
        tol=jnp.asarray(tol, dtype),
        vector_tol=jnp.asarray(vector_tol, dtype),
        done=~state.finite,
    )


def _outward(step: SearchStep, values) -> jax.Array:
    """Values (t,) in the order of `SearchStep.places`, the larger the further out at their end."""
    split = step.tested[0]
    if step.which == "LM":
        return jnp.abs(values)
    signs = [-1.0 if step.which == "SA" else 1.0] * split + [-1.0] * (len(values) - split)
    return jnp.array(signs, values.dtype) * values


def _by_end(step: SearchStep, values, select, reduce) -> jax.Array:
    """(t,): at each place the reduction over what is selected at its end."""
    split = step.tested[0]
    found = []
    for part in (slice(0, split), slice(split, len(values))):
        if part.start < len(values):
            chosen = jnp.where(select[part], values[part], -jnp.inf)
            found.append(jnp.full_like(chosen, reduce(chosen)))
    return jnp.concatenate(found)


def _bound(step: SearchStep, carry: _Follow) -> _Found:
    state = carry.state
    found = ritz.bound(state)
    places, exist = step.places(state, found, step.tested)
    values, residuals = found.values[places], found.residuals[places]
    guard = step.is_guard()
    now, before = _outward(step, values), _outward(step, carry.old)
    moved = _by_end(step, jnp.abs(now - before), ~guard, jnp.max) + carry.drift
    unseen = guard & (residuals > _SEEN * moved)
    edge = _by_end(step, before + moved, unseen, jnp.max)

    gaps = found.gaps[places]
    exhausted = state.row >= tree.countable(state.vector)
    narrow = jnp.where(exhausted, gaps, jnp.minimum(gaps, now - edge))
    # The sum of squared residuals over the cluster, where it was taken to bound the value.
    unit = units.known(state.unit)
    squares = found.value_errors[places] / unit * jnp.where(exhausted, 1, gaps)
    safe = jnp.where(narrow > 0, narrow, 1)
    errors = jnp.where(narrow > 0, jnp.maximum(squares / safe * unit, found.shift), residuals)
    errors = jnp.minimum(errors, residuals)
    errors = jnp.where(exhausted, found.value_errors[places], errors)
    vector_errors = jnp.where(narrow > residuals, residuals / safe, 1)
    noise = krylov.noise(values.dtype) * found.extent
    threshold = jnp.maximum(carry.tol * jnp.abs(values) * _STRICTER, 10 * noise)
    return _Found(
        places=places,
        exist=exist,
        weights=jnp.where(jnp.expand_dims(exist, 0), found.weights[:, places], 0),
        values=values,
        residuals=residuals,
        value_errors=errors,
        vector_errors=vector_errors,
        converged=exist & (errors <= threshold) & (vector_errors <= carry.vector_tol),
        moved=moved,
    )


@tells_unknown
@functools.partial(jax.jit, static_argnames="step")
def _finish(
    step: SearchStep, carry: _Follow, start: Start, due
) -> tuple[Eigenpairs, Start, jax.Array]:
    state, old = carry.state, carry.old
    found = _bound(step, carry)
    vectors = krylov.combine_rows(state.basis, found.weights)
    index = step.wanted(jnp.arange(len(old), dtype=jnp.int32))
    known = found.exist[index] & state.finite
    converged = found.converged[index] & known
    status = jnp.where(jnp.all(converged), Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(state.finite, status, Status.NON_FINITE).astype(jnp.int32)

    def pick(x):
        return jnp.where(known, x[index], jnp.nan)

    pairs = Eigenpairs(
        values=pick(found.values),
        vectors=jax.tree.map(lambda y: y[index], vectors),
        residuals=pick(found.residuals),
        value_errors=pick(found.value_errors),
        vector_errors=pick(found.vector_errors),
        converged=converged,
        num_products=state.num_products,
        status=status,
    )
    return pairs, _carry_on(step, carry, found, vectors, start), due | (status != Status.OK)


def _carry_on(step: SearchStep, carry: _Follow, found: _Found, vectors, start: Start) -> Start:
    """The vectors asked for, the guards that are found, and in place of the others what was known.

    A few products may not have reached a guard, and what they show in its place is of no use: but
    it is one that may come up next. So the first of the earlier vectors stand in that are not
    spanned by those that are found; which may be one that was asked for and has been overtaken.
    """
    guard = step.is_guard()
    now, before = _outward(step, found.values), _outward(step, carry.old)
    known = found.exist & (~guard | (found.residuals <= _MEASURED * found.moved))
    # As far out as it may be by now: so one that is not found comes nearer to those asked for,
    # until no gap is seen beside it, and the search goes on till it is found.
    kept = jnp.minimum(before + found.moved, _by_end(step, now, ~guard, jnp.max))

    def spanned(w):
        overlaps = jax.vmap(lambda y: tree.vdot(y, w))(vectors)
        return jnp.sum(jnp.where(known, jnp.square(overlaps), 0))

    free = jax.vmap(spanned)(start.vectors) < 0.5
    places = []
    split, count = step.tested[0], len(now)
    for part in (slice(0, split), slice(split, count)):
        rank = jnp.arange(part.stop - part.start, dtype=jnp.int32)
        order = jnp.argsort(
            jnp.concatenate(
                [
                    jnp.where(known[part], 0, 2 * count) + rank,
                    jnp.where(free[part], count, 3 * count) + rank,
                ]
            )
        )
        index = jnp.arange(part.start, part.stop, dtype=jnp.int32)
        both = jnp.concatenate([index, index + count])
        places.append(both[order[: len(index)]])
    places = jnp.concatenate(places)
    among = jnp.concatenate([now, kept])
    values = jnp.where(known, now, jnp.maximum(now, among[places]))
    signs = jnp.where(now == found.values, 1, -1).astype(now.dtype)
    shown = jnp.max(jnp.where(known & jnp.isfinite(before), jnp.abs(now - before), 0))
    measured = jnp.maximum(shown, carry.drift / 2)
    drift = jnp.where(jnp.any(known & guard), measured, jnp.maximum(shown, carry.drift))
    largest = jnp.max(jnp.where(guard | ~found.exist, 0, jnp.abs(now)))
    least, most = _LEAST_DRIFT * largest, MOST_DRIFT * largest
    return Start(
        vectors=jax.tree.map(
            lambda y, w: jnp.concatenate([y, w.astype(y.dtype)])[places], vectors, start.vectors
        ),
        values=jnp.where(found.exist, signs * values, innermost(step, now.dtype)),
        drift=jnp.clip(drift, least, most),
        age=start.age + 1,
    )
