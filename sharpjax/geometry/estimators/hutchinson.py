"""Random probes of an operator, `z` and `A z`, and the statistics computed from them.

For normal `z`, `E z'Az = tr A` (Hutchinson, 1990). If part of the operator is known, the probes are
of the rest, `P A P` with `P = I - Q Q'` (`sharpjax.geometry.estimators.deflation`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.accuracy import Accuracy, how_it_ended
from sharpjax.geometry.estimators.complement import KrylovComplement
from sharpjax.geometry.estimators.request import Found
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.operators.algebra import Matvec

Params = Any

_BOUNDLESS = 1e15


class Statistic(Protocol):
    """A quantity computed from probes: a frozen dataclass, equal by value.

    `B = P A P` is the part of the operator that is left to probes. `exact` is the contribution of
    the known part to the quantity, and `sums` are sums over probes `z` and products `B z`. The
    operator is in units of the process (`Probing.unit`).
    """

    @property
    def least(self) -> int:
        """The number of probes needed before an error is trusted."""
        ...

    def draw(self, key: jax.Array, like: Params) -> Params:
        """One probe."""
        ...

    def begin(self, like: Params) -> tuple[Any, Any]:
        """`exact` if nothing is known, and the sums before the first probe."""
        ...

    def add(self, sums: Any, probe: Params, product: Params) -> Any: ...

    def deflate(self, exact: Any, q: Params, b: Params, noise: jax.Array) -> Any:
        """`exact` after one more vector: `q`, of norm 1 and `P q = q`, with `b = P A q`.

        The part left to probes changes by
        `P A P - (I - qq') P A P (I - qq') = qb' + bq' - (q'b) qq'`. The error in `exact` also
        grows: by the noise in `b`, whose squared norm is `noise`, taken in the worst direction
        because its direction is unknown; and by the rounding of sums.
        """
        ...

    def estimate(self, exact: Any, sums: Any, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The size of the quantity, to which relative errors refer, and its standard error.

        The error includes the noise of the products, not only the spread over probes.
        """
        ...

    def read(self, treedef: Any, exact: Any, sums: Any, count: jax.Array) -> tuple[Any, Any, Any]:
        """Value, error and remainder, as in `Found`, for vectors of the structure `treedef`."""
        ...


class Probing(NamedTuple):
    """The state of a run of probes.

    Attributes:
        probe: the next probe, a vector of the whole space.
        key: for the probes after it.
        complement: the subspace that the probes are projected on; None for the whole space.
        unit: of the operator; 0 until a product is not zero.
        kept: the first probes and their products, leaves (rows, *shape), or None.
        exact, sums: of the statistic.
        count: int32, number of probes in `sums`.
        finite: no product has held a NaN or an infinity.
        accuracy: the requested accuracy.
    """

    probe: Params
    key: jax.Array
    complement: KrylovComplement | None
    unit: jax.Array
    kept: tuple[Params, Params] | None
    exact: Any
    sums: Any
    count: jax.Array
    finite: jax.Array
    accuracy: Accuracy


def begin(
    statistic: Statistic, key: jax.Array, like: Params, accuracy: Accuracy, *, keep: int = 0
) -> Probing:
    """The state before the first probe; `keep` probes will be kept. Compiled once per structure."""
    return _begin(statistic, key, like, accuracy, keep)


def run(
    statistic: Statistic,
    state: Probing,
    product: Matvec,
    *,
    max_probes: int | jax.Array,
    to_accuracy: bool,
) -> Probing:
    """Takes at most `max_probes` probes; with `to_accuracy`, stops at the requested accuracy.

    The state is donated (`loops.iterate`).
    """
    until = Reached(statistic) if to_accuracy else is_not_finite
    state, _ = loops.iterate(
        ProbeStep(statistic), state, product, max_steps=max_probes, until=until, donate=True
    )
    return state


def read(statistic: Statistic, state: Probing, steps: jax.Array) -> Found:
    """The result of the probes, in units of the operator; `steps` counts all other products."""
    unit, treedef = units.known(state.unit), jax.tree.structure(state.probe)
    seen = statistic.read(treedef, state.exact, state.sums, state.count)
    value, error, remainder = (tree.scale(unit, x) for x in seen)
    return Found(value, error, remainder, state.count + steps)


def status(statistic: Statistic, state: Probing, to_accuracy: bool) -> jax.Array:
    """A `Status`: `OK` if the requested accuracy is reached, or none was requested."""
    met = Reached(statistic)(state) if to_accuracy else state.finite
    return how_it_ended(met & units.has_digits(state.unit), state.finite)


