"""The diagonal of a Hessian by way of its Gauss-Newton part: exact, and only the rest is probed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.algebra import linearize, widen
from sharpjax.geometry.bending import Units, bending, draw, find_units
from sharpjax.geometry.decomposition import CERTIFYING, LEAST_PROBES, check_targets, prepare
from sharpjax.geometry.exact import exact_diagonal
from sharpjax.geometry.status import Status


class ControlledDiagonal(NamedTuple):
    """The diagonal of a Hessian, by way of that of its Gauss-Newton part.

    Attributes:
        value: a tree like the parameters.
        standard_error: likewise, of each entry.
        num_evaluations: int32, products with `H - G`.
        certified: `H - G` has a diagonal of zero: `value` is exact up to rounding.
        status: `Status`, int32.
    """

    value: Any
    standard_error: Any
    num_evaluations: jax.Array
    certified: jax.Array
    status: jax.Array


def controlled_diagonal(
    operator: Any,
    control: Any,
    *,
    key: jax.Array,
    relative_error: float | jax.Array | None = None,
    absolute_error: float | jax.Array | None = None,
    max_probes: int = 100,
) -> ControlledDiagonal:
    """The diagonal of a Hessian, with its Gauss-Newton part as control variate.

    `diag H = diag G + E z (H - G)z`, entry by entry: the first exactly (`exact_diagonal`), the
    second from products with probes that live on one leaf, or slice, at a time. The certificate is
    that of `controlled_trace`: products that are zero. The errors stop it by their norm,
    `|standard_error| <= relative_error |value|`.

    Cost: `exact_diagonal`, and 1.5 to 2 gradients for each probe on each leaf that is not affine.
    Memory: the residuals of one gradient, and eight copies of those leaves.

    Args:
        operator, control, key, max_probes: as in `controlled_trace`.
        relative_error, absolute_error: of the norm of the diagonal.

    Raises:
        UserError: as in `controlled_trace`.

    >>> from sharpjax.geometry import hessian
    >>> from sharpjax.geometry.jacobian import gauss_newton
    >>> def model(params, batch):
    ...     return jax.nn.relu(batch @ params["in"]) @ params["out"]
    >>> def squared(outputs, batch):
    ...     return jnp.mean(jnp.sum(outputs**2, axis=1)) / 2
    >>> def loss(params, batch):
    ...     return squared(model(params, batch), batch)
    >>> params, batch = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}, jnp.eye(2)
    >>> operator = hessian(loss, params, batch)
    >>> control = gauss_newton(model, squared, params, batch)
    >>> found = controlled_diagonal(operator, control, key=jax.random.key(0))
    >>> found.value["out"].tolist(), bool(found.certified)
    ([[1.0], [1.0], [1.0]], True)
    """
    setup = prepare("controlled_diagonal", operator, control, key, max_probes)
    targets = check_targets("controlled_diagonal", relative_error, absolute_error)
    exact = exact_diagonal(control)
    units, carry, rest = _begin(setup, key, exact.value, *targets)
    has_target = relative_error is not None or absolute_error is not None
    steps = jnp.int32(0)
    if len(units):
        carry, steps = loops.iterate(
            *(_Probe(units), carry, linearize(rest)),
            max_steps=max_probes * len(units),
            until=_Reached(len(units), has_target),
        )
    return _finish(units, has_target, carry, exact.value, exact.status, steps)


class _Tally(NamedTuple):
    """`mean` and `spread` (sums of squared deviations) of `z (H - G)z`, in the leaves probed.

    `fixed` is the sum of squares of the diagonal of the others; `zero` says of each unit whether
    all of its products were zero.
    """

    index: jax.Array
    key: jax.Array
    probe: Any
    mean: Any
    spread: Any
    exact: Any
    fixed: jax.Array
    zero: jax.Array
    relative_error: jax.Array
    absolute_error: jax.Array


@dataclasses.dataclass(frozen=True)
class _Probe:
    """One product with a probe on one unit, for `sharpjax.loops.iterate`."""

    units: Units

    def propose(self, carry: _Tally):
        return carry.probe

    def absorb(self, carry: _Tally, product) -> _Tally:
        unit, count = carry.index % len(self.units), carry.index // len(self.units)
        masks = self.units.masks(carry.probe, unit)
        number = (count + 1).astype(carry.relative_error.dtype)

        def move(mask, mean, z, p):
            return mean + mask * (z * p.astype(z.dtype) - mean) / number.astype(z.dtype)

        def widen_spread(mask, spread, old, new, z, p):
            value = z * p.astype(z.dtype)
            return spread + mask * (value - old) * (value - new)

        mean = jax.tree.map(move, masks, carry.mean, carry.probe, product)
        spread = jax.tree.map(
            widen_spread, masks, carry.spread, carry.mean, mean, carry.probe, product
        )
        inside = jax.tree.map(jnp.multiply, masks, product)
        is_zero = tree.total([jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(inside)]) == 0
        here = jnp.arange(len(self.units), dtype=jnp.int32) == unit
        index = carry.index + 1
        probe, key = draw(
            *(self.units, carry.key, carry.probe),
            index % len(self.units),
            is_normal=index // len(self.units) < CERTIFYING,
        )
        return carry._replace(
            index=index,
            key=key,
            probe=probe,
            mean=mean,
            spread=spread,
            zero=carry.zero & (is_zero | ~here),
        )


@dataclasses.dataclass(frozen=True)
class _Reached:
    units: int
    has_target: bool

    def __call__(self, carry: _Tally) -> jax.Array:
        rounds = carry.index // self.units
        whole = carry.index % self.units == 0
        zero = (rounds >= CERTIFYING) & jnp.all(carry.zero)
        met = (rounds >= LEAST_PROBES) & _is_within(carry, rounds) & self.has_target
        return whole & (zero | met) | ~_is_finite(carry)


def _is_finite(carry) -> jax.Array:
    return jnp.isfinite(tree.total([jnp.sum(x) for x in jax.tree.leaves(carry.spread)]))


def _is_within(carry: _Tally, rounds) -> jax.Array:
    free = jax.tree.map(jnp.add, carry.exact, carry.mean)
    size = jnp.sqrt(tree.vdot(free, free) + carry.fixed)
    rounds = rounds.astype(carry.relative_error.dtype)
    squares = tree.total([jnp.sum(x) for x in jax.tree.leaves(carry.spread)])
    error = jnp.sqrt(squares / jnp.maximum(rounds * (rounds - 1), 1))
    return error <= jnp.maximum(carry.relative_error * size, carry.absolute_error)


@jax.jit
def _begin(setup, key, exact, relative_error, absolute_error):
    units = find_units(setup.parts.model, setup.params, setup.batch)
    rest = bending(setup.parts, setup.params, setup.batch, setup.microbatch_size, units)
    zeros = tree.zeros_like(widen(rest.params))
    free, others = units.split(exact)
    fixed = tree.vdot(others, others) + 0 * tree.vdot(exact, exact)
    probe, key = draw(units, key, zeros, jnp.int32(0), is_normal=jnp.ones((), bool))
    carry = _Tally(
        index=jnp.int32(0),
        key=key,
        probe=probe,
        mean=zeros,
        spread=zeros,
        exact=free,
        fixed=fixed,
        zero=jnp.ones(len(units), bool),
        relative_error=jnp.asarray(relative_error, fixed.dtype),
        absolute_error=jnp.asarray(absolute_error, fixed.dtype),
    )
    return units, carry, rest


@functools.partial(jax.jit, static_argnums=(0, 1))
def _finish(units, has_target, carry, exact, status, steps) -> ControlledDiagonal:
    rounds = carry.index // max(len(units), 1)
    counts = jnp.maximum(rounds * (rounds - 1), 1)
    free, rest = units.split(exact)
    value = tree.combine(jax.tree.map(jnp.add, free, carry.mean), rest)
    error = tree.combine(
        jax.tree.map(lambda s: jnp.sqrt(s / counts.astype(s.dtype)), carry.spread),
        tree.zeros_like(rest),
    )
    certified = jnp.all(carry.zero)
    if len(units) and has_target:
        met = certified | _is_within(carry, rounds)
        status = jnp.where(met, status, Status.NOT_CONVERGED)
    if len(units):
        status = jnp.where(_is_finite(carry), status, Status.NON_FINITE)
    return ControlledDiagonal(value, error, steps, certified, status.astype(jnp.int32))
