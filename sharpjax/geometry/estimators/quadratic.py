"""Curvature along a vector, `z'Hz`, without the product `H z`: forward over forward."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss.assumptions import guard, renewed
from sharpjax.geometry.loss.composed import chunk_weights
from sharpjax.geometry.loss.finite import poison
from sharpjax.geometry.operators.algebra import Operator
from sharpjax.geometry.operators.hessian import Hessian

Params = Any

LEAST = 16  # values before their spread is believed (1.96 standard errors then cover in .93)


def quadratic_form(operator: Operator) -> Partial:
    """The function `z -> z'Hz` of a Hessian: `d^2/dt^2 loss(params + t z)` at 0.

    Nothing is propagated backwards and nothing is kept: 1.2 gradients and the memory of a forward
    pass for a dense net, where `H z` takes 1.5 and keeps the residuals. Right where many vectors
    are tried and no product is wanted. Parameters narrower than float32 are widened.

    Raises:
        UserError: the operator is not a `Hessian`.

    >>> from sharpjax.geometry import hessian
    >>> form = quadratic_form(hessian(lambda w, _: jnp.sum(w**3), jnp.array([1.0, 2.0]), None))
    >>> print(form(jnp.array([1.0, -1.0])))  # 6 + 12
    18.0
    """
    if not isinstance(operator, Hessian):
        raise UserError(
            f"quadratic_form: only a Hessian can be had forward over forward, got "
            f"{type(operator).__name__}. For other operators take `z'(Az)`; their traces by any "
            f"other method."
        )
    operator = renewed("quadratic_form", operator)
    params = tree.widen(operator.params)
    size = operator.microbatch_size
    if size is None:
        return Partial(_curvature, operator.loss, params, operator.batch)
    chunks = loops.split_chunks("quadratic_form", operator.batch, size)
    weights = chunk_weights(operator.loss, chunks)
    form = Partial(_mean_curvature, operator.loss, params, chunks, weights)
    return guard(form, operator.checked)


class Values(NamedTuple):
    """Values `z'Hz` under way: their mean, and `spread`, the sum of squares about it, in a unit."""

    probe: Params
    key: jax.Array
    unit: jax.Array
    mean: jax.Array
    spread: jax.Array
    count: jax.Array
    accuracy: Accuracy


@dataclasses.dataclass(frozen=True)
class ValueStep:
    """One value, for `sharpjax.loops.iterate`; the probes are signs."""

    def propose(self, state: Values) -> Params:
        return state.probe

    def absorb(self, state: Values, value: jax.Array) -> Values:
        probe, key = _draw(state.key, state.probe)
        count = state.count + 1
        number = count.astype(state.mean.dtype)
        unit, value = units.scale(state.unit, value)
        off = value.astype(state.mean.dtype) - state.mean
        mean = state.mean + off / number  # Welford, 1962
        spread = state.spread + jnp.square(off) * (number - 1) / number
        return state._replace(
            probe=probe, key=key, unit=unit, mean=mean, spread=spread, count=count
        )


def run(key: jax.Array, operator: Operator, *, accuracy: Accuracy, max_probes: int) -> Values:
    """Values, `max_probes` at the most, or until their standard error is as asked for."""
    state, _ = loops.iterate(
        ValueStep(),
        _begin(key, operator.like, accuracy),
        quadratic_form(operator),
        max_steps=max_probes,
        until=is_reached if accuracy.is_asked else is_not_finite,
    )
    return state


def mean_and_error(state: Values) -> tuple[jax.Array, jax.Array]:
    """The mean and its standard error, in no unit."""
    number, unit = state.count.astype(state.mean.dtype), units.known(state.unit)
    error = jnp.sqrt(state.spread / (number * jnp.maximum(number - 1, 1)))
    return state.mean * unit, error * unit


def is_reached(state: Values) -> jax.Array:
    mean, error = mean_and_error(state)
    within = error <= state.accuracy.allowed(jnp.abs(mean))
    return (state.count >= LEAST) & within | is_not_finite(state)


def is_not_finite(state: Values) -> jax.Array:
    return ~jnp.isfinite(state.mean + state.spread)


def _draw(key, like):
    key, subkey = jax.random.split(key)
    return tree.add_scaled(tree.zeros_like(like), 1.0, tree.random_rademacher(subkey, like)), key


@jax.jit
def _begin(key, like, accuracy) -> Values:
    zeros = tree.zeros_like(tree.widen(like))
    zero = tree.vdot(zeros, zeros)
    probe, key = _draw(key, zeros)
    return Values(
        probe=probe,
        key=key,
        unit=zero,
        mean=zero,
        spread=zero,
        count=zero.astype(jnp.int32),
        accuracy=accuracy.fill(zero),
    )


# What follows crosses jit inside a `Partial`: module-level, so that it is equal by value.


def _moved(loss, params, batch, vector, t):
    return loss(tree.add_scaled(params, t, vector), batch)


def _slope(along, t):
    value, slope = jax.jvp(along, (t,), (jnp.ones_like(t),))
    return slope, value


def _curvature(loss, params, batch, vector):
    along = functools.partial(_moved, loss, params, batch, vector)
    zero = jnp.zeros_like(tree.vdot(vector, vector))
    with jax.default_matmul_precision("highest"):
        slope, one = functools.partial(_slope, along), jnp.ones_like(zero)
        _, curvature, value = jax.jvp(slope, (zero,), (one,), has_aux=True)
        return poison(curvature, value)


def _chunk_curvature(operands, chunk):
    loss, params, vector = operands
    return _curvature(loss, params, chunk, vector)


def _mean_curvature(loss, params, chunks, weights, vector):
    return loops.mean_over_chunks(_chunk_curvature, (loss, params, vector), chunks, weights)
