"""How much random noise the weights tolerate before the mean loss rises by a given amount."""

import dataclasses
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from sharpjax import loops, perturbation
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Accuracy
from sharpjax.geometry.loss import checks, closures, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.arguments import check_key, check_number
from sharpjax.geometry.sharpness import average_case
from sharpjax.geometry.sharpness.average_case import Noise
from sharpjax.geometry.sharpness.directional import rounding
from sharpjax.geometry.status import Status, tells_unknown

Params = Any

_NO_SCALING = perturbation.none()
_LEAP = 16.0  # largest factor between radii while there is no bracket


class FlatRadius(NamedTuple):
    """The radius of noise at which the mean loss has risen by the target. Small is sharp.

    Attributes:
        value: the radius; NaN without a bracket.
        low, high: two radii that were tried: at `low` the mean rise was at most the target, at
            `high` above it. Without a bracket the interval is one-sided: `low` is 0 if the rise was
            above the target at all radii tried, `high` is infinite if it was above at none.
        standard_error: of `value`, from the spread of the draws, which are the same at all radii.
            NaN without a bracket, or if the loss was not finite at `high`.
        loss: `L(w)`.
        num_losses: forward passes over the batch (int32).
        status: `Status`, int32. `NOT_CONVERGED`: no bracket up to the largest radius, or one that
            is wider than `relative_error` allows. `BREAKDOWN`: the target is within the rounding of
            the loss, or the radius is below the resolution of the parameters (more than 10 % of
            them were perturbed without effect). `NON_FINITE`: the loss at the parameters is not
            finite.
    """

    value: jax.Array
    low: jax.Array
    high: jax.Array
    standard_error: jax.Array
    loss: jax.Array
    num_losses: jax.Array
    status: jax.Array

    @tells_unknown
    def estimates(self) -> dict[str, Estimate]:
        """`flat_radius`. Its `standard_error` combines the distance to the farther end of the
        interval with the error of the draws, as the root of the sum of squares."""
        off = jnp.maximum(self.high - self.value, self.value - self.low)
        error = jnp.sqrt(jnp.square(self.standard_error) + jnp.square(off))
        return {"flat_radius": Estimate(self.value, error, self.num_losses)}


def flat_radius(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    target: ArrayLike,
    noise: Noise = "gaussian",
    scaling: perturbation.Scaling = _NO_SCALING,
    first_rho: ArrayLike = 0.01,
    largest_rho: ArrayLike = 2.0**20,
    relative_error: ArrayLike = 0.02,
    num_pairs: int = 32,
    max_tries: int = 32,
    microbatch_size: int | None = None,
) -> FlatRadius:
    """The radius of noise `rho` up to which the mean loss rises by no more than `target`, as an
    interval: the radius at which `average_sharpness` equals `target`.

    With gaussian noise it is the sigma of PAC-Bayes bounds (Neyshabur et al., 2017, arXiv
    1706.08947; as a measure, Jiang et al., 2020, arXiv 1912.02178): the standard deviation of the
    noise, not its variance. The measures there are `1 / sigma^2` and `|w|^2 / sigma^2`. With
    `scaling=perturbation.element()` it is the magnitude-aware sigma: weight `w` has the standard
    deviation `sigma |w|`. To second order it is `sqrt(2 target / tr(THT))`.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2)
    >>> key, w, batch = jax.random.key(0), jnp.ones(10_000), jnp.ones(4)
    >>> found = flat_radius(loss, w, batch, key=key, target=0.25)
    >>> print(f"{found.value:.4f}")  # sqrt(0.25 / 10_000)
    0.0050

    The loss need not have a derivative. With the error rate as the loss and `target=0.1`, the
    result is the radius at which 10 percentage points of accuracy are lost.

    All radii use the same draws, in pairs `w + e` and `w - e`. The mean rise is therefore as smooth
    in the radius as the loss, and the gradient cancels. Until there is a bracket, the next radius
    follows from `rise ~ rho^2`. After that it follows from the power law through the ends of the
    bracket, and every third time it is the (geometric) middle. A rise that is not finite counts as
    above the target. No finite number of values can tell whether the rise fell again between two
    radii that were tried.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`; no derivative of the loss is taken.
        key: for the draws.
        target: how far the mean loss may rise, > 0; may be traced, as may all numbers here except
            the counts.
        noise, scaling: as in `average_sharpness`: the distribution of the noise and its units.
        first_rho: the radius that is tried first.
        largest_rho: larger radii are not tried. If the loss has not risen by `target` by then,
            which can happen if it is bounded, the status is `NOT_CONVERGED`.
        relative_error: how wide the interval may be, relative to `low`.
        num_pairs: number of pairs per radius, 2 or more.
        max_tries: largest number of radii, 2 or more.

    Raises:
        UserError: an argument does not fit.

    Cost: one forward pass, and `2 num_pairs` for each radius. The number of radii is 3 if the loss
    is nearly quadratic, about 10 if not, and one more for each factor of 16 between the radius and
    `first_rho`. Passes run one after another; memory as in `average_sharpness`.
    """
    caller = "flat_radius"
    perturbation.check_scaling(caller, scaling)
    if noise not in get_args(Noise):
        raise unknown("noise", noise, get_args(Noise))
    for name, given in (
        ("target", target),
        ("first_rho", first_rho),
        ("largest_rho", largest_rho),
        ("relative_error", relative_error),
    ):
        check_number(caller, name, given)
    known = not isinstance(first_rho, Tracer) and not isinstance(largest_rho, Tracer)
    if known and np.greater(first_rho, largest_rho):
        raise UserError(
            f"{caller}: first_rho={first_rho} is beyond largest_rho={largest_rho}; give a smaller "
            f"first_rho."
        )
    pairs = whole_number(caller, "num_pairs", num_pairs, least=2)
    tries = whole_number(caller, "max_tries", max_tries, least=2)
    batch = checks.as_batch(caller, batch)
    key = check_key(caller, key)
    loss = checks.check_problem(caller, loss, params, batch, microbatch_size, "value")
    perturbation.check_units(caller, scaling, params)
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    params = jax.tree.map(jnp.asarray, params)
    operands = _Operands(loss, params, batch, key)
    if loops.is_traced(operands):
        operands = algebra.without_derivative(operands)
    dtype = objective.scalar_type(params)
    first, largest, goal, width = (
        jnp.asarray(x, dtype) for x in (first_rho, largest_rho, target, relative_error)
    )
    sums = average_case.start(
        *operands[:3], first, microbatch_size, rounding(params), Accuracy(None, None)
    )
    step = _Try(average_case.Pair(noise, closures.rule(scaling), microbatch_size), pairs)
    search, _ = loops.iterate(
        step,
        _begin(sums, first, largest, goal, width),
        operands,
        max_steps=pairs * tries,
        until=_is_done,
    )
    return mark(_finish(search), checked)