def estimate(statistic: Statistic, state: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Size and error from the statistic, and the allowed error, all in units of the process.

    Args:
        statistic: the quantity to estimate.
        state: with `unit`, `exact`, `sums`, `count` and `accuracy`.
    """
    size, error = statistic.estimate(state.exact, state.sums, state.count)
    unit = units.known(state.unit)
    # Capped above any error there is, such that the square does not overflow.
    allowed = jnp.minimum(state.accuracy.allowed(size * unit) / unit, _BOUNDLESS)
    return size, error, allowed


@dataclasses.dataclass(frozen=True)
class ProbeStep:
    """One probe, for `sharpjax.loops.iterate`."""

    statistic: Statistic

    def propose(self, state: Probing) -> Params:
        if state.complement is None:
            return state.probe
        return state.complement.project(state.probe)

    def absorb(self, state: Probing, product: Params) -> Probing:
        product = jax.tree.map(lambda p, z: p.astype(z.dtype), product, state.probe)
        unit, product = units.scale(state.unit, product)
        if state.complement is not None:
            product = state.complement.restrict(state.probe, product)
        kept = state.kept
        if kept is not None:
            pair = (state.probe, product)
            kept = jax.tree.map(lambda rows, x: _keep(rows, x, state.count), kept, pair)
        probe, key = draw(self.statistic, state.key, state.probe)
        sums = self.statistic.add(state.sums, state.probe, product)
        count = state.count + 1
        size, error = self.statistic.estimate(state.exact, sums, count)
        return state._replace(
            probe=probe,
            key=key,
            unit=unit,
            kept=kept,
            sums=sums,
            count=count,
            finite=state.finite & jnp.isfinite(size) & jnp.isfinite(error),
        )


@dataclasses.dataclass(frozen=True)
class Reached:
    """Whether a requested error is met, or none can be since a product was not finite."""

    statistic: Statistic

    def __call__(self, state: Probing) -> jax.Array:
        _, error, allowed = estimate(self.statistic, state)
        return (state.count >= self.statistic.least) & (error <= allowed) | ~state.finite


def is_not_finite(state: Probing) -> jax.Array:
    return ~state.finite


def draw(statistic: Statistic, key: jax.Array, like: Params) -> tuple[Params, jax.Array]:
    """A probe with the sharding of `like`, and the key for the next probe."""
    key, subkey = jax.random.split(key)
    # The sum with zeros of the leaf takes the sharding of the leaf, if its type carries one.
    return tree.add_scaled(tree.zeros_like(like), 1.0, statistic.draw(subkey, like)), key


def rounding(value: jax.Array) -> jax.Array:
    """The variance of one rounding of a sum of size `value`."""
    return jnp.square(float(jnp.finfo(value.dtype).eps) * value)


def by_leaf(a: Params, b: Params) -> jax.Array:
    """The inner product of each pair of leaves, (num_leaves,), in at least float32."""
    zero = jnp.zeros_like(tree.vdot(a, b))
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.stack([jnp.sum(x.astype(zero.dtype) * y.astype(zero.dtype)) for x, y in pairs])


@functools.partial(jax.jit, static_argnums=(0, 4))
def _begin(statistic, key, like, accuracy, keep) -> Probing:
    zeros = tree.zeros_like(tree.widen(like))
    zero = tree.vdot(zeros, zeros)
    probe, key = draw(statistic, key, zeros)
    exact, sums = statistic.begin(zeros)
    rows = jax.tree.map(
        lambda z: jnp.zeros((keep, *z.shape), z.dtype) + jnp.expand_dims(z, 0), zeros
    )
    return Probing(
        probe=probe,
        key=key,
        complement=None,
        unit=zero,
        kept=(rows, rows) if keep else None,
        exact=exact,
        sums=sums,
        count=zero.astype(jnp.int32),
        finite=zero == 0,
        accuracy=accuracy.fill(zero),
    )


def _keep(rows, x, count):
    """`rows` with `x` in row `count`, if that row exists."""
    place = jnp.minimum(count, rows.shape[0] - 1)
    there = jax.lax.dynamic_index_in_dim(rows, place, 0, keepdims=False)
    value = jnp.where(count < rows.shape[0], x, there)
    return jax.lax.dynamic_update_index_in_dim(rows, value, place, 0)
