"""Average-case sharpness: how far the loss rises at random points near the parameters."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sharpjax import loops, perturbation, tree
from sharpjax.errors import unknown, whole_number
from sharpjax.estimate import Estimate
from sharpjax.geometry.accuracy import Accuracy, Target, ask, how_it_ended
from sharpjax.geometry.loss import checks, closures, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.sharpness.directional import rounding
from sharpjax.geometry.sharpness.measures import LOST, check_rho
from sharpjax.geometry.status import Status, tells_unknown

Params = Any
Noise = Literal["gaussian", "uniform", "sphere"]

_NO_SCALING = perturbation.none()
_LEAST = 16  # pairs needed before their spread is trusted


class AverageSharpness(NamedTuple):
    """How far the loss rises at random points, in pairs `w + e` and `w - e`.

    Attributes:
        value: the mean rise, `E L(w + e) - L(w)`. The gradient cancels within each pair, so this is
            the effect of curvature.
        standard_error: of `value`; includes the rounding of the losses, and `lost_fraction` times
            the value.
        slope_part: the root mean square of `(L(w + e) - L(w - e)) / 2`, in which curvature cancels;
            to first order that of `g'e`.
        absolute: the mean of `|L(w + e) - L(w)|`, over all points.
        largest: the largest rise at any point.
        loss: `L(w)`.
        length: the root mean square of `|e|_2`.
        lost_fraction: share of the weights that were perturbed without effect, because `e` is below
            half a unit in their last place; the largest over pairs.
        num_pairs: how many were drawn (int32).
        status: `Status`, int32: `BREAKDOWN` if more than 10 % of the weights were perturbed without
            effect; the radius is then below the resolution of the parameters.
    """

    value: jax.Array
    standard_error: jax.Array
    slope_part: jax.Array
    absolute: jax.Array
    largest: jax.Array
    loss: jax.Array
    length: jax.Array
    lost_fraction: jax.Array
    num_pairs: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`average_sharpness`."""
        return {"average_sharpness": Estimate(self.value, self.standard_error, self.num_pairs)}


def average_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    rho: ArrayLike,
    noise: Noise = "gaussian",
    scaling: perturbation.Scaling = _NO_SCALING,
    relative_error: Target = None,
    max_pairs: int = 50,
    microbatch_size: int | None = None,
) -> AverageSharpness:
    """`E L(w + e) - L(w)` over random `e`: the mean rise of the loss near the parameters.

    Here `e = T u`, with the units `T` of a scaling. For P weights, `noise` says what `u` is:

    * "gaussian": normal numbers of standard deviation `rho`. To second order the value is
      `rho^2 tr(THT) / 2`. (The average case of Andriushchenko et al., 2023, arXiv 2302.07011.)
    * "uniform": numbers between `-rho` and `rho`. The value is `rho^2 tr(THT) / 6`.
    * "sphere": a point on the sphere of radius `rho`. The value is `rho^2 tr(THT) / (2 P)`. These
      perturbations have the length of those of `worst_case_sharpness`.

    Points come in pairs, `w + e` and `w - e`. The effect of the gradient, which is most of the
    spread at small radii, cancels in the value and is reported separately (`slope_part`). Papers
    that take the mean of `|L(w + e) - L(w)| / rho` over gaussian `e` of length `rho` measure that
    effect: to first order it is `sqrt(2 / pi) |g| / sqrt(P)` (here `absolute / rho`, with `rho`
    divided by `sqrt(P)`).

    Everything is computed in at least float32. If the loss draws random numbers or augments its
    batch, the difference is noise: hold both fixed.

    Cost: two values of the loss per pair. Memory: three copies of the parameters, and the
    activations of one microbatch.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.
        key: for the draws.
        rho: >= 0; may be traced, so that radii can be swept by `jax.vmap` or without another
            compilation. 0 gives exactly 0.
        noise: "gaussian", "uniform" or "sphere".
        scaling: rule for `T`. A weight with `T = 0` stays where it is and does not count in P.
        relative_error: stop when the standard error is within this share of the value, after at
            least 16 pairs; None draws `max_pairs`.
        max_pairs: largest number of pairs. `status` is `NOT_CONVERGED` if `relative_error` is not
            met by then, or cannot be met because of the rounding of the losses.

    Raises:
        UserError: an argument does not fit.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * jnp.sum(w**2)
    >>> key, w = jax.random.key(0), jnp.ones(1000)
    >>> found = average_sharpness(loss, w, jnp.ones(4), key=key, rho=2.0, noise="sphere")
    >>> print(f"{found.value:.3f}")  # rho^2, on the sphere
    4.000
    """
    caller = "average_sharpness"
    check_rho(caller, rho)
    perturbation.check_scaling(caller, scaling)
    if noise not in get_args(Noise):
        raise unknown("noise", noise, get_args(Noise))
    batch = checks.as_batch(caller, batch)
    limit = whole_number(caller, "max_pairs", max_pairs)
    key, accuracy = check_key(caller, key), ask(caller, relative_error, None)
    loss = checks.check_problem(caller, loss, params, batch, microbatch_size, "value")
    perturbation.check_units(caller, scaling, params)
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    params = jax.tree.map(jnp.asarray, params)
    operands = loss, params, batch, jnp.asarray(rho, objective.scalar_type(params)), key
    if loops.is_traced(operands):
        operands = algebra.without_derivative(operands)
    state, _ = loops.iterate(
        Pair(noise, closures.rule(scaling), microbatch_size),
        start(*operands[:4], microbatch_size, rounding(params), accuracy),
        operands,
        max_steps=limit,
        until=_is_reached if accuracy.is_asked else is_not_finite,
    )
    return mark(_finish(accuracy.is_asked, state, operands[3]), checked)


