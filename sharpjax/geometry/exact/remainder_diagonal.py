"""The diagonal of what a Hessian has beside its Gauss-Newton part, by probes on one leaf at a
time."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.exact.bending import Problem, Units, bending, draw, find_units
from sharpjax.geometry.exact.remainder import CERTIFYING, LEAST_PROBES, Remainder
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.operators.algebra import linearize


def remainder_diagonal(
    problem: Problem, exact: Any, *, key: jax.Array, accuracy: Accuracy, max_probes: int
) -> Remainder:
    """`diag (H - G) = E z (H - G)z`, entry by entry.

    From products with probes that live on one leaf, or slice, at a time; products that are zero
    certify it, as in `remainder_trace`. The errors stop it by their norm. Cost: 1.5 to 2 gradients
    for each probe on each leaf that is not affine. Memory: the residuals of one gradient, and eight
    copies of those leaves.

    Args:
        exact, accuracy, max_probes: as in `remainder_trace`; a tree.
    """
    found, carry, rest = _begin(problem, key, exact, accuracy)
    steps = jnp.int32(0)
    if len(found):
        carry, steps = loops.iterate(
            *(_Probe(found), carry, linearize(rest)),
            max_steps=max_probes * len(found),
            until=_Reached(len(found), accuracy.is_asked),
        )
    return _finish(found, carry, exact, steps)


class _Tally(NamedTuple):
    """`mean` and `spread` (sums of squared deviations) of `z (H - G)z`, in the leaves probed, in a
    `scale` of their own (`sharpjax.geometry.lanczos.units`).

    `fixed` is the norm of the diagonal of the others; `zero` says of each unit whether
    all of its products were zero.
    """

    index: jax.Array
    key: jax.Array
    probe: Any
    scale: jax.Array
    mean: Any
    spread: Any
    exact: Any
    fixed: jax.Array
    zero: jax.Array
    accuracy: Accuracy


@dataclasses.dataclass(frozen=True)
class _Probe:
    """One product with a probe on one unit, for `sharpjax.loops.iterate`."""

    units: Units

    def propose(self, carry: _Tally):
        return carry.probe

    def absorb(self, carry: _Tally, product) -> _Tally:
        unit, count = carry.index % len(self.units), carry.index // len(self.units)
        masks = self.units.masks(carry.probe, unit)
        scale, product = units.scale(carry.scale, product)

        def move(mask, mean, z, p):
            number = (count + 1).astype(z.dtype)
            return mean + mask * (z * p.astype(z.dtype) - mean) / number

        def widen_spread(mask, spread, old, new, z, p):
            value = z * p.astype(z.dtype)
            return spread + mask * (value - old) * (value - new)

        mean = jax.tree.map(move, masks, carry.mean, carry.probe, product)
        spread = jax.tree.map(
            widen_spread, masks, carry.spread, carry.mean, mean, carry.probe, product
        )
        inside = jax.tree.map(jnp.multiply, masks, product)
        is_zero = jnp.stack([jnp.all(x == 0) for x in jax.tree.leaves(inside)]).all()
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
            scale=scale,
            mean=mean,
            spread=spread,
            zero=carry.zero & (is_zero | ~here),
        )


@dataclasses.dataclass(frozen=True)
class _Reached:
    units: int
    is_asked: bool

    def __call__(self, carry: _Tally) -> jax.Array:
        rounds = carry.index // self.units
        whole = carry.index % self.units == 0
        zero = (rounds >= CERTIFYING) & jnp.all(carry.zero)
        scale = units.known(carry.scale)
        free = tree.add_scaled(carry.exact, scale, carry.mean)
        size = jnp.hypot(units.norm(free), carry.fixed)
        squares = tree.vdot(carry.spread, jax.tree.map(jnp.ones_like, carry.spread))
        counts = jnp.maximum(rounds * (rounds - 1), 1).astype(squares.dtype)
        within = scale * jnp.sqrt(squares / counts) <= carry.accuracy.allowed(size)
        met = (rounds >= LEAST_PROBES) & within & self.is_asked
        return whole & (zero | met) | ~jnp.isfinite(squares)


@jax.jit
def _begin(problem, key, exact, accuracy):
    found = find_units(problem)
    rest = bending(problem, found)
    zeros = tree.zeros_like(tree.widen(rest.params))
    free, others = found.split(exact)
    zero = 0 * units.norm(exact)
    fixed = zero + (units.norm(others).astype(zero.dtype) if jax.tree.leaves(others) else 0)
    probe, key = draw(found, key, zeros, jnp.int32(0), is_normal=jnp.ones((), bool))
    carry = _Tally(
        index=jnp.int32(0),
        key=key,
        probe=probe,
        scale=zero,
        mean=zeros,
        spread=zeros,
        exact=free,
        fixed=fixed,
        zero=jnp.ones(len(found), bool),
        accuracy=accuracy.fill(zero),
    )
    return found, carry, rest


@functools.partial(jax.jit, static_argnums=0)
def _finish(found, carry, exact, steps) -> Remainder:
    rounds = carry.index // max(len(found), 1)
    counts = jnp.maximum(rounds * (rounds - 1), 1)
    zeros = tree.zeros_like(found.split(exact)[1])
    errors = jax.tree.map(lambda s: jnp.sqrt(s / counts.astype(s.dtype)), carry.spread)
    value, error = (tree.scale(units.known(carry.scale), x) for x in (carry.mean, errors))
    return Remainder(tree.combine(value, zeros), tree.combine(error, zeros), steps)
