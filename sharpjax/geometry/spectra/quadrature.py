"""Stochastic Lanczos quadrature: the spectrum as a few nodes and weights for each random probe.

For a direction u uniform on the sphere, `E u' f(A) u = tr f(A) / n`. `u' f(A) u` is the sum of
`w_k f(theta_k)` over the Ritz values of a Lanczos process started at u. The `w_k` are the squares
of the first components of their vectors. This is Gauss quadrature, exact for polynomials of degree
2 m - 1 after m products (Golub and Meurant, 1994; Ubaru, Chen and Saad, 2017). No basis is stored;
copies of a converged value share its weight. The variance of one probe is
`2 / (n + 2) (tr f(A)^2 / n - (tr f(A) / n)^2)`, which the same nodes give.

If eigenvectors are given, the probes are drawn in their complement. The known part of the spectrum
then adds no variance, and n is the dimension of the complement.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.geometry.lanczos import krylov, lanes, packing, recurrence, ritz, units
from sharpjax.geometry.operators.algebra import Operator, linearize

Params = Any


class Probed(NamedTuple):
    """The result of N probes of m products each. Rows of probes not drawn have weight 0.

    Attributes:
        nodes: (N, m), ascending; nodes not reached repeat the first node and have weight 0.
        weights: (N, m), with sum 1 for each probe.
        residuals: (N, m); an eigenvalue lies this near to the node; at least the noise of products.
        alpha, beta: (N, m), coefficients of each recurrence.
        dimension: of the space that the probes were drawn in.
        num_probes, num_products: int32.
        finite: no product has held a NaN or an infinity.
        met: the stopping criterion holds.
    """

    nodes: jax.Array
    weights: jax.Array
    residuals: jax.Array
    alpha: jax.Array
    beta: jax.Array
    dimension: jax.Array
    num_probes: jax.Array
    num_products: jax.Array
    finite: jax.Array
    met: jax.Array


Criterion = Callable[[Probed, Any], jax.Array]


def run(
    operator: Operator,
    key: jax.Array,
    *,
    num_steps: int,
    num_probes: int,
    probes_per_product: int = 1,
    frame: Params = None,
    criterion: Criterion | None = None,
    targets: Any = (),
) -> Probed:
    """Probe an operator; probe i does not depend on `num_probes` or `probes_per_product`.

    Args:
        operator: symmetric.
        key: for the probes.
        num_steps: limit on the products of each probe.
        num_probes: limit on the probes; a multiple of `probes_per_product`.
        probes_per_product: number of probes that share one vmapped product.
        frame: leaves (k, *shape); orthonormal rows, or zeros. The probes are orthogonal to them.
        criterion: a module-level function of a `Probed` and of `targets` that says whether to stop.
        targets: arrays, passed to `criterion`.
    """
    step = _ProbeStep(num_steps, probes_per_product, criterion)
    like, product = operator.like, linearize(operator)
    packed = packing.of(like, (product, key, frame, targets))
    if packed is not None:
        product, like = packed.product(product), packed.like
        frame = None if frame is None else packed.store(frame)
    lie = recurrence.shardings(like)
    carry = _begin(step, lie, num_probes, key, like, frame, targets)
    if probes_per_product > 1:
        product = Partial(_each, product)
    most = num_steps * (num_probes // probes_per_product)
    carry, _ = loops.iterate(step, carry, product, max_steps=most, until=_is_done, donate=True)
    return carry.probed


def mean_and_error(probed: Probed, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`tr f(A) / n` in the space that was probed, and its standard error.

    Args:
        probed: from `run`.
        values: (N, m), of f at the nodes; values at nodes of weight 0 do not matter.
    """
    count = probed.num_probes.astype(probed.weights.dtype)
    weights = probed.weights / count
    present = weights > 0
    values = jnp.where(present, values, 0)
    unit = units.known(units.power_of_two(values))
    values = values / unit
    mean = jnp.sum(weights * values)
    # About the mean, not as a difference of moments: f may be nearly constant.
    spread = jnp.sum(weights * jnp.square(values - mean))
    return unit * mean, unit * jnp.sqrt(2 * spread / ((probed.dimension + 2) * count))


