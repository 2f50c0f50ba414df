"""The trace of a Hessian by way of its Gauss-Newton part: exact, and only the rest is probed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops
from sharpjax.estimate import Estimate
from sharpjax.geometry.bending import Units, bend, draw, find_units
from sharpjax.geometry.decomposition import CERTIFYING, LEAST_PROBES, check_targets, prepare
from sharpjax.geometry.exact import exact_trace
from sharpjax.geometry.status import Status


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ControlledTrace:
    """The trace of a Hessian, by way of that of its Gauss-Newton part.

    Attributes:
        value: the estimate, `tr G + remainder`.
        standard_error: that of the remainder.
        num_evaluations: int32, second derivatives along a probe.
        remainder: the estimate of `tr (H - G)`.
        certified: the remainder is zero: `value` is exact up to rounding.
        leaves: the trace of the block of each leaf: a tree like the parameters, of `Estimate`s.
        status: `Status`, int32.
        ways: as in `ExactTrace`. Static.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array
    remainder: jax.Array
    certified: jax.Array
    leaves: Any
    status: jax.Array
    ways: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True})

    def estimates(self) -> dict[str, Estimate]:
        """The estimate, as `trace`."""
        return {"trace": Estimate(self.value, self.standard_error, self.num_evaluations)}


def controlled_trace(
    operator: Any,
    control: Any,
    *,
    key: jax.Array,
    relative_error: float | jax.Array | None = None,
    absolute_error: float | jax.Array | None = None,
    max_probes: int = 100,
) -> ControlledTrace:
    """The trace of a Hessian, with its Gauss-Newton part as control variate.

    `tr H = tr G + tr (H - G)`: the first exactly (`exact_trace`), the second by probes that live on
    one leaf at a time, or on one slice where `scan` stacks layers in a leaf: `z'(H - G)z = d^2/dt^2
    <r, f(params + t z)>` by forward over forward, with `r` the gradient of the outer loss in the
    outputs. Where the model is affine in a leaf, as every piecewise linear net that uses no weight
    twice is, that is zero. Mostly the derivatives say so without a number, and nothing is probed
    at all; else two normal probes that give exactly zero certify it. Then `certified` holds and
    `value` is exact.

    Where it is not zero, later probes are random signs, and the standard error is that of the
    spread of their values in each leaf. It needs 16 probes on each before it may stop anything, and
    covered in .945 to .955 of runs where it is nominally .95, under stopping too.

    Cost: `exact_trace`, and at most three forward passes for each probe, of which a round takes one
    for each leaf that is not affine: good for the certificate and for nets of few such leaves; for
    deep nets that bend, `trace` without a control is cheaper. Memory: that of three forward passes,
    on one microbatch if the operator has them.

    Args:
        operator: from `hessian`, or `Restricted` to some of its leaves.
        control: from `gauss_newton` (or the exact `fisher`), at the same params, batch and leaves,
            of the two parts of the same loss.
        key: for the probes.
        relative_error: stop where the standard error is at most this share of the estimate.
        absolute_error: or at most this. Without either, `max_probes` are used.
        max_probes: probes on each leaf at the most, 16 or more.

    Raises:
        UserError: an argument does not fit; control has other parameters or another batch, or its
            parts do not give the loss (compared on two examples, outside of jit).

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
    >>> found = controlled_trace(operator, control, key=jax.random.key(0))
    >>> print(found.value, found.certified, found.num_evaluations)
    6.0 True 0
    """
    setup = prepare("controlled_trace", operator, control, key, max_probes)
    targets = check_targets("controlled_trace", relative_error, absolute_error)
    exact = exact_trace(control)
    units, carry, operands = _begin_trace(setup, key, exact.value, *targets)
    has_target = relative_error is not None or absolute_error is not None
    steps = jnp.int32(0)
    if len(units):
        carry, steps = loops.iterate(
            *(_Probe(units, setup.microbatch_size), carry, operands),
            max_steps=max_probes * len(units),
            until=_Reached(len(units), has_target),
        )
    return _finish_trace(units, has_target, carry, exact, steps)


# The trace.