class _Operands(NamedTuple):
    loss: Any
    params: Params
    batch: Any
    key: jax.Array


class _End(NamedTuple):
    """A radius, the mean rise there, and its standard error."""

    rho: jax.Array
    rise: jax.Array
    error: jax.Array


class _Search(NamedTuple):
    """State of the search.

    Attributes:
        sums: over pairs at the radius `rho`.
        low, high: the ends of the bracket; without one, (0, 0) and (infinite, infinite).
        lost: share of the weights that were perturbed without effect at the last radius.
        refined: int32, number of radii at which the rise was within a factor of 4 of the target, or
            that were tried with a bracket.
        drawn: int32, pairs at all radii.
        done: whether nothing is left to try.
        largest, target, width: what the user asked for.
    """

    sums: average_case.Sums
    rho: jax.Array
    low: _End
    high: _End
    lost: jax.Array
    refined: jax.Array
    drawn: jax.Array
    done: jax.Array
    largest: jax.Array
    target: jax.Array
    width: jax.Array

    @property
    def is_closed(self) -> jax.Array:
        return (self.low.rho > 0) & (self.high.rho < jnp.inf)

    @property
    def is_narrow(self) -> jax.Array:
        return self.is_closed & (self.high.rho - self.low.rho <= self.width * self.low.rho)

    @property
    def middle(self) -> jax.Array:
        return jnp.sqrt(self.low.rho) * jnp.sqrt(self.high.rho)

    def root(self) -> jax.Array:
        """The radius at which the power law through the ends meets the target; the middle if there
        is no power law."""
        (low, under, _), (high, over, _) = self.low, self.high
        share = jnp.log(self.target / under) / jnp.log(over / under)
        root = low * (high / low) ** jnp.clip(share, 0, 1)
        return jnp.where((under > 0) & (over < jnp.inf), root, self.middle)


@dataclasses.dataclass(frozen=True)
class _Try:
    """Draws one pair, for `sharpjax.loops.iterate`. After the last pair at a radius it moves to the
    next radius."""

    pair: average_case.Pair
    num_pairs: int

    def __call__(self, search: _Search, operands: _Operands) -> _Search:
        loss, params, batch, key = operands
        sums = self.pair(search.sums, (loss, params, batch, search.rho, key))
        search = search._replace(sums=sums, drawn=search.drawn + 1)
        is_last = (sums.count == self.num_pairs) | average_case.is_not_finite(sums)
        return objective.select(is_last, _next(_narrow(search)), search)