def least_error(probed: Probed, values: jax.Array, mean: jax.Array) -> jax.Array:
    """The standard error of `tr f(A)` due to one eigenvalue, at the node furthest from the mean.

    Args:
        probed: from `run`.
        values: (N, m), of f at the nodes.
        mean: of f over the spectrum, from `mean_and_error`.
    """
    furthest = jnp.max(jnp.where(_present(probed), jnp.abs(values - mean), 0))
    return jnp.sqrt(2 / probed.num_probes.astype(furthest.dtype)) * furthest


def extent(probed: Probed) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest node that stand for more than a thousandth of an eigenvalue.

    Other nodes are traces of the frame left by rounding errors; no density shows them.
    """
    present = _present(probed)
    low = jnp.min(jnp.where(present, probed.nodes, jnp.inf))
    return low, jnp.max(jnp.where(present, probed.nodes, -jnp.inf))


def _present(probed: Probed) -> jax.Array:
    return probed.weights * probed.dimension > 1e-3


def lowest(probed: Probed) -> tuple[jax.Array, jax.Array]:
    """The smallest node of any probe, and its residual."""
    used = jnp.arange(len(probed.nodes), dtype=jnp.int32) < probed.num_probes
    first = jnp.where(used, probed.nodes[:, 0], jnp.inf)
    i = jnp.argmin(first)
    return first[i], probed.residuals[i, 0]


class _Carry(NamedTuple):
    """`state` has a leading axis if several probes share a product."""

    state: recurrence.Recurrence
    key: jax.Array
    frame: Params
    targets: Any
    probed: Probed
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class _ProbeStep:
    """One product; after the last of a probe, also its nodes and the start of the next probe."""

    num_steps: int
    width: int
    criterion: Criterion | None

    def propose(self, carry: _Carry) -> Params:
        return carry.state.vector

    def absorb(self, carry: _Carry, product: Params) -> _Carry:
        state = self.each(recurrence.RecurrenceStep().absorb)(carry.state, product)
        over = state.invariant | ~state.finite | (state.num_products >= self.num_steps)
        over = jnp.all(over) | ~jnp.all(state.finite)
        carry = carry._replace(state=state)

        def close():
            probed = self._record(carry)
            vector = self.draw(carry.key, probed.num_probes, state.vector, carry.frame)
            new = vector, probed
            old = state.vector, carry.probed
            return jax.tree.map(lambda a, b: jnp.where(over, a, b), new, old)

        def go_on():
            return state.vector, carry.probed

        vector, probed = jax.lax.cond(lanes.any_lane(over), close, go_on)
        # Rows beyond num_products mean nothing, nor does `previous` in a first step.
        state = state._replace(
            vector=vector,
            num_products=jnp.where(over, 0, state.num_products),
            unit=jnp.where(over, 0, state.unit),
            scale=jnp.where(over, 0, state.scale),
            leak=jnp.where(over, 0, state.leak),
            noise=jnp.where(over, 0, state.noise),
            invariant=state.invariant & ~over,
        )
        full = probed.num_probes >= len(probed.nodes)
        return carry._replace(state=state, probed=probed, done=full | probed.met | ~probed.finite)

    def each(self, fn):
        return jax.vmap(fn) if self.width > 1 else fn

    def draw(self, key, first, like, frame) -> Params:
        """The probes from number `first` on."""
        if self.width == 1:
            return _draw(like, frame, jax.random.fold_in(key, first))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, first + jnp.arange(self.width, dtype=jnp.int32)
        )
        return jax.vmap(_draw, (0, None, 0))(like, frame, keys)

    def _record(self, carry: _Carry) -> Probed:
        old, state = carry.probed, carry.state
        nodes, weights, residuals, alpha, beta = self.each(_quadrature)(state)
        row = old.num_probes

        def put(rows, new):
            new = new if self.width > 1 else jnp.expand_dims(new, 0)
            return jax.lax.dynamic_update_slice_in_dim(rows, new, row, 0)

        probed = old._replace(
            nodes=put(old.nodes, nodes),
            weights=put(old.weights, weights),
            residuals=put(old.residuals, residuals),
            alpha=put(old.alpha, alpha),
            beta=put(old.beta, beta),
            num_probes=row + self.width,
            num_products=old.num_products + jnp.sum(state.num_products, dtype=jnp.int32),
            finite=old.finite & jnp.all(state.finite),
        )
        if self.criterion is None:
            return probed
        return probed._replace(met=self.criterion(probed, carry.targets))


def _quadrature(state: recurrence.Recurrence) -> tuple[jax.Array, ...]:
    """Nodes, weights, residuals, alpha and beta, no longer in units of the process; all (m,)."""
    nodes, vectors = krylov.ritz(state)
    count = state.num_products
    reached = jnp.arange(len(nodes), dtype=jnp.int32) < count
    last = jnp.maximum(count - 1, 0)
    here = jnp.arange(len(nodes), dtype=jnp.int32) == last
    beta = jnp.sum(jnp.where(here, state.beta, 0))
    end = jnp.sum(jnp.where(jnp.expand_dims(here, 1), vectors, 0), axis=0)
    size = jnp.maximum(jnp.max(jnp.where(reached, jnp.abs(nodes), 0)), state.scale)
    residuals = jnp.maximum(jnp.abs(beta * end), ritz.least_residual(state, size, state.noise))
    unit = units.known(state.unit)
    return (
        jnp.where(reached, nodes, nodes[0]) * unit,
        jnp.where(reached, jnp.square(vectors[0]), 0),
        jnp.where(reached, residuals, 0) * unit,
        state.alpha * unit,
        state.beta * unit,
    )


def _draw(like, frame, key) -> Params:
    vector = recurrence.random_unit(key, like)
    if frame is None:
        return vector
    for _ in range(2):  # one pass leaves rounding errors that the recurrence would amplify
        vector = _complement(frame, vector)
        vector = tree.scale(1 / tree.norm(vector), vector)
    return vector


def _complement(frame, vector):
    """`v - V V'v`, by sums of products, since JAX refuses a contraction over Explicit axes."""
    overlaps = jax.vmap(lambda q: tree.vdot(q, vector))(frame)

    def leaf(q, x):
        return x - jnp.sum(q * overlaps.astype(q.dtype).reshape(-1, *(1,) * x.ndim), axis=0)

    return jax.tree.map(leaf, frame, vector)


@functools.partial(loops.compiled_quickly, static_argnames=("step", "lie", "num_probes"))
def _begin(step, lie, num_probes, key, like, frame, targets) -> _Carry:
    zeros = tree.zeros_like(tree.widen(like))
    size = tree.size(zeros)
    used = 0
    if frame is not None:
        frame = jax.tree.map(lambda q, z: q.astype(z.dtype), frame, zeros)
        used = jnp.sum(jnp.round(jax.vmap(lambda q: tree.vdot(q, q))(frame)))
    if step.width > 1:
        zeros = jax.tree.map(lambda z: jnp.stack([z] * step.width), zeros)
    vector = step.draw(key, jnp.int32(0), zeros, frame)
    if step.width == 1:
        vector = recurrence.constrain(vector, lie)
    state = step.each(functools.partial(recurrence.begin, num_steps=step.num_steps))(vector)
    zero = jnp.sum(state.scale)
    rows = jnp.full((num_probes, step.num_steps), zero)
    probed = Probed(
        nodes=rows,
        weights=rows,
        residuals=rows,
        alpha=rows,
        beta=rows,
        dimension=float(size) - used + zero,
        num_probes=zero.astype(jnp.int32),
        num_products=zero.astype(jnp.int32),
        finite=zero == 0,
        met=zero != 0,
    )
    if step.criterion is not None:
        probed = probed._replace(met=step.criterion(probed, targets))
    return _Carry(state, key, frame, targets, probed, done=probed.met)


def _is_done(carry: _Carry) -> jax.Array:
    return carry.done


def _each(product, vectors):
    return jax.vmap(product)(vectors)