class _Tally(NamedTuple):
    """`mean` and `spread` (sums of squared deviations) of the values of each unit so far."""

    index: jax.Array
    key: jax.Array
    mean: jax.Array
    spread: jax.Array
    exact: jax.Array
    relative_error: jax.Array
    absolute_error: jax.Array


@dataclasses.dataclass(frozen=True)
class _Probe:
    """One probe on one unit, for `sharpjax.loops.iterate`."""

    units: Units
    microbatch_size: int | None

    def __call__(self, carry: _Tally, operands) -> _Tally:
        parts, params, batch = operands
        unit, count = carry.index % len(self.units), carry.index // len(self.units)
        like = self.units.free(params)
        z, key = draw(self.units, carry.key, like, unit, is_normal=count < CERTIFYING)
        value = bend(parts, params, batch, self.microbatch_size, z)
        here = jnp.arange(len(self.units), dtype=jnp.int32) == unit
        off = jnp.where(here, value - carry.mean, 0)
        mean = carry.mean + off / (count + 1).astype(off.dtype)
        spread = carry.spread + off * jnp.where(here, value - mean, 0)
        return carry._replace(index=carry.index + 1, key=key, mean=mean, spread=spread)


@dataclasses.dataclass(frozen=True)
class _Reached:
    units: int
    has_target: bool

    def __call__(self, carry: _Tally) -> jax.Array:
        rounds = carry.index // self.units
        whole = carry.index % self.units == 0
        zero = (rounds >= CERTIFYING) & _is_zero(carry)
        met = (rounds >= LEAST_PROBES) & _is_within(carry, rounds) & self.has_target
        return whole & (zero | met) | ~jnp.all(jnp.isfinite(carry.spread))


def _error(carry: _Tally, rounds) -> jax.Array:
    rounds = rounds.astype(carry.spread.dtype)
    return jnp.sqrt(jnp.sum(carry.spread) / jnp.maximum(rounds * (rounds - 1), 1))


def _is_zero(carry: _Tally) -> jax.Array:
    return jnp.all((carry.mean == 0) & (carry.spread == 0))


def _is_within(carry: _Tally, rounds) -> jax.Array:
    size = jnp.abs(carry.exact + jnp.sum(carry.mean))
    bound = jnp.maximum(carry.relative_error * size, carry.absolute_error)
    return _error(carry, rounds) <= bound


# Before and after.


@jax.jit
def _begin_trace(setup, key, exact, relative_error, absolute_error):
    units = find_units(setup.parts.model, setup.params, setup.batch)
    zeros = jnp.zeros(len(units), exact.dtype) + 0 * exact
    carry = _Tally(
        index=jnp.int32(0),
        key=key,
        mean=zeros,
        spread=zeros,
        exact=exact,
        relative_error=jnp.asarray(relative_error, exact.dtype),
        absolute_error=jnp.asarray(absolute_error, exact.dtype),
    )
    return units, carry, (setup.parts, setup.params, setup.batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _finish_trace(units, has_target, carry, exact, steps) -> ControlledTrace:
    rounds = carry.index // max(len(units), 1)
    certified = _is_zero(carry)
    remainder = jnp.sum(carry.mean)
    value = exact.value + remainder
    error = _error(carry, rounds)
    met = certified | _is_within(carry, rounds) | (not has_target)
    status = jnp.where(met, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(jnp.isfinite(value + error), status, Status.NON_FINITE)
    counts = jnp.maximum(rounds * (rounds - 1), 1).astype(error.dtype)
    errors = [jnp.sqrt(s / counts) for s in units.by_leaf(carry.spread)]
    leaves, treedef = jax.tree.flatten(exact.leaves)
    leaves = [
        Estimate(g + m, e, rounds)
        for g, m, e in zip(leaves, units.by_leaf(carry.mean), errors, strict=True)
    ]
    return ControlledTrace(
        value=value,
        standard_error=error,
        num_evaluations=steps,
        remainder=remainder,
        certified=certified,
        leaves=jax.tree.unflatten(treedef, leaves),
        status=status.astype(jnp.int32),
        ways=exact.ways,
    )
