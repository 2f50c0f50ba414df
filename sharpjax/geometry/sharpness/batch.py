"""Sharpness as mini-batches see it: each one's curvature along its own gradient."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Accuracy, Target, ask, how_it_ended
from sharpjax.geometry.lanczos import units
from sharpjax.geometry.loss import checks, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.loss.axes import refuse_sharded
from sharpjax.geometry.loss.differentiable import How
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.sharpness.directional import along
from sharpjax.geometry.status import Status, tells_unknown

Params = Any

_LEAST = 16  # batches before their spread is believed


class BatchSharpness(NamedTuple):
    """Curvature of mini-batch losses along their own gradients, under two names.

    Attributes:
        value: the mean of ratios, `E [g_B'H_B g_B / |g_B|^2]`.
        standard_error: of `value`; NaN from one batch of several.
        ratio_of_means: `E [g_B'H_B g_B] / E |g_B|^2`: batches count by their squared gradients.
        ratio_standard_error: of `ratio_of_means`, by the delta method.
        num_batches: how many were drawn (int32).
        status: `Status`, int32. `BREAKDOWN`: all gradients are exactly zero, so that the ratio of
            means is not known. `NOT_CONVERGED`: the error that was asked for is not met.
    """

    value: jax.Array
    standard_error: jax.Array
    ratio_of_means: jax.Array
    ratio_standard_error: jax.Array
    num_batches: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`batch_sharpness` and `batch_sharpness_ratio_of_means`."""
        ratio = Estimate(self.ratio_of_means, self.ratio_standard_error, self.num_batches)
        return {
            "batch_sharpness": Estimate(self.value, self.standard_error, self.num_batches),
            "batch_sharpness_ratio_of_means": ratio,
        }


def batch_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    batch_size: int,
    key: jax.Array,
    relative_error: Target = None,
    max_batches: int = 100,
    microbatch_size: int | None = None,
) -> BatchSharpness:
    """`E g_B'H_B g_B / |g_B|^2` over random mini-batches `B`, with gradient and Hessian of the
    mini-batch's own loss: what a step of SGD meets (arXiv 2412.20553).

    Take it to see whether SGD trains at its edge of stability: there it is said to settle at
    2 / learning rate, while the largest eigenvalue of the full Hessian stays below. Both ways of
    taking the mean are in use and returned: the mean of ratios (`value`), and the ratio of means.

    >>> def loss(w, batch):  # each example has its own curvature, c
    ...     return jnp.mean(batch["c"] * w**2) / 2
    >>> batch = {"c": jnp.array([1.0, 3.0])}
    >>> found = batch_sharpness(
    ...     loss, jnp.float32(1), batch, batch_size=1, key=jax.random.key(0), max_batches=4000
    ... )
    >>> print(f"{found.value:.1f} {found.ratio_of_means:.1f}")  # (1 + 3) / 2, (1 + 27) / (1 + 9)
    2.0 2.8

    Mini-batches are drawn independently of each other, each without an example twice; the standard
    errors are those of such draws at these parameters. Of `n` batches the ratio of means, and its
    error, are off by a share of 1 / n. Where the error stops the draws, it covers somewhat less
    often than its nominal rate: what stops early is what came out small. A batch with a gradient of
    exactly zero has no direction: it counts as 0 in the mean of ratios, and not in the other.

    Args:
        loss, params: as in `hessian`; the loss is called with mini-batches.
        batch: pytree of arrays with all examples on axis 0.
        batch_size: examples in a mini-batch. With all of them there is one, and the errors are 0.
        key: for the draws.
        relative_error: stop where both standard errors are within this share of their values, from
            16 batches on; None draws `max_batches`.
        max_batches: how many at the most. `status` is `NOT_CONVERGED` where the error that was
            asked for is not met by then.
        microbatch_size: examples per pass, dividing `batch_size`; None: a mini-batch at once.

    Raises:
        UserError: an argument does not fit.

    Cost: for each batch its gradient and one Hessian product, and an order of all examples. Memory:
    a few vectors, and one batch at work. The data lie on the device.
    """
    caller = "batch_sharpness"
    batch = checks.as_batch(caller, batch)
    num_examples = loops.count_examples(caller, batch)
    batch_size = whole_number(caller, "batch_size", batch_size)
    if batch_size > num_examples:
        raise UserError(f"{caller}: batch_size={batch_size} of {num_examples} examples.")
    limit = whole_number(caller, "max_batches", max_batches)
    if batch_size < num_examples:
        refuse_sharded(caller, batch, "replicate them, jax.reshard(batch, jax.P()).")
    key, accuracy = check_key(caller, key), ask(caller, relative_error, None)
    few = jax.tree.map(lambda x: x[:batch_size], batch)
    loss, how = checks.check_curvature(caller, loss, params, few, microbatch_size)
    is_cut = microbatch_size is not None and microbatch_size < batch_size
    # Of all examples: what the first mini-batch does not hold, such as a mask, a later one may.
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size) if is_cut else None
    params, batch = jax.tree.map(jnp.asarray, (tree.widen(params), batch))
    operands = (loss, params, batch)
    if loops.is_traced(operands):
        operands = algebra.without_derivative(operands)
    is_whole = batch_size == num_examples
    state, _ = loops.iterate(
        _Draw(batch_size, microbatch_size, how),
        _start(params, key, accuracy),
        operands,
        max_steps=1 if is_whole else limit,
        until=_is_reached if accuracy.is_asked and not is_whole else _is_not_finite,
    )
    return mark(_finish(accuracy.is_asked, is_whole, state), checked)