def _narrow(s: _Search) -> _Search:
    """Updates the bracket with the pairs at one radius, and empties the sums for the next."""
    sums, zero = s.sums, jnp.zeros_like(s.rho)
    rise = jnp.where(jnp.isfinite(sums.mean), sums.mean, jnp.inf)
    here, above = _End(s.rho, rise, average_case.standard_error(sums)), rise > s.target
    near = s.is_closed | (jnp.maximum(rise / s.target, s.target / rise) < 4)
    emptied = ("mean", "spread", "odd", "absolute", "length")
    return s._replace(
        low=objective.select(above, s.low, here),
        high=objective.select(above, here, s.high),
        lost=sums.lost,
        refined=s.refined + near.astype(jnp.int32),
        sums=sums._replace(
            **dict.fromkeys(emptied, zero),
            largest=-jnp.full_like(zero, jnp.inf),
            lost=jnp.zeros_like(sums.lost),
            count=jnp.zeros_like(sums.count),
        ),
    )


def _next(s: _Search) -> _Search:
    """The next radius, or done."""
    third = 1 + s.width / 3
    # Without a bracket only one end is known, the last radius. A radius a little beyond the root of
    # `rise ~ rho^2` should close the bracket. If it did not, the loss does not rise like that.
    least = jnp.where(s.refined > 1, 2, third)
    is_open = s.high.rho == jnp.inf
    rise = jnp.where(is_open, s.low.rise, s.high.rise)
    guess = s.rho * jnp.sqrt(s.target / jnp.where(rise > 0, rise, 0))  # infinite: no rise at all
    up = jnp.clip(guess * third, least * s.rho, _LEAP * s.rho)
    down = jnp.clip(guess / third, s.rho / _LEAP, s.rho / least)
    outside = jnp.where(is_open, jnp.minimum(up, s.largest), down)

    root = s.root()
    inside = jnp.where(root < s.low.rho * third**2, root * third, root / third)
    bisect = (
        ((s.refined > 0) & (s.refined % 3 == 0)) | (inside <= s.low.rho) | (inside >= s.high.rho)
    )
    inside = jnp.where(bisect, s.middle, inside)
    ended = (s.rho == s.low.rho) & (s.rho >= s.largest)
    rho = jnp.where(s.is_closed, inside, outside)
    between = ~s.is_closed | ((rho > s.low.rho) & (rho < s.high.rho))  # else no number is left
    return s._replace(rho=rho, done=s.is_narrow | ended | (rho == 0) | ~between)


def _is_done(search: _Search) -> jax.Array:
    return search.done


@jax.jit
def _begin(sums, first, largest, target, width) -> _Search:
    zero = jnp.zeros_like(sums.loss)
    infinite = jnp.full_like(zero, jnp.inf)
    # A traced argument could not be checked earlier.
    asked = (first > 0) & (largest >= first) & (target > 0) & (width > 0)
    return _Search(
        sums=sums,
        rho=zero + first,
        low=_End(zero, zero, zero),
        high=_End(infinite, infinite, zero),
        lost=jnp.zeros((), jnp.float32),
        refined=jnp.int32(0),
        drawn=jnp.int32(0),
        done=~(asked & jnp.isfinite(sums.loss)),
        largest=zero + largest,
        target=jnp.where(asked, zero + target, jnp.nan),
        width=zero + width,
    )


@tells_unknown
@jax.jit
def _finish(s: _Search) -> FlatRadius:
    known = jnp.isfinite(s.sums.loss) & jnp.isfinite(s.target)
    value = jnp.where(s.is_closed & known, s.root(), jnp.nan)
    slope = (s.high.rise - s.low.rise) / (s.high.rho - s.low.rho)
    error = jnp.maximum(s.low.error, s.high.error) / slope
    is_rough = s.is_closed & (s.lost > average_case.LOST)
    status = jnp.where(s.is_narrow, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(is_rough | (s.target <= s.sums.floor), Status.BREAKDOWN, status)
    return FlatRadius(
        value=value,
        low=jnp.where(known, s.low.rho, jnp.nan),
        high=jnp.where(known, s.high.rho, jnp.nan),
        standard_error=jnp.where(s.high.rise < jnp.inf, error, jnp.nan) + 0 * value,
        loss=s.sums.loss,
        num_losses=1 + 2 * s.drawn,
        status=jnp.where(known, status, Status.NON_FINITE).astype(jnp.int32),
    )