class Sums(NamedTuple):
    """State of the sum over pairs.

    Attributes:
        loss: at the parameters.
        floor: rounding of a difference of losses.
        mean, spread: of the even parts, by Welford's recurrence (1962).
        odd, absolute, largest, length: a sum of squares, a sum, a maximum, a sum of squares.
        lost: the largest share of weights that were perturbed without effect.
    """

    loss: jax.Array
    floor: jax.Array
    mean: jax.Array
    spread: jax.Array
    odd: jax.Array
    absolute: jax.Array
    largest: jax.Array
    length: jax.Array
    lost: jax.Array
    count: jax.Array
    accuracy: Accuracy


@dataclasses.dataclass(frozen=True)
class Pair:
    """Evaluates one pair of points, for `sharpjax.loops.iterate`."""

    noise: Noise
    scaling: perturbation.Scaling
    microbatch_size: int | None

    def __call__(self, sums: Sums, operands: Any) -> Sums:
        loss, params, batch, rho, key = operands
        wide = tree.widen(params)
        scale = self.scaling(wide)
        unit = self._draw(jax.random.fold_in(key, sums.count), wide, scale)
        step = jax.tree.map(lambda t, u: t * (rho.astype(u.dtype) * u), scale, unit)

        def rise(sign):
            point = perturbation.perturb(wide, tree.scale(sign, step))
            return objective.value(loss, point, batch, self.microbatch_size) - sums.loss

        up, down = rise(1.0), rise(-1.0)
        even, odd, number = (up + down) / 2, (up - down) / 2, sums.count + 1
        off = even - sums.mean
        mean = sums.mean + off / number.astype(off.dtype)
        return Sums(
            loss=sums.loss,
            floor=sums.floor,
            mean=mean,
            spread=sums.spread + off * (even - mean),
            odd=sums.odd + jnp.square(odd),
            absolute=sums.absolute + (jnp.abs(up) + jnp.abs(down)) / 2,
            largest=jnp.maximum(sums.largest, jnp.maximum(up, down)),
            length=sums.length + tree.vdot(step, step),
            lost=jnp.maximum(sums.lost, perturbation.lost_fraction(wide, step)),
            count=number,
            accuracy=sums.accuracy,
        )

    def _draw(self, key, like, scale):
        if self.noise == "uniform":
            leaves, treedef = jax.tree.flatten(like)
            keys = jax.random.split(key, len(leaves))
            drawn = [
                jax.random.uniform(k, x.shape, x.dtype, -1, 1)
                for k, x in zip(keys, leaves, strict=True)
            ]
            return treedef.unflatten(drawn)
        normal = tree.random_normal(key, like)
        if self.noise == "gaussian":
            return normal
        moves = jax.tree.map(lambda t, u: jnp.where(t == 0, 0, u), scale, normal)
        size = tree.norm(moves)
        # If no weight moves (all are zero in units of their own size), the sphere is a point.
        return tree.scale(1 / jnp.where(size == 0, 1, size), moves)


def _is_reached(sums: Sums) -> jax.Array:
    within = standard_error(sums) <= sums.accuracy.allowed(jnp.abs(sums.mean))
    return (sums.count >= _LEAST) & within | is_not_finite(sums)


def is_not_finite(sums: Sums) -> jax.Array:
    return ~(jnp.isfinite(sums.mean) & jnp.isfinite(sums.loss))


def standard_error(sums: Sums) -> jax.Array:
    number = sums.count.astype(sums.mean.dtype)
    drawn = sums.spread / (number * jnp.maximum(number - 1, 1))
    lost = sums.lost.astype(sums.mean.dtype) * sums.mean
    return jnp.sqrt(drawn + jnp.square(lost) + jnp.square(sums.floor))


@functools.partial(jax.jit, static_argnums=(4, 5))
def start(loss, params, batch, rho, microbatch_size, digits, accuracy) -> Sums:
    value = objective.value(loss, tree.widen(params), batch, microbatch_size)
    zero = jnp.zeros_like(value)
    return Sums(
        loss=value,
        # Losses at the same point may differ by rounding if they are compiled separately.
        floor=jnp.where(rho == 0, 0, digits * jnp.abs(value)).astype(value.dtype),
        mean=zero,
        spread=zero,
        odd=zero,
        absolute=zero,
        largest=jnp.full_like(zero, -jnp.inf),
        length=zero,
        lost=jnp.zeros((), jnp.float32),
        count=jnp.int32(0),
        accuracy=accuracy.fill(zero),
    )


@tells_unknown
@functools.partial(jax.jit, static_argnums=0)
def _finish(is_asked: bool, sums: Sums, rho) -> AverageSharpness:
    number = sums.count.astype(sums.mean.dtype)
    error = jnp.where(sums.count > 1, standard_error(sums), jnp.nan)
    moved = jnp.where(rho == 0, 0, jnp.where(rho > 0, 1, jnp.nan)).astype(number.dtype)
    finite = ~is_not_finite(sums) & jnp.isfinite(moved)
    met = finite if not is_asked else _is_reached(sums) & finite
    status = jnp.where(sums.lost > LOST, Status.BREAKDOWN, how_it_ended(met, finite))
    return AverageSharpness(
        value=jnp.where(jnp.isfinite(sums.loss), sums.mean * moved, jnp.nan),
        standard_error=error * moved,
        slope_part=jnp.sqrt(sums.odd / number) * moved,
        absolute=sums.absolute / number * moved,
        largest=sums.largest * moved,
        loss=sums.loss,
        length=jnp.sqrt(sums.length / number),
        lost_fraction=sums.lost,
        num_pairs=sums.count,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )
