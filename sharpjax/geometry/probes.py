"""What random probes tell of an operator: its trace, with the standard error of the estimate."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.algebra import Operator, linearize, widen
from sharpjax.geometry.checks import check_key, check_operator
from sharpjax.geometry.status import Status

_MIN_PROBES = 4


class Trace(NamedTuple):
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        standard_error: its standard deviation over the probes.
        num_evaluations: int32, products that it took.
        status: `Status`, int32.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """The estimate, as `trace`."""
        return {"trace": Estimate(self.value, self.standard_error, self.num_evaluations)}


def trace(
    operator: Operator,
    *,
    key: jax.Array,
    relative_error: float | jax.Array | None = None,
    absolute_error: float | jax.Array | None = None,
    max_probes: int = 100,
) -> Trace:
    """The trace of a symmetric operator, by random probes (Hutchinson, 1990).

    `tr A = E z'Az` for normal `z`, and the variance of one probe is `2 |A|_F^2 = 2 E |A z|^2`. So
    the standard error after N probes, `sqrt(2 mean |A z|^2 / N)`, comes from the very products at
    hand. Where it is nominally .95, it covers in .94 to .95 of runs on the spectrum of a trained
    network, from four probes on and also where it is what stopped them; in .89 to .93, up to 16
    probes or so, where one eigenvalue has nearly all of `|A|_F`. (The spread of N values covers in
    .83 at four probes: what stops early is what came out small. Probes of random signs have a
    variance smaller by `2 sum A_ii^2`, which no product shows.) On networks one probe is off by
    some 20 to 40 percent.

    Cost: one product per probe. Memory: three vectors. On CPU, do not call it inside your own jit
    if the loss convolves (`sharpjax.loops`).

    Args:
        operator: symmetric, such as `hessian(loss, params, batch)`.
        key: for the probes.
        relative_error: stop where the standard error is at most this share of the estimate.
        absolute_error: or at most this. Without either, `max_probes` are used. A trace near zero
            never meets a relative error.
        max_probes: products at the most. Where they do not reach the error that is asked for,
            `status` is `NOT_CONVERGED`.

    Raises:
        UserError: an argument does not fit.

    >>> from sharpjax.geometry import hessian
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2) / 2
    >>> operator = hessian(loss, jnp.ones(10_000), jnp.ones(8))
    >>> found = trace(operator, key=jax.random.key(0), relative_error=0.01)
    >>> bool(abs(found.value - 10_000) < 3 * found.standard_error), int(found.num_evaluations)
    (True, 4)
    """
    check_operator("trace", operator)
    _check_error("relative_error", relative_error)
    _check_error("absolute_error", absolute_error)
    max_probes = whole_number("trace", "max_probes", max_probes, least=_MIN_PROBES)
    check_key("trace", key)
    has_target = relative_error is not None or absolute_error is not None
    targets = [0.0 if e is None else e for e in (relative_error, absolute_error)]
    carry = _begin(key, operator.like, *targets)
    carry, _ = loops.iterate(
        *(_ProbeStep(), carry, linearize(operator)),
        max_steps=max_probes,
        until=_is_reached if has_target else _is_not_finite,
    )
    return _finish(has_target, carry)


class _Carry(NamedTuple):
    """`values` and `squares` are sums of `z'Az` and `|A z|^2`."""

    probe: Any
    key: jax.Array
    values: jax.Array
    squares: jax.Array
    count: jax.Array
    relative_error: jax.Array
    absolute_error: jax.Array


@dataclasses.dataclass(frozen=True)
class _ProbeStep:
    """One probe, for `sharpjax.loops.iterate`."""

    def propose(self, carry: _Carry):
        return carry.probe

    def absorb(self, carry: _Carry, product) -> _Carry:
        product = jax.tree.map(lambda p, z: p.astype(z.dtype), product, carry.probe)
        probe, key = _draw(carry.key, carry.probe)
        return carry._replace(
            probe=probe,
            key=key,
            values=carry.values + tree.vdot(carry.probe, product),
            squares=carry.squares + tree.vdot(product, product),
            count=carry.count + 1,
        )


def _draw(key, like):
    key, subkey = jax.random.split(key)
    # A sum with zeros of the leaf takes its sharding, where types carry it.
    return tree.add_scaled(tree.zeros_like(like), 1.0, tree.random_normal(subkey, like)), key


@jax.jit
def _begin(key, like, relative_error, absolute_error) -> _Carry:
    zeros = tree.zeros_like(widen(like))
    zero = tree.vdot(zeros, zeros)
    probe, key = _draw(key, zeros)
    return _Carry(
        probe=probe,
        key=key,
        values=zero,
        squares=zero,
        count=zero.astype(jnp.int32),
        relative_error=zero + jnp.asarray(relative_error, zero.dtype),
        absolute_error=zero + jnp.asarray(absolute_error, zero.dtype),
    )


def _estimate(carry: _Carry) -> tuple[jax.Array, jax.Array]:
    count = carry.count.astype(carry.values.dtype)
    return carry.values / count, jnp.sqrt(2 * carry.squares) / count


def _is_within(carry: _Carry) -> jax.Array:
    value, error = _estimate(carry)
    return error <= jnp.maximum(carry.relative_error * jnp.abs(value), carry.absolute_error)


def _is_reached(carry: _Carry) -> jax.Array:
    return (carry.count >= _MIN_PROBES) & _is_within(carry) | _is_not_finite(carry)


def _is_not_finite(carry: _Carry) -> jax.Array:
    return ~jnp.isfinite(carry.values + carry.squares)


@functools.partial(jax.jit, static_argnames="has_target")
def _finish(has_target, carry: _Carry) -> Trace:
    value, error = _estimate(carry)
    met = _is_reached(carry) if has_target else jnp.isfinite(value)
    status = jnp.where(met, Status.OK, Status.NOT_CONVERGED)
    return Trace(
        value=value,
        standard_error=error,
        num_evaluations=carry.count,
        status=jnp.where(_is_not_finite(carry), Status.NON_FINITE, status).astype(jnp.int32),
    )


def _check_error(name, error):
    if error is None or isinstance(error, Tracer):
        return
    if jnp.ndim(error) != 0 or not 0 <= error < math.inf:
        raise UserError(f"trace: {name} must be a number >= 0 or None, got {error}.")
