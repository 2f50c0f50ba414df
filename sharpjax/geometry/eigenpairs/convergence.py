"""The test whether the extreme Ritz values of a Lanczos process have converged."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.geometry.lanczos import krylov, lanes, recurrence, ritz

Which = Literal["LA", "SA", "LM", "BE"]

_FURTHER = 3  # further steps over which a value must keep passing the test
_PASSED = 1000  # the count of a value that has done so


class Search(NamedTuple):
    """A process under way, and which of its values have converged.

    Attributes:
        state: the process, `krylov.Lanczos` or, without a basis, `recurrence.Recurrence`.
        tol, vector_tol: the requested accuracy; infinity means no bound on the vectors.
        passes: (t,), for each value that must converge, the tests passed in a row.
        done: all these values have converged, or nothing more can be done.
        known: data from before the search that the test of a step compares with.
    """

    state: Any
    tol: jax.Array
    vector_tol: jax.Array
    passes: jax.Array
    done: jax.Array
    known: Any = None


@dataclasses.dataclass(frozen=True)
class SearchStep:
    """A Lanczos step, and the test whether the search is done after it.

    Attributes:
        k, which, guards: as in `top_eigenpairs`.
    """

    k: int
    which: Which
    guards: int

    @property
    def ends(self) -> tuple[int, int]:
        """How many of the k values come from the first end and how many from the second."""
        return (-(-self.k // 2), self.k // 2) if self.which == "BE" else (self.k, 0)

    @property
    def tested(self) -> tuple[int, int]:
        """The same with guards; an end with no value needs none. Their sum is t."""
        first, second = self.ends
        return first + self.guards, (second + self.guards if second else 0)

    @property
    def persistence(self) -> list[int]:
        """For each tested value, the further steps over which it must keep passing."""
        steps = _FURTHER if self.guards else 0
        return [
            steps if i < asked else 0
            for asked, tested in zip(self.ends, self.tested, strict=True)
            for i in range(tested)
        ]

    @property
    def first_test(self) -> int:
        """Products before the first test."""
        return max(self.tested)

    @property
    def least_rows(self) -> int:
        """The smallest number of rows with which a basis can be restarted."""
        return sum(self.tested) + 4

    def propose(self, search: Search):
        return search.state.vector

    def absorb(self, search: Search, product) -> Search:
        if isinstance(search.state, krylov.Lanczos):
            state = krylov.LanczosStep().absorb(search.state, product)
        else:
            state = recurrence.RecurrenceStep().absorb(search.state, product)
        search = search._replace(state=state)
        # With a large basis, the small eigenproblem takes longer than a product.
        period = max(1, len(state.alpha) // 32)
        count = lanes.furthest(state.num_products)
        last = exhausted(state)
        due = (count % period == 0) & (count >= self.first_test) | lanes.any_lane(last)
        passes = jax.lax.cond(due, lambda: self._count(search, period), lambda: search.passes)
        broken = state.broken if isinstance(state, krylov.Lanczos) else state.invariant
        search = search._replace(passes=passes)
        return search._replace(done=has_passed(search) | ~state.finite | broken)

    def _count(self, search: Search, period: int) -> jax.Array:
        """The tests passed in a row; `_PASSED` for values with enough of them."""
        passed = self.test(search)
        passes = jnp.where(passed, search.passes + 1, 0)
        needed = jnp.array([1 - (-steps // period) for steps in self.persistence], passes.dtype)
        enough = (passes >= needed) | (passed & exhausted(search.state))
        return jnp.where(enough, _PASSED, passes)

    def test(self, search: Search) -> jax.Array:
        """(t,): whether each tested value is known well enough now, or cannot exist."""
        found = self.bound(search)
        places, exist = self.places(search.state, found, self.tested)
        threshold = thresholds(search, found.values, found.extent)
        # A guard only shows that nothing is hidden among the k values, so it need not be known
        # better than the last of them.
        last = jnp.array(self.last_asked, jnp.int32)
        enough = jnp.maximum(threshold[places], threshold[places[last]])
        guard = (found.residuals * found.vector_errors)[places] <= enough
        passed = jnp.where(self.is_guard(), guard, is_met(search, found)[places])
        return jnp.where(exist, passed, exhausted(search.state))

    @property
    def last_asked(self) -> list[int]:
        """For each tested value, the index among these of the last of the k values at its end."""
        first, second = self.tested
        return [self.ends[0] - 1] * first + [first + self.ends[1] - 1] * second

    def bound(self, search: Search, error: jax.typing.ArrayLike = 0.0) -> ritz.Ritz:
        """All values and their errors; no residual is below `error`, in units of the process."""
        return ritz.bound(search.state, error)

    def places(
        self, state, found: ritz.Ritz, counts: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Indices of the outermost values among all, `counts` of each end, and which exist.

        Without a basis only the outermost value of each cluster counts; the others may be copies.
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
        """(t,): which of the tested values are guards."""
        return jnp.concatenate(
            [jnp.arange(n) >= m for n, m in zip(self.tested, self.ends, strict=True)]
        )

    def outward(self, values, counts: tuple[int, int]) -> jax.Array:
        """Values, `counts` of each end, with signs such that larger means further out."""
        if self.which == "LM":
            return jnp.abs(values)
        first, second = counts
        signs = [-1 if self.which == "SA" else 1] * first + [-1] * second
        return jnp.array(signs, values.dtype) * values

    def converged(self, passes) -> jax.Array:
        """(k,): whether a value, all values before it and the next `guards` values have passed."""
        ok = passes >= _PASSED
        split = self.tested[0]
        ends = zip((ok[:split], ok[split:]), self.ends, strict=True)
        first, second = (jnp.cumprod(x)[self.guards :][:n] == 1 for x, n in ends)
        return jnp.concatenate([first, second[::-1]])

    def wanted(self, places) -> jax.Array:
        """The indices of the k values, in the order of the result."""
        split, (first, second) = self.tested[0], self.ends
        return jnp.concatenate([places[:first], places[split:][:second][::-1]])

    def kept(self, rows: int) -> tuple[int, int]:
        """How many of `rows` Ritz vectors a restart keeps from each end."""
        first, second = self.tested
        more = (rows - first - second) // 2
        if not second:
            return first + more, 0
        return first + (more + 1) // 2, second + more // 2


@dataclasses.dataclass(frozen=True)
class BeyondStep(SearchStep):
    """A step of a search for all values beyond an edge, at most k of them.

    `Search.known` holds the edge of each end, (2,), as `outward` gives it. Values beyond the edge
    must reach the requested accuracy. The guards, and the outermost value if none lies beyond, must
    be known to a tenth of their distance to the edge.
    """

    @property
    def persistence(self) -> list[int]:
        return [_FURTHER - 1] * sum(self.tested)

    @property
    def first_test(self) -> int:
        return 1

    def test(self, search: Search) -> jax.Array:
        found = self.bound(search)
        places, exist = self.places(search.state, found, self.tested)
        values, excess = found.values[places], self.excess(search, found)
        beyond = exist & (excess > 0)
        enough = thresholds(search, values, found.extent)
        enough = jnp.where(beyond, enough, jnp.maximum(enough, 0.1 * -excess))
        met = found.value_errors[places] <= enough
        met &= ~beyond | (found.vector_errors[places] <= search.vector_tol)
        guard = (found.residuals * found.vector_errors)[places] <= enough
        split, ok = self.tested[0], []
        for part in (slice(0, split), slice(split, len(values))):
            rank = jnp.arange(part.stop - part.start, dtype=jnp.int32)
            needed = jnp.maximum(jnp.sum(beyond[part], dtype=jnp.int32), 1)
            passed = jnp.where(rank < needed, met[part], guard[part])
            passed = jnp.where(exist[part], passed, exhausted(search.state))
            ok.append(passed | (rank >= needed + self.guards))
        return jnp.full(len(values), jnp.all(jnp.concatenate(ok)))

    def excess(self, search: Search, found: ritz.Ritz) -> jax.Array:
        """(t,): how far the outermost values lie beyond the edge; negative if they do not."""
        places, _ = self.places(search.state, found, self.tested)
        first, second = self.tested
        edges = search.known[jnp.array([0] * first + [1] * second, jnp.int32)]
        return self.outward(found.values[places], self.tested) - edges


def has_passed(search: Search) -> jax.Array:
    """Whether all values that must converge have done so."""
    return jnp.all(search.passes >= _PASSED)


def thresholds(search: Search, values: jax.Array, extent: jax.Array) -> jax.Array:
    """The requested error of each value, but no less than `10 noise |A|`; |A| is `extent`."""
    least = 10 * krylov.noise(values.dtype) * extent
    return jnp.maximum(search.tol * jnp.abs(values), least)


def is_met(search: Search, found: ritz.Ritz) -> jax.Array:
    """(m,): whether a value and its vector reach the requested accuracy."""
    near = found.value_errors <= thresholds(search, found.values, found.extent)
    return near & (found.vector_errors <= search.vector_tol)


def _first(ok, count):
    """The first `count` indices where `ok` holds, and which of them exist."""
    rank = jnp.expand_dims(jnp.arange(count, dtype=jnp.int32), 1)
    before = jnp.cumsum(ok, dtype=jnp.int32) - 1
    chosen = jnp.expand_dims(ok, 0) & (jnp.expand_dims(before, 0) == rank)
    return jnp.argmax(chosen, axis=1).astype(jnp.int32), jnp.any(chosen, axis=1)


def exhausted(state: krylov.Lanczos | recurrence.Recurrence) -> jax.Array:
    """Whether further products can show nothing new."""
    if isinstance(state, krylov.Lanczos):
        return state.row >= tree.countable(state.vector)
    return state.invariant


def begin(step: SearchStep, state, tol, vector_tol, known=None, done=False) -> Search:
    """A search before its first product; for use inside a trace."""
    zero = state.num_products
    return Search(
        state=state,
        tol=jnp.asarray(tol, state.alpha.dtype),
        vector_tol=jnp.asarray(vector_tol, state.alpha.dtype),
        passes=jnp.full(sum(step.tested), zero),
        done=~state.finite | done,
        known=known,
    )


def is_done(search: Search) -> jax.Array:
    """The `until` of `loops.iterate`."""
    return search.done


def restart(step: SearchStep, search: Search) -> Search:
    """The search with a full basis replaced by its outermost Ritz vectors; inside a trace."""
    state = search.state
    values, weights = krylov.ritz(state)
    found = ritz.bound(state)
    keep, _ = step.places(state, found, step.kept(len(state.alpha)))
    return search._replace(state=krylov.restart(state, values[keep], weights[:, keep]))
