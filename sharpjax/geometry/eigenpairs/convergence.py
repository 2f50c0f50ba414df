"""When the extreme Ritz values of a Lanczos process have converged."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import krylov, lanes, recurrence, ritz

Which = Literal["LA", "SA", "LM", "BE"]

_FURTHER = 3  # steps over which a value must go on to pass
_PASSED = 1000  # the count of one that has


class Search(NamedTuple):
    """A process under way, and which of its values have converged.

    Attributes:
        state: the process, `krylov.Lanczos` or, without a basis, `recurrence.Recurrence`.
        tol, vector_tol: what is asked for; no bound on vectors is infinity.
        passes: for each value that must converge, the tests passed without a break.
        done: all have, or nothing more can be done.
    """

    state: Any
    tol: jax.Array
    vector_tol: jax.Array
    passes: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class SearchStep:
    """A Lanczos step and the test whether it was the last.

    Attributes:
        k, which, guards: as in `top_eigenpairs`.
    """

    k: int
    which: Which
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

    @property
    def least_rows(self) -> int:
        """What a basis must hold at the least to be restarted."""
        return sum(self.tested) + 4

    def propose(self, search: Search):
        return search.state.vector

    def absorb(self, search: Search, product) -> Search:
        if isinstance(search.state, krylov.Lanczos):
            state = krylov.LanczosStep().absorb(search.state, product)
        else:
            state = recurrence.RecurrenceStep().absorb(search.state, product)
        search = search._replace(state=state)
        # The small eigenproblem takes longer than a product where the basis is large.
        period = max(1, len(state.alpha) // 32)
        count = lanes.furthest(state.num_products)
        last = exhausted(state)
        due = (count % period == 0) & (count >= max(self.tested)) | lanes.any_lane(last)
        passes = jax.lax.cond(
            due, lambda: self._test(search, -(-_FURTHER // period)), lambda: search.passes
        )
        broken = state.broken if isinstance(state, krylov.Lanczos) else state.invariant
        done = jnp.all(passes >= _PASSED) | ~state.finite | broken
        return search._replace(passes=passes, done=done)

    def _test(self, search: Search, further: int) -> jax.Array:
        """Counts the tests passed without a break; gives `_PASSED` where they are enough."""
        found = ritz.bound(search.state)
        places, exist = self.places(search.state, found, self.tested)
        threshold, is_guard = thresholds(search, found), self.is_guard()
        # A guard is there to show that nothing is hidden among the k values: it need be no better
        # known than the last of them.
        last = [n for i, n in enumerate(self._last_asked()) for _ in range(self.tested[i])]
        enough = jnp.maximum(threshold[places], threshold[places[jnp.array(last, jnp.int32)]])
        guard = (found.residuals * found.vector_errors)[places] <= enough
        passed = jnp.where(is_guard, guard, is_met(search, found)[places]) & exist
        passes = jnp.where(passed, search.passes + 1, 0)
        needed = jnp.where(is_guard, 1, 1 + (further if self.guards else 0))
        all_there_is = exhausted(search.state) & (passed | ~exist)
        return jnp.where(all_there_is | (passes >= needed), _PASSED, passes)

    def _last_asked(self) -> tuple[int, int]:
        """Where the last of the k values of each end is among those tested."""
        return self.ends[0] - 1, self.tested[0] + self.ends[1] - 1

    def places(
        self, state, found: ritz.Ritz, counts: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Where the outermost values lie among all, so many of each end, and which exist.

        Without a basis, of each cluster only the outermost: the others may be copies of it.
        """
        number, values = krylov.num_values(state), found.values
        reached = jnp.arange(len(values), dtype=jnp.int32) < number
        from_above, from_below = reached, reached
        with_basis = isinstance(state, krylov.Lanczos)
        if not with_basis:
            from_above, from_below = jnp.expand_dims(reached, 0) & found.heads
        if self.which == "LM":
            ok = jnp.where(values >= 0, from_above, from_below)
            order = jnp.argsort(jnp.where(ok, -jnp.abs(values), math.inf))
            rank = jnp.arange(counts[0], dtype=jnp.int32)
            exist = rank < jnp.sum(ok, dtype=jnp.int32)
            return order[jnp.minimum(rank, len(values) - 1)], exist
        from_top, from_bottom = (0, counts[0]) if self.which == "SA" else counts
        if with_basis:
            top, bottom = (jnp.arange(n, dtype=jnp.int32) for n in (from_top, from_bottom))
            places = jnp.concatenate([number - 1 - top, bottom])
            return jnp.clip(places, 0, len(values) - 1), jnp.concatenate([top, bottom]) < number
        top, bottom = _first(from_above[::-1], from_top), _first(from_below, from_bottom)
        places = jnp.concatenate([len(values) - 1 - top[0], bottom[0]])
        return places, jnp.concatenate([top[1], bottom[1]])

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

    def kept(self, rows: int) -> tuple[int, int]:
        """How many rows of so many to keep from each end at a restart."""
        first, second = self.tested
        more = (rows - first - second) // 2
        if not second:
            return first + more, 0
        return first + (more + 1) // 2, second + more // 2


def thresholds(search: Search, found: ritz.Ritz) -> jax.Array:
    """(m,): the error that is asked for, or that can be asked for."""
    least = 10 * krylov.noise(found.values.dtype) * found.extent
    return jnp.maximum(search.tol * jnp.abs(found.values), least)


def is_met(search: Search, found: ritz.Ritz) -> jax.Array:
    """(m,): whether a value and its vector are as good as was asked for."""
    near = found.value_errors <= thresholds(search, found)
    return near & (found.vector_errors <= search.vector_tol)


def _first(ok, count):
    """The first places where it holds, as many as are asked for, and which exist."""
    rank = jnp.expand_dims(jnp.arange(count, dtype=jnp.int32), 1)
    before = jnp.cumsum(ok, dtype=jnp.int32) - 1
    chosen = jnp.expand_dims(ok, 0) & (jnp.expand_dims(before, 0) == rank)
    return jnp.argmax(chosen, axis=1).astype(jnp.int32), jnp.any(chosen, axis=1)


def exhausted(state: krylov.Lanczos | recurrence.Recurrence) -> jax.Array:
    """Whether no start in this space can show more."""
    if isinstance(state, krylov.Lanczos):
        return state.row >= tree.countable(state.vector)
    return state.invariant


def begin(step: SearchStep, state, tol, vector_tol) -> Search:
    """A search that has seen nothing yet; for use inside a trace."""
    zero = state.num_products
    return Search(
        state=state,
        tol=jnp.asarray(tol, state.alpha.dtype),
        vector_tol=jnp.asarray(vector_tol, state.alpha.dtype),
        passes=jnp.full(sum(step.tested), zero),
        done=zero != 0,
    )


def is_done(search: Search) -> jax.Array:
    """For `loops.iterate`."""
    return search.done


def restart(step: SearchStep, search: Search) -> Search:
    """The search with a full basis replaced by its outermost Ritz vectors; inside a trace."""
    state = search.state
    values, weights = krylov.ritz(state)
    found = ritz.bound(state)
    keep, _ = step.places(state, found, step.kept(len(state.alpha)))
    return search._replace(state=krylov.restart(state, values[keep], weights[:, keep]))