class _Sums(NamedTuple):
    """Batches under way, by Welford's recurrence (1962).

    Attributes:
        mean: (3,), of the ratio `c`, of `c |g|^2`, and of `|g|^2`, each in a unit of its own, which
            grows with it (`units.grow`): so no square leaves the range.
        spread: (3, 3), the sum of products of what is off the mean.
        unit: of gradients; 0 until one is not zero.
        curvature_unit: of the ratios, likewise.
        product_unit: of `c |g|^2`, likewise, beside those of its factors: where the gradient is
            large the curvature may be small.
    """

    mean: jax.Array
    spread: jax.Array
    unit: jax.Array
    curvature_unit: jax.Array
    product_unit: jax.Array
    count: jax.Array
    key: jax.Array
    accuracy: Accuracy


@dataclasses.dataclass(frozen=True)
class _Draw:
    """One mini-batch, for `sharpjax.loops.iterate`."""

    batch_size: int
    microbatch_size: int | None
    how: How

    def __call__(self, sums: _Sums, operands: Any) -> _Sums:
        loss, params, data = operands
        batch = draw(jax.random.fold_in(sums.key, sums.count), data, self.batch_size)
        found = along(loss, params, batch, self.how, self.microbatch_size)
        norm = tree.vdot(found.unit, found.gradient)
        finite = jnp.isfinite(found.loss) & jnp.isfinite(norm)
        sums, values = _in_units(sums, norm, jnp.where(finite, found.curvature, jnp.nan))
        off = values - sums.mean
        count = sums.count + 1
        number = count.astype(off.dtype)
        return sums._replace(
            mean=sums.mean + off / number,
            spread=sums.spread + _outer(off) * ((number - 1) / number),
            count=count,
        )


def _in_units(sums: _Sums, norm: jax.Array, curvature: jax.Array) -> tuple[_Sums, jax.Array]:
    """The sums in units that have grown with one more batch, and its `c`, `c |g|^2`, `|g|^2`."""
    unit, less = units.grow(sums.unit, norm)
    curvature_unit, flatter = units.grow(sums.curvature_unit, curvature)
    square = jnp.square(norm / units.known(unit))
    curvature = curvature / units.known(curvature_unit)
    before = sums.product_unit * flatter * jnp.square(less)
    # Where it has underflowed beside the other two, so have the products that were in it.
    before = jnp.where(before < jnp.finfo(before.dtype).tiny, 0, before)
    product_unit, fewer = units.grow(before, curvature * square)
    factors = jnp.stack([flatter, jnp.where(before > 0, fewer, 0), jnp.square(less)])
    grown = sums._replace(
        mean=sums.mean * factors,
        spread=sums.spread * _outer(factors),
        unit=unit,
        curvature_unit=curvature_unit,
        product_unit=product_unit,
    )
    values = jnp.stack([curvature, curvature * square / units.known(product_unit), square])
    return grown, values


def _outer(x: jax.Array) -> jax.Array:
    return jnp.expand_dims(x, 0) * jnp.expand_dims(x, 1)


def draw(key: jax.Array, data: Any, batch_size: int) -> Any:
    """A mini-batch without an example twice; all of the data, in their order, where it is all."""
    num_examples = jax.tree.leaves(data)[0].shape[0]
    if batch_size == num_examples:
        return data
    chosen = jax.random.choice(key, num_examples, (batch_size,), replace=False)
    return jax.tree.map(lambda x: x[chosen], data)


def _estimates(sums: _Sums) -> tuple[jax.Array, jax.Array]:
    """Both values and both standard errors, each (2,), in the unit of curvatures."""
    number = sums.count.astype(sums.mean.dtype)
    covariance = sums.spread / (number * jnp.maximum(number - 1, 1))
    value, above, below = sums.mean
    ratio = above / below
    variance = jnp.sum(covariance[1:, 1:] * _outer(jnp.stack([1 / below, -ratio / below])))
    variances = jnp.stack([covariance[0, 0], jnp.maximum(variance, 0)])
    unit = jnp.stack([jnp.ones_like(ratio), units.known(sums.product_unit)])
    return unit * jnp.stack([value, ratio]), unit * jnp.sqrt(variances)


def _is_reached(sums: _Sums) -> jax.Array:
    values, errors = _estimates(sums)
    within = jnp.all(errors <= sums.accuracy.allowed(jnp.abs(values)))
    return (sums.count >= _LEAST) & within | _is_not_finite(sums)


def _is_not_finite(sums: _Sums) -> jax.Array:
    return ~(jnp.all(jnp.isfinite(sums.mean)) & jnp.all(jnp.isfinite(sums.spread)))


@jax.jit
def _start(params, key, accuracy) -> _Sums:
    zero = jnp.zeros((), objective.scalar_type(params))
    return _Sums(
        mean=jnp.zeros(3, zero.dtype),
        spread=jnp.zeros((3, 3), zero.dtype),
        unit=zero,
        curvature_unit=zero,
        product_unit=zero,
        count=jnp.int32(0),
        key=key,
        accuracy=accuracy.fill(zero),
    )


@tells_unknown
@functools.partial(jax.jit, static_argnums=(0, 1))
def _finish(is_asked: bool, is_whole: bool, sums: _Sums) -> BatchSharpness:
    unit = units.known(sums.curvature_unit)
    values, errors = (unit * x for x in _estimates(sums))
    if not is_whole:
        errors = jnp.where(sums.count > 1, errors, jnp.nan)
    finite = ~_is_not_finite(sums)
    met = finite if is_whole or not is_asked else _is_reached(sums)
    status = how_it_ended(met, finite)
    return BatchSharpness(
        value=values[0],
        standard_error=errors[0],
        ratio_of_means=values[1],
        ratio_standard_error=errors[1],
        num_batches=sums.count,
        status=jnp.where(finite & (sums.mean[2] == 0), Status.BREAKDOWN, status).astype(jnp.int32),
    )
