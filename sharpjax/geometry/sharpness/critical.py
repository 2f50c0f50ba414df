"""How far an update can be followed before the loss rises, from values of the loss alone."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.loss import checks, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.arguments import check_number
from sharpjax.geometry.sharpness.directional import check_direction, rounding
from sharpjax.geometry.status import Status, tells_unknown

Params = Any


class CriticalSharpness(NamedTuple):
    """The sharpness at which a step along a direction no longer lowers the loss.

    Attributes:
        value: `2 / step`; NaN without a bracket.
        low, high: an interval that contains `2 / eta` for a step `eta` at which the loss is back at
            its start. Without a bracket the interval is one-sided: `low` is 0 if the loss never
            rose, `high` is infinite if it never fell.
        step: the step at which the loss is back at its start, interpolated between two that were
            tried; NaN without a bracket.
        loss: `L(w)`.
        num_losses: forward passes over the batch (int32).
        status: `Status`, int32. `NOT_CONVERGED`: the loss had not risen at the largest step, or the
            interval is wider than `relative_error` allows. `BREAKDOWN`: no step lowered the loss by
            more than its rounding. `NON_FINITE`: the loss at the parameters is not finite.
    """

    value: jax.Array
    low: jax.Array
    high: jax.Array
    step: jax.Array
    loss: jax.Array
    num_losses: jax.Array
    status: jax.Array

    @tells_unknown
    def estimates(self) -> dict[str, Estimate]:
        """`critical_sharpness`. It is not random: its `standard_error` is the distance to the
        farther end of the interval."""
        error = jnp.maximum(self.high - self.value, self.value - self.low)
        return {"critical_sharpness": Estimate(self.value, error, self.num_losses)}


def critical_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    direction: Params,
    *,
    first_step: ArrayLike = 1.0,
    largest_step: ArrayLike = 2.0**20,
    relative_error: ArrayLike = 0.01,
    max_losses: int = 64,
    microbatch_size: int | None = None,
) -> CriticalSharpness:
    """`2 / eta_c`, with `eta_c` the smallest step along a direction at which the loss rises above
    its start (arXiv 2601.16979), as an interval.

    Use it if a gradient is too expensive, or if the curvature at a point says too little about a
    long step: it needs only forward passes. The direction is **added**, as optax updates are. If
    the value is above 2, the whole update (step 1) raises the loss. On a quadratic loss it is
    `d'Hd / -g'd`, as in `directional_sharpness`; along `d = -g` it is `g'Hg / |g|^2`, which is at
    most the largest eigenvalue.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w[0] ** 2 + 3 * w[1] ** 2)
    >>> w, batch = jnp.array([1.0, 1.0]), jnp.ones(4)
    >>> downhill = -jax.grad(loss)(w, batch)
    >>> found = critical_sharpness(loss, w, batch, downhill)
    >>> print(f"{found.value:.3f} in [{found.low:.3f}, {found.high:.3f}]")  # (2^2 2 + 6^2 6) / 40
    5.600 in [5.581, 5.613]

    The step is doubled from `first_step` until the loss is higher than at the start, or halved
    until it is lower. The bracket is then narrowed by the root of the line through
    `(L(w + eta d) - L(w)) / eta` at its two ends, which is exact on quadratics, and every third
    time by its middle. A loss that is NaN or infinite counts as an increase. A difference within 16
    units in the last place of the loss (2e-6 of it in float32) is neither rise nor fall. So, if the
    loss is computed to this accuracy and is continuous along the direction, the interval contains a
    step at which the loss is back at its start. No finite number of values can tell whether the
    loss rose and fell again between two steps that were tried.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`; no derivative of the loss is taken.
        direction: a tree like the parameters, such as an optax update.
        first_step: the first step that is tried, > 0; may be traced, as may `largest_step` and
            `relative_error`.
        largest_step: longer steps are not tried. If the loss has not risen by then, the status is
            `NOT_CONVERGED`.
        relative_error: how wide the interval may be, relative to `value`.
        max_losses: largest number of forward passes, 3 or more.

    Raises:
        UserError: an argument does not fit.

    Cost: 5 forward passes if `eta_c` is in [`first_step`, 2 `first_step`) and the loss is nearly
    quadratic along the direction; one more for each factor of 2 it lies outside. Passes run one
    after another, in the memory of one.
    """
    caller = "critical_sharpness"
    batch = checks.as_batch(caller, batch)
    direction = check_direction(caller, "direction", direction, params)
    loss = checks.check_problem(caller, loss, params, batch, microbatch_size, "value")
    for name, given in (
        ("first_step", first_step),
        ("largest_step", largest_step),
        ("relative_error", relative_error),
    ):
        check_number(caller, name, given)
    known = not isinstance(first_step, Tracer) and not isinstance(largest_step, Tracer)
    if known and np.greater(first_step, largest_step):
        raise UserError(
            f"{caller}: first_step={first_step} is beyond largest_step={largest_step}; give a "
            f"smaller first_step."
        )
    limit = whole_number(caller, "max_losses", max_losses, least=3)
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    params = jax.tree.map(jnp.asarray, tree.widen(params))
    operands = _Operands(loss, params, batch, direction)
    if loops.is_traced(operands):
        operands = algebra.without_derivative(operands)
    evaluate = _Evaluate(rounding(params), microbatch_size)
    bracket = _start(params, first_step, largest_step, relative_error)
    bracket, _ = loops.iterate(evaluate, bracket, operands, max_steps=limit, until=_is_done)
    return mark(_finish(bracket), checked)


class _Operands(NamedTuple):
    loss: Any
    params: Params
    batch: Any
    direction: Params


class _Bracket(NamedTuple):
    """State of the search.

    Attributes:
        loss: at the start.
        step: the next one; 0 at first.
        low, high: the largest step known to lower the loss (0: none), and the smallest known to
            raise it (infinite: none).
        slope_low, slope_high: `(L(w + eta d) - L(w)) / eta` there.
        flat_low, flat_high: steps between the two at which the difference was within rounding;
            (infinite, 0) where there is none.
        refined: int32, steps since the bracket was found.
        count: int32, all steps, the start included.
        done: whether nothing is left to try.
        first, largest, width: what the user asked for.
    """

    loss: jax.Array
    step: jax.Array
    low: jax.Array
    high: jax.Array
    slope_low: jax.Array
    slope_high: jax.Array
    flat_low: jax.Array
    flat_high: jax.Array
    refined: jax.Array
    count: jax.Array
    done: jax.Array
    first: jax.Array
    largest: jax.Array
    width: jax.Array

    @property
    def is_closed(self) -> jax.Array:
        return (self.low > 0) & (self.high < jnp.inf)

    @property
    def is_narrow(self) -> jax.Array:
        return self.is_closed & (self.high - self.low <= self.width * self.low)

    def root(self) -> jax.Array:
        """The step at which the line through the slopes is zero; the middle if there is no line."""
        share = -self.slope_low / (self.slope_high - self.slope_low)
        share = jnp.where(jnp.isfinite(self.slope_high), share, 0.5)
        return self.low + jnp.clip(share, 0, 1) * (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class _Evaluate:
    """One forward pass, for `sharpjax.loops.iterate`."""

    rounding: float
    microbatch_size: int | None

    def __call__(self, bracket: _Bracket, operands: _Operands) -> _Bracket:
        moved = tree.add_scaled(operands.params, bracket.step, operands.direction)
        value = objective.value(operands.loss, moved, operands.batch, self.microbatch_size)
        at_start = bracket.count == 0
        begun = bracket._replace(
            loss=value, step=bracket.first, count=bracket.count + 1, done=~jnp.isfinite(value)
        )
        noise = self.rounding * jnp.maximum(jnp.abs(value), jnp.abs(bracket.loss))
        moved_on = _next(_narrow(bracket, value - bracket.loss, noise))
        return objective.select(at_start, begun, moved_on)


def _narrow(b: _Bracket, rise: jax.Array, noise: jax.Array) -> _Bracket:
    """The bracket after the loss at `b.step` was found to differ from its start by `rise`."""
    finite = jnp.isfinite(rise) & jnp.isfinite(noise)
    up, down = ~finite | (rise > noise), finite & (rise < -noise)
    flat = ~up & ~down
    # Flat steps below one that lowers the loss, or above one that raises it, are outside.
    outside = (down & (b.flat_high < b.step)) | (up & (b.flat_low > b.step))
    flat_low = jnp.where(outside, jnp.inf, b.flat_low)
    flat_high = jnp.where(outside, 0, b.flat_high)
    slope = rise / b.step
    return b._replace(
        low=jnp.where(down, b.step, b.low),
        slope_low=jnp.where(down, slope, b.slope_low),
        high=jnp.where(up, b.step, b.high),
        slope_high=jnp.where(up, jnp.where(finite, slope, jnp.inf), b.slope_high),
        flat_low=jnp.where(flat, jnp.minimum(flat_low, b.step), flat_low),
        flat_high=jnp.where(flat, jnp.maximum(flat_high, b.step), flat_high),
        refined=b.refined + b.is_closed.astype(jnp.int32),
        count=b.count + 1,
    )


def _next(b: _Bracket) -> _Bracket:
    """The bracket with the next step, or done."""
    middle, root, third = b.low + (b.high - b.low) / 2, b.root(), b.width * b.low / 3
    inside = jnp.where(root - b.low < 2 * third, root + third, root - third)
    bisect = (b.refined % 3 == 2) | (b.slope_high == jnp.inf)
    bisect |= (inside <= b.low) | (inside >= b.high)
    inside = jnp.where(bisect, middle, inside)

    is_flat = b.flat_high > 0
    below, above = b.flat_low - b.low, b.high - b.flat_high
    # A single flat step serves as the root: steps a little to both sides of it close the bracket.
    is_point = b.flat_low == b.flat_high
    lower, upper = b.flat_low - third, b.flat_high + third
    near = is_point & (b.low < lower) & (lower < b.flat_low)
    lower = jnp.where(near, lower, b.low + below / 2)
    near = is_point & (b.flat_high < upper) & (upper < b.high)
    upper = jnp.where(near, upper, b.flat_high + above / 2)
    beside = jnp.where(below > above, lower, upper)
    inside = jnp.where(is_flat, beside, inside)

    is_open = b.high == jnp.inf
    outside = jnp.where(is_open, 2 * b.step, jnp.minimum(b.high, b.flat_low) / 2)
    step = jnp.where(b.is_closed, inside, outside)
    # A quadratic is lowest at half the step sought. If neither that step nor a smaller one lowers
    # the loss by more than rounding, none does.
    never = ~is_open & (b.low == 0) & (is_flat & (b.flat_high >= 2 * b.flat_low))
    exact = b.is_closed & is_flat & (jnp.maximum(below, above) <= b.width * b.low / 4)
    return b._replace(
        step=step,
        done=b.is_narrow | exact | never | (is_open & (step > b.largest)) | (step == 0),
    )


def _is_done(bracket: _Bracket) -> jax.Array:
    return bracket.done


@jax.jit
def _start(params, first_step, largest_step, relative_error) -> _Bracket:
    zero = jnp.zeros((), objective.scalar_type(params))
    infinite, none = jnp.full_like(zero, jnp.inf), jnp.int32(0)
    first, largest, width = (
        jnp.asarray(x, zero.dtype) for x in (first_step, largest_step, relative_error)
    )
    # A traced argument could not be checked earlier.
    asked = (first > 0) & (largest >= first) & (width > 0)
    return _Bracket(
        loss=zero,
        step=jnp.where(asked, zero, jnp.nan),
        low=zero,
        high=infinite,
        slope_low=zero,
        slope_high=infinite,
        flat_low=infinite,
        flat_high=zero,
        refined=none,
        count=none,
        done=jnp.bool_(False),
        first=first,
        largest=largest,
        width=width,
    )


@tells_unknown
@jax.jit
def _finish(b: _Bracket) -> CriticalSharpness:
    status = jnp.where(b.is_narrow, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(b.low > 0, status, Status.BREAKDOWN)
    known = jnp.isfinite(b.loss)
    step = jnp.where(b.is_closed & known, b.root(), jnp.nan)
    return CriticalSharpness(
        value=2 / step,
        low=jnp.where(known, 2 / b.high, jnp.nan),
        high=jnp.where(known, 2 / b.low, jnp.nan),
        step=step,
        loss=b.loss,
        num_losses=b.count,
        status=jnp.where(known, status, Status.NON_FINITE).astype(jnp.int32),
    )
