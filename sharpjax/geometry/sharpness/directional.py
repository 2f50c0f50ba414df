"""Curvature along one direction: the gradient, or an optimiser's update."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import perturbation, tree
from sharpjax.estimate import Estimate
from sharpjax.geometry.loss import checks, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.loss.differentiable import How
from sharpjax.geometry.operators import hessian
from sharpjax.geometry.status import Status, if_finite, tells_unknown

Params = Any

_ROUNDINGS = 16  # a sum within this many roundings of zero is not known


class DirectionalCurvature(NamedTuple):
    """Curvature of the loss along its own gradient `g`.

    Attributes:
        value: `g'Hg / |g|^2`; 0 if the gradient is zero.
        gradient_norm: `|g|`.
        loss: `L(w)`.
        status: `Status`, int32.
    """

    value: jax.Array
    gradient_norm: jax.Array
    loss: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`directional_curvature`, `gradient_norm` and `loss`, all exact."""
        names = ("directional_curvature", "gradient_norm", "loss")
        return dict(zip(names, map(_exact, self[:3]), strict=True))


class DirectionalSharpness(NamedTuple):
    """How sharp the loss is along an update `d`, in units of the step.

    Attributes:
        value: `d'Hd / -g'd`; NaN if the slope cannot be told from zero.
        slope: `g'd`, negative if the update descends.
        curvature: `d'Hd`.
        loss: `L(w)`.
        status: `Status`, int32; `BREAKDOWN` if `|g'd|` is within rounding, 16 units in the last
            place of `|g| |d|`.
    """

    value: jax.Array
    slope: jax.Array
    curvature: jax.Array
    loss: jax.Array
    status: jax.Array

    def estimates(self) -> dict[str, Estimate]:
        """`directional_sharpness`, which does not depend on sampling: its error is 0."""
        return {"directional_sharpness": _exact(self.value)}


def directional_curvature(
    loss: Any, params: Params, batch: Any, *, microbatch_size: int | None = None
) -> DirectionalCurvature:
    """`g'Hg / |g|^2`: the curvature of the loss along its own gradient `g`.

    This is the curvature that a step of gradient descent meets (Cohen et al., 2021, arXiv
    2103.00065). To second order `sam_sharpness` is `rho |g| + rho^2 g'Hg / (2 |g|^2)`. The gradient
    is normalised before the product, so it may be as small or as large as its type can hold. If it
    is exactly zero it has no direction, and the value is 0. Cost: one gradient and one Hessian
    product.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.

    Raises:
        UserError: an argument does not fit.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w[0] ** 2 + 3 * w[1] ** 2)
    >>> found = directional_curvature(loss, jnp.array([0.0, 1.0]), jnp.ones(4))
    >>> print(found.value, found.gradient_norm, found.loss)
    6.0 6.0 3.0
    """
    caller = "directional_curvature"
    batch = checks.as_batch(caller, batch)
    loss, how = checks.check_curvature(caller, loss, params, batch, microbatch_size)
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    return mark(_directional_curvature(loss, params, batch, how, microbatch_size), checked)


def directional_sharpness(
    loss: Any,
    params: Params,
    batch: Any,
    direction: Params,
    *,
    microbatch_size: int | None = None,
) -> DirectionalSharpness:
    """`d'Hd / -g'd`: whether the next update `d` is at the edge of stability.

    The direction is **added** to the parameters, as optax updates are. A direction that descends
    thus has `g'd < 0`, and its value is positive if the loss curves upwards along it. To second
    order, the whole update raises the loss if the value is above 2, and lowers it if it is below.
    For gradient descent, `d = -lr g`, the value is `lr g'Hg / |g|^2`. An update that ascends has
    the opposite sign. For a quadratic loss `critical_sharpness` tends to this value (arXiv
    2601.16979).

    Cost: one gradient and one Hessian product, of the normalised update.

    Args:
        loss, params, batch, microbatch_size: as in `hessian`.
        direction: a tree like the parameters, such as an optax update.

    Raises:
        UserError: an argument does not fit.

    >>> import optax
    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w[0] ** 2 + 3 * w[1] ** 2)
    >>> w, batch = jnp.array([0.0, 1.0]), jnp.ones(4)
    >>> optimizer = optax.sgd(0.5)
    >>> update, _ = optimizer.update(jax.grad(loss)(w, batch), optimizer.init(w))
    >>> print(directional_sharpness(loss, w, batch, update).value)  # lr * curvature
    3.0
    """
    caller = "directional_sharpness"
    batch = checks.as_batch(caller, batch)
    direction = check_direction(caller, "direction", direction, params)
    loss, how = checks.check_curvature(caller, loss, params, batch, microbatch_size)
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    return mark(
        _directional_sharpness(loss, params, batch, direction, how, microbatch_size), checked
    )


