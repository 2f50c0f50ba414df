"""The trace of what a Hessian has beside its Gauss-Newton part, by probes on one leaf at a time."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.exact.bending import Problem, Units, bend, draw, find_units
from sharpjax.geometry.lanczos import units

# Rounds after which a remainder that was zero in all of them counts as zero, and those that the
# spread of the values needs before it may stop anything.
CERTIFYING = 2
LEAST_PROBES = 16


class Remainder(NamedTuple):
    """An estimate, and its standard error: of each leaf a scalar, or the diagonal.

    Attributes:
        value, error: trees like the parameters.
        num_evaluations: int32, probes.
    """

    value: Any
    error: Any
    num_evaluations: jax.Array


def remainder_trace(
    problem: Problem, exact: jax.Array, *, key: jax.Array, accuracy: Accuracy, max_probes: int
) -> Remainder:
    """`tr (H - G)`, leaf by leaf.

    `z'(H - G)z = d^2/dt^2 <r, f(params + t z)>` by forward over forward, with `r` the gradient of
    the outer loss in the outputs, for z that live on one leaf at a time, or on one slice where
    `scan` stacks layers in a leaf. Where the model is affine in a leaf, as every piecewise linear
    net that uses no weight twice is, that is zero. Mostly the derivatives say so without a number,
    and nothing is probed at all; else two normal probes that give exactly zero certify it.

    Where it is not zero, later probes are random signs, and the standard error is that of the
    spread of their values in each leaf. It needs 16 probes on each before it may stop anything, and
    covered in .945 to .955 of runs where it is nominally .95, under stopping too.

    Args:
        exact: what is added to it, for an error relative to the sum.
        accuracy: of the sum; max_probes: on each leaf.
    """
    found, carry = _begin(problem, key, exact, accuracy)
    steps = jnp.int32(0)
    if len(found):
        carry, steps = loops.iterate(
            *(_Probe(found), carry, problem),
            max_steps=max_probes * len(found),
            until=_Reached(len(found), accuracy.is_asked),
        )
    return _finish(found, carry, problem.params, steps)


class _Tally(NamedTuple):
    """`mean` and `spread` (sums of squared deviations) of the values of each unit so far, in a
    `scale` of their own (`sharpjax.geometry.lanczos.units`)."""

    index: jax.Array
    key: jax.Array
    scale: jax.Array
    mean: jax.Array
    spread: jax.Array
    exact: jax.Array
    accuracy: Accuracy


@dataclasses.dataclass(frozen=True)
class _Probe:
    """One probe on one unit, for `sharpjax.loops.iterate`."""

    units: Units

    def __call__(self, carry: _Tally, problem: Problem) -> _Tally:
        unit, count = carry.index % len(self.units), carry.index // len(self.units)
        like = self.units.free(problem.params)
        z, key = draw(self.units, carry.key, like, unit, is_normal=count < CERTIFYING)
        scale, value = units.scale(carry.scale, bend(problem, z).astype(carry.mean.dtype))
        here = jnp.arange(len(self.units), dtype=jnp.int32) == unit
        off = jnp.where(here, value - carry.mean, 0)
        mean = carry.mean + off / (count + 1).astype(off.dtype)
        spread = carry.spread + off * jnp.where(here, value - mean, 0)
        index = carry.index + 1
        return carry._replace(index=index, key=key, scale=scale, mean=mean, spread=spread)


@dataclasses.dataclass(frozen=True)
class _Reached:
    units: int
    is_asked: bool

    def __call__(self, carry: _Tally) -> jax.Array:
        rounds = carry.index // self.units
        whole = carry.index % self.units == 0
        zero = (rounds >= CERTIFYING) & jnp.all((carry.mean == 0) & (carry.spread == 0))
        counts = jnp.maximum(rounds * (rounds - 1), 1).astype(carry.spread.dtype)
        scale = units.known(carry.scale)
        error = scale * jnp.sqrt(jnp.sum(carry.spread) / counts)
        size = jnp.abs(carry.exact + scale * jnp.sum(carry.mean))
        within = error <= carry.accuracy.allowed(size)
        met = (rounds >= LEAST_PROBES) & within & self.is_asked
        return whole & (zero | met) | ~jnp.all(jnp.isfinite(carry.spread))


@jax.jit
def _begin(problem, key, exact, accuracy):
    found = find_units(problem)
    zeros = jnp.zeros(len(found), exact.dtype) + 0 * exact
    accuracy = accuracy.fill(0 * exact)
    return found, _Tally(jnp.int32(0), key, 0 * exact, zeros, zeros, exact, accuracy)


@functools.partial(jax.jit, static_argnums=0)
def _finish(found, carry, params, steps) -> Remainder:
    rounds = carry.index // max(len(found), 1)
    counts = jnp.maximum(rounds * (rounds - 1), 1).astype(carry.spread.dtype)
    scale = units.known(carry.scale)

    def by_leaf(values):
        return jax.tree.unflatten(jax.tree.structure(params), found.by_leaf(values))

    value, variance = by_leaf(carry.mean), by_leaf(carry.spread / counts)
    error = jax.tree.map(lambda v: scale * jnp.sqrt(v), variance)
    return Remainder(tree.scale(scale, value), error, steps)
