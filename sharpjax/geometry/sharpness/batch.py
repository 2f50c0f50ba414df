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

_LEAST = 16  # batches needed before their spread is trusted


class BatchSharpness(NamedTuple):
    """Curvature of mini-batch losses along their own gradients, under two names.

    Attributes:
        value: the mean of ratios, `E [g_B'H_B g_B / |g_B|^2]`.
        standard_error: of `value`; NaN from one batch of several.
        ratio_of_means: `E [g_B'H_B g_B] / E |g_B|^2`: batches are weighted by their squared
            gradient norms.
        ratio_standard_error: of `ratio_of_means`, by the delta method.
        num_batches: how many were drawn (int32).
        status: `Status`, int32. `BREAKDOWN`: all gradients are exactly zero, so the ratio of means
            is not known. `NOT_CONVERGED`: `relative_error` is not met.
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

    Use it to see whether SGD trains at its edge of stability. There it is reported to settle at
    2 / learning rate, while the largest eigenvalue of the full Hessian stays below. Two definitions
    are in use, and both are returned: the mean of ratios (`value`) and the ratio of means.

    >>> def loss(w, batch):  # each example has its own curvature, c
    ...     return jnp.mean(batch["c"] * w**2) / 2
    >>> batch = {"c": jnp.array([1.0, 3.0])}
    >>> found = batch_sharpness(
    ...     loss, jnp.float32(1), batch, batch_size=1, key=jax.random.key(0), max_batches=4000
    ... )
    >>> print(f"{found.value:.1f} {found.ratio_of_means:.1f}")  # (1 + 3) / 2, (1 + 27) / (1 + 9)
    2.0 2.8

    Mini-batches are drawn independently of each other, each without replacement; the standard
    errors are those of such draws at these parameters. With `n` batches the ratio of means and its
    error have a relative bias of order 1 / n. If `relative_error` stops the draws, the standard
    error covers somewhat less often than its nominal rate, because draws stop early when the error
    happens to be small. A batch whose gradient is exactly zero has no direction: it counts as 0 in
    the mean of ratios, and does not affect the ratio of means.

    Args:
        loss, params: as in `hessian`; the loss is called with mini-batches.
        batch: pytree of arrays with all examples on axis 0.
        batch_size: examples in a mini-batch. If it is all of them there is one batch, and the
            errors are 0.
        key: for the draws.
        relative_error: stop when both standard errors are within this share of their values, after
            at least 16 batches; None draws `max_batches`.
        max_batches: largest number of batches. `status` is `NOT_CONVERGED` if `relative_error` is
            not met by then.
        microbatch_size: examples per pass, which must divide `batch_size`; None: a mini-batch at
            once.

    Raises:
        UserError: an argument does not fit.

    Cost: for each batch its gradient, one Hessian product, and a permutation of all examples.
    Memory: a few vectors, and the activations of one batch. The data are kept on the device.
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
    # Checked on all examples: a later mini-batch may hold a mask that the first one does not.
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
    """State of the sum over batches, by Welford's recurrence (1962).

    Attributes:
        mean: (3,), of the ratio `c`, of `c |g|^2`, and of `|g|^2`. Each is kept in its own unit,
            which grows with it (`units.grow`), so that no square overflows or underflows.
        spread: (3, 3), the sum of products of deviations from the mean.
        unit: of gradients; 0 until one is not zero.
        curvature_unit: of the ratios, likewise.
        product_unit: of `c |g|^2`, likewise. It is separate from the units of the factors, because
            the curvature may be small where the gradient is large.
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
    """The sums in units grown to include one more batch, and its `c`, `c |g|^2`, `|g|^2`."""
    unit, less = units.grow(sums.unit, norm)
    curvature_unit, flatter = units.grow(sums.curvature_unit, curvature)
    square = jnp.square(norm / units.known(unit))
    curvature = curvature / units.known(curvature_unit)
    before = sums.product_unit * flatter * jnp.square(less)
    # If this factor underflows next to the other two, so do the products that were in it.
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
    """A mini-batch drawn without replacement, or all data in their order if it is that large."""
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