class Along(NamedTuple):
    """Slope and curvature along a direction, from one gradient and one product.

    Attributes:
        loss, gradient: at the parameters.
        unit: the direction scaled to length 1; zero if the direction is zero.
        curvature: `u'Hu`.
    """

    loss: jax.Array
    gradient: Params
    unit: Params
    curvature: jax.Array


def along(
    loss: Any,
    params: Params,
    batch: Any,
    how: How,
    microbatch_size: int | None,
    direction: Params | None = None,
) -> Along:
    """Curvature along a direction; None: along the gradient. For use inside a step or a jit. The
    parameters must be in at least float32."""
    value, gradient = objective.value_and_grad(loss, params, batch, microbatch_size)
    towards = gradient if direction is None else direction
    unit = perturbation.ascent(towards, params, rho=1.0)
    operator = hessian.Hessian(loss, params, batch, microbatch_size, how=how)
    product = hessian.multiply(operator, unit)
    return Along(value, gradient, unit, tree.vdot(unit, product))


def check_direction(caller: str, argument: str, direction: Params, params: Params) -> Params:
    """A direction in the space of the parameters, in at least float32.

    Raises:
        UserError: names `caller`, `argument` and the leaf that differs.
    """
    tree.check_floating(caller, params)
    tree.check_floating(caller, direction, argument)
    wide = tree.widen(jax.tree.map(jnp.asarray, direction))
    tree.check_same_structure(caller, argument, wide, jax.eval_shape(tree.widen, params))
    return wide


def rounding(params: Params) -> float:
    """The rounding error of a sum over parameters of these types, relative to its terms.

    >>> f"{rounding(jnp.ones(2)):.1e}"
    '1.9e-06'
    """
    wide = jax.eval_shape(tree.widen, params)
    return _ROUNDINGS * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(wide))


@functools.partial(jax.jit, static_argnums=4)
def _directional_curvature(loss, params, batch, how, microbatch_size) -> DirectionalCurvature:
    found = along(loss, tree.widen(params), batch, how, microbatch_size)
    return DirectionalCurvature(
        value=found.curvature,
        gradient_norm=tree.vdot(found.unit, found.gradient),  # no square that could overflow
        loss=found.loss,
        status=if_finite(jnp.isfinite(found.loss) & jnp.isfinite(found.curvature)),
    )


@tells_unknown
@functools.partial(jax.jit, static_argnums=5)
def _directional_sharpness(
    loss, params, batch, direction, how, microbatch_size
) -> DirectionalSharpness:
    found = along(loss, tree.widen(params), batch, how, microbatch_size, direction)
    steepest = perturbation.ascent(found.gradient, found.gradient, rho=1.0)
    size, gradient_norm = tree.vdot(found.unit, direction), tree.vdot(steepest, found.gradient)
    slope = tree.vdot(found.unit, found.gradient)
    known = jnp.abs(slope) > rounding(params) * gradient_norm
    curvature = size * (size * found.curvature)
    finite = jnp.all(jnp.isfinite(jnp.stack([found.loss, curvature, size, slope, size * slope])))
    status = jnp.where(known, Status.OK, Status.BREAKDOWN)
    return DirectionalSharpness(
        value=jnp.where(known, size * (found.curvature / -jnp.where(known, slope, 1)), jnp.nan),
        slope=size * slope,
        curvature=curvature,
        loss=found.loss,
        status=jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )


def _exact(value) -> Estimate:
    return Estimate(value, jnp.zeros_like(value), jnp.ones(jnp.shape(value), jnp.int32))
