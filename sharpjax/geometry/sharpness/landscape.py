"""The loss on lines and planes through the parameters: pictures of the loss landscape.

A picture shows one draw of its axes. `slices` draws many and reports how far they differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.geometry.loss import checks, cutting, objective
from sharpjax.geometry.loss.assumptions import mark
from sharpjax.geometry.operators.arguments import check_key
from sharpjax.geometry.sharpness.directional import check_direction, rounding
from sharpjax.geometry.sharpness.directions import Per, check_per, draw
from sharpjax.geometry.status import Status, if_finite, tells_unknown

Params = Any


class Landscape(NamedTuple):
    """The loss on a grid.

    Attributes:
        values: [len(x)] or [len(x), len(y)], of the loss at `w + x d_1 + y d_2`. NaN or infinite
            where the loss is.
        x, y: coordinates, in units of the directions; `y` is None on a line.
        lengths: [1] or [2], `|d|` of each direction.
        cosine: between the two directions as they were given; None on a line.
        status: `Status`, int32; `NON_FINITE` if a value is not finite; `BREAKDOWN` if directions to
            be made orthogonal are parallel up to rounding.
    """

    values: jax.Array
    x: jax.Array
    y: jax.Array | None
    lengths: jax.Array
    cosine: jax.Array | None
    status: jax.Array


class Slices(NamedTuple):
    """The loss along many random directions.

    Attributes:
        values: [directions, len(x)].
        x: coordinates, in units of the directions.
        mean, standard_error: [len(x)], over directions; the error is NaN for one direction.
        status: `Status`, int32; `NON_FINITE` if a value is not finite.
    """

    values: jax.Array
    x: jax.Array
    mean: jax.Array
    standard_error: jax.Array
    status: jax.Array


class Barrier(NamedTuple):
    """The loss between two points.

    Attributes:
        value: the largest rise of the loss above the straight line between the two losses, over the
            points tried; 0 if it never rises above.
        at: the position of that point between the two solutions, from 0 to 1.
        values: [points], the losses along the line, both ends included.
        status: `Status`, int32; `NON_FINITE` if a value is not finite.
    """

    value: jax.Array
    at: jax.Array
    values: jax.Array
    status: jax.Array


def landscape(
    loss: Any,
    params: Params,
    batch: Any,
    directions: Params | Sequence[Params],
    *,
    x: Any,
    y: Any = None,
    orthogonal: bool = False,
    microbatch_size: int | None = None,
) -> Landscape:
    """The loss at `w + x d_1`, or at `w + x d_1 + y d_2`, on a grid.

    Any directions are allowed: `random_direction`; the gradient; the difference to another
    solution; the plane of three solutions or of a trajectory, `plane_through`; a moment in an
    optimiser's state, `optax.tree.get(state, "mu")`; an eigenvector,
    `tree.index(pairs.vectors, 0)`, along which the curve is `L + x g'v + x^2 lambda / 2` to second
    order. They are used as they are, without normalisation: `lengths` and `cosine` give the scale
    of the axes and their angle.

    The loss is any function of parameters and batch, and need not be differentiable: an accuracy;
    `lambda w, batch: tree.norm(jax.grad(loss)(w, batch))`; the largest eigenvalue of the Hessian
    there. BatchNorm in evaluation mode uses the statistics of the centre, which do not fit weights
    far from it: docs/sharpness.md has losses that recompute them.

    Cost: one value of the loss for each point, one program for all. Memory: two copies of the
    parameters, and the activations of one microbatch.

    Args:
        loss: `loss(params, batch) -> scalar`; any measure that is a mean over the examples.
        params, batch, microbatch_size: as in `hessian`.
        directions: one tree like the parameters for a line, two for a plane.
        x, y: coordinates, increasing or not; give `y` only with two directions.
        orthogonal: use the part of `d_2` orthogonal to `d_1`, rescaled to the length of `d_2`.

    Raises:
        UserError: an argument does not fit.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * w @ w
    >>> axes = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
    >>> found = landscape(loss, jnp.zeros(2), jnp.ones(4), axes, x=[-1.0, 0.0, 1.0], y=[0.0, 1.0])
    >>> found.values.tolist()
    [[1.0, 5.0], [0.0, 4.0], [1.0, 5.0]]
    """
    caller = "landscape"
    loss, params, batch, checked = _check(caller, loss, params, batch, microbatch_size)
    axes = _as_axes(caller, directions, params, plane=y is not None)
    if orthogonal and y is None:
        raise UserError(f"{caller}: orthogonal=True is for two directions; give y, too.")
    xs = _coordinates(caller, "x", x, params)
    ys = None if y is None else _coordinates(caller, "y", y, params)
    points = jnp.expand_dims(xs, 1)
    if ys is not None:
        points = jnp.stack([g.reshape(-1) for g in jnp.meshgrid(xs, ys, indexing="ij")], 1)
    lengths, cosine, across, is_plane = _measure(axes)
    axes = (axes[0], across) if orthogonal else axes
    values = _evaluate(loss, params, batch, axes, points, microbatch_size)
    status = if_finite(jnp.all(jnp.isfinite(values)))
    if orthogonal:
        status = jnp.where(is_plane, status, jnp.int32(Status.BREAKDOWN))
    found = Landscape(
        values=values if ys is None else values.reshape(len(xs), len(ys)),
        x=xs,
        y=ys,
        lengths=lengths,
        cosine=cosine,
        status=status,
    )
    return mark(found, checked)


def slices(
    loss: Any,
    params: Params,
    batch: Any,
    *,
    key: jax.Array,
    x: Any,
    num_directions: int = 10,
    per: Per = "filter",
    microbatch_size: int | None = None,
) -> Slices:
    """The loss along several random directions, with their mean: a landscape and its spread.

    To second order the mean is `L + x^2 / 2 sum_f |w_f|^2 / n_f tr H_ff` over the filters f, of n_f
    weights: average-case sharpness in units of filters. The well-known picture is one draw of it.

    Cost: one value of the loss for each direction and point, one program for all.

    Args:
        loss, params, batch, x, microbatch_size: as in `landscape`.
        key, per: as in `random_direction`.
        num_directions: how many are drawn.

    Raises:
        UserError: an argument does not fit.

    >>> def loss(params, batch):
    ...     return jnp.mean(batch) * jnp.sum(params["kernel"] ** 2)
    >>> params = {"kernel": jnp.ones((4, 3))}
    >>> found = slices(loss, params, jnp.ones(2), key=jax.random.key(0), x=[0.0, 1.0])
    >>> found.values.shape, float(found.values[0, 0])
    ((10, 2), 12.0)
    """
    caller = "slices"
    key, count = check_key(caller, key), whole_number(caller, "num_directions", num_directions)
    loss, params, batch, checked = _check(caller, loss, params, batch, microbatch_size)
    check_per(caller, params, per)
    xs = _coordinates(caller, "x", x, params)
    rows = []
    for one in jax.random.split(key, count):
        axis = (draw(one, params, per),)
        rows.append(_evaluate(loss, params, batch, axis, jnp.expand_dims(xs, 1), microbatch_size))
    values = jnp.stack(rows)
    spread = jnp.std(values, 0, ddof=1) if count > 1 else jnp.full_like(values[0], jnp.nan)
    found = Slices(
        values=values,
        x=xs,
        mean=jnp.mean(values, 0),
        standard_error=spread / count**0.5,
        status=if_finite(jnp.all(jnp.isfinite(values))),
    )
    return mark(found, checked)


def barrier(
    loss: Any,
    params: Params,
    other: Params,
    batch: Any,
    *,
    num_points: int = 25,
    microbatch_size: int | None = None,
) -> Barrier:
    """How high the loss rises on the straight line between two solutions (Frankle et al., 2020,
    arXiv 1912.05671).

    `max_t L((1 - t) a + t b) - ((1 - t) L(a) + t L(b))` over `num_points` points: a lower bound of
    the true maximum. Even two networks that differ only in the order of their units have a barrier:
    align them first.

    Cost: `num_points` values of the loss, one program for all.

    Args:
        loss, params, batch, microbatch_size: as in `landscape`.
        other: the other solution, a tree like the parameters.
        num_points: number of points, both ends included, at least 3.

    Raises:
        UserError: an argument does not fit.

    >>> def loss(w, batch):
    ...     return jnp.mean(batch) * (w**2 - 1) ** 2
    >>> found = barrier(loss, jnp.float32(-1), jnp.float32(1), jnp.ones(2))
    >>> print(found.value, found.at)
    1.0 0.5
    """
    caller = "barrier"
    if whole_number(caller, "num_points", num_points) < 3:
        raise UserError(f"{caller}: num_points={num_points}; give 3 or more.")
    loss, params, batch, checked = _check(caller, loss, params, batch, microbatch_size)
    way = tree.add_scaled(check_direction(caller, "other", other, params), -1.0, params)
    t = _coordinates(caller, "t", np.linspace(0, 1, num_points), params)
    values = _evaluate(loss, params, batch, (way,), jnp.expand_dims(t, 1), microbatch_size)
    above = values - ((1 - t) * values[0] + t * values[-1])
    place = jnp.argmax(above)
    finite = jnp.all(jnp.isfinite(values))
    found = Barrier(jnp.maximum(above[place], 0), t[place], values, if_finite(finite))
    return mark(found, checked)


def _check(caller, loss, params, batch, microbatch_size):
    """The checked problem, with parameters in at least float32, and the result of `check_cut`."""
    batch = checks.as_batch(caller, batch)
    loss = checks.check_problem(caller, loss, params, batch, microbatch_size, "value")
    checked = cutting.check_cut(caller, loss, params, batch, microbatch_size)
    return loss, jax.tree.map(jnp.asarray, tree.widen(params)), batch, checked


class _Values(NamedTuple):
    values: jax.Array
    index: jax.Array


@dataclasses.dataclass(frozen=True)
class _Point:
    """One point of a grid, for `sharpjax.loops.iterate`."""

    microbatch_size: int | None

    def __call__(self, carry: _Values, operands: Any) -> _Values:
        loss, params, batch, axes, points = operands
        point = params
        for i, axis in enumerate(axes):
            point = tree.add_scaled(point, points[carry.index, i], axis)
        value = objective.value(loss, point, batch, self.microbatch_size)
        return _Values(carry.values.at[carry.index].set(value), carry.index + 1)


def _evaluate(loss, params, batch, axes, points, microbatch_size) -> jax.Array:
    start = _Values(jnp.zeros(len(points), objective.scalar_type(params)), jnp.int32(0))
    operands = loss, params, batch, axes, points
    carry, _ = loops.iterate(_Point(microbatch_size), start, operands, max_steps=len(points))
    return carry.values


@tells_unknown
@jax.jit
def _measure(axes):
    """Lengths and cosine of the directions, the second one made orthogonal to the first, and
    whether the two span a plane."""
    lengths = jnp.stack([tree.norm(axis) for axis in axes])
    if len(axes) == 1:
        return lengths, None, None, True
    product = jnp.where(jnp.all(lengths > 0), jnp.prod(lengths), 1)
    cosine = tree.vdot(*axes) / product
    unit = tree.scale(1 / jnp.where(lengths[0] > 0, lengths[0], 1), axes[0])
    across = axes[1]
    for _ in range(2):  # the second time removes what rounding left
        across = tree.add_scaled(across, -tree.vdot(across, unit), unit)
    left = tree.norm(across)
    is_plane = (left > rounding(axes[1]) * lengths[1]) & (lengths[0] > 0)
    factor = jnp.where(is_plane, lengths[1] / jnp.where(left > 0, left, 1), jnp.nan)
    return lengths, cosine, tree.scale(factor, across), is_plane


def _as_axes(caller, directions, params, *, plane: bool) -> tuple[Params, ...]:
    one = jax.tree.structure(directions) == jax.tree.structure(params)
    if not one and not isinstance(directions, list | tuple):
        check_direction(caller, "directions", directions, params)  # says how it differs
    axes = (directions,) if one else tuple(directions)
    if len(axes) != 1 + plane:
        raise UserError(
            f"{caller}: got {len(axes)} directions; give one with x, or two with x and y."
        )
    return tuple(
        check_direction(caller, f"directions[{i}]", axis, params) for i, axis in enumerate(axes)
    )


def _coordinates(caller, name, given, params) -> jax.Array:
    try:
        found = jnp.asarray(given)
    except (TypeError, ValueError, OverflowError):
        found = jnp.zeros(0)
    if found.ndim != 1 or not found.size or jnp.iscomplexobj(found):
        raise UserError(f"{caller}: {name} must be a list of numbers, got {given!r}.")
    found = found.astype(objective.scalar_type(params))
    return found
