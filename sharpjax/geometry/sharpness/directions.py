"""Axes for pictures of a loss landscape: random directions in units of the weights, and planes
through points."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sharpjax import tree
from sharpjax.errors import UserError, unknown
from sharpjax.geometry.operators.arguments import check_key

Params = Any
Per = Literal["element", "filter", "layer", "model", "none"]

_OF_KERNELS = ("filter", "layer")


class Plane(NamedTuple):
    """A plane through parameters, from `plane_through`.

    Attributes:
        directions: two orthogonal trees like the parameters, of length 1, as `landscape` takes
            them.
        coordinates: [points, 2], the coordinates of the points in the plane, in numpy's float64.
        explained: [2], share of the squared distances to the centre that lies along each direction.
    """

    directions: tuple[Params, Params]
    coordinates: np.ndarray
    explained: np.ndarray


def random_direction(key: jax.Array, params: Params, *, per: Per = "filter") -> Params:
    """A random direction in units of the weights (Li et al., 2018, arXiv 1712.09913).

    The direction consists of normal numbers. Each of its filters is rescaled to the norm of the
    same filter of the parameters. A filter is a slice of a kernel along its last axis, as in Flax.
    Leaves with fewer than two axes (biases, normalisation) stay where they are, as in the paper's
    pictures.

    Args:
        key: for the draw.
        params: pytree of floating arrays.
        per: "filter"; or "layer": each whole kernel is rescaled to the norm of that of the
            parameters. The others move all leaves. "element": every weight moves by its own size,
            up or down. "model": all weights together are rescaled to the norm of the parameters.
            "none": normal numbers as they are.

    Raises:
        UserError: an argument does not fit.

    >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
    >>> found = random_direction(jax.random.key(0), params)
    >>> jnp.linalg.norm(found["kernel"], axis=0).round(4).tolist(), found["bias"].tolist()
    ([5.0, 2.0], [0.0, 0.0])
    """
    caller = "random_direction"
    key = check_key(caller, key)
    return draw(key, check_per(caller, params, per), per)


def direction_units(params: Params, *, per: Per = "filter") -> Params:
    """How far `random_direction` moves each weight: `T`, the root mean square of `d`.

    Entries of `d` are uncorrelated, so `E d'Hd = tr(T H T)`. To second order, the mean of all
    pictures along random directions is therefore `L + x^2 / 2 tr(T H T)`, the average-case
    sharpness in units of filters. To compute it, take the trace of
    `congruence(hessian(...), direction_units(params))`.

    `T` is `|w_f|_2 / sqrt(n_f)` for a filter of n_f weights, and likewise for a layer or the model;
    `|w|` for an element; 1 for "none"; and 0 for leaves that stay where they are.

    Args:
        params, per: as in `random_direction`.

    Raises:
        UserError: an argument does not fit.

    >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
    >>> units = direction_units(params)
    >>> (units["kernel"] ** 2 * 2).round(4).tolist(), units["bias"].tolist()
    ([[25.0, 4.0], [25.0, 4.0]], [0.0, 0.0])
    """
    params = check_per("direction_units", params, per)
    if per == "none":
        return jax.tree.map(jnp.ones_like, params)
    if per == "element":
        return jax.tree.map(jnp.abs, params)
    if per == "model":
        root = _length_of_all(params) / np.sqrt(tree.size(params))
        return jax.tree.map(lambda w: jnp.full_like(w, root), params)

    def leaf(w):
        if w.ndim < 2:
            return jnp.zeros_like(w)
        count = math.prod(w.shape[: w.ndim - (per == "filter")])
        return jnp.broadcast_to(_length(w, per) / np.sqrt(count), w.shape)

    return jax.tree.map(leaf, params)


def plane_through(points: Sequence[Params], *, center: Params | None = None) -> Plane:
    """The plane through `center` that is nearest to all points. If there are two points besides the
    centre, both lie in it.

    For the checkpoints of a training run, with the last one last, it is the plane of the trajectory
    (Li et al., 2018, arXiv 1712.09913). Its axes are the principal axes of the differences from the
    centre. The differences are not centred, so the centre lies in the plane. `explained` says how
    much of the trajectory the picture shows. Two axes explain most of any walk in many dimensions,
    even a random one (Antognini and Sohl-Dickstein, 2018, arXiv 1806.08805).

        plane = plane_through(checkpoints)
        found = landscape(loss, checkpoints[-1], batch, plane.directions, x=x, y=y)
        plots.landscape({"sgd": found}, label="loss", paths={"sgd": plane.coordinates})

    Cost: P x T^2 multiplications in float64 on the host, for T points of P parameters. Memory: T
    copies of the largest leaf.

    Args:
        points: trees of the same structure, at least two besides the centre.
        center: the point (0, 0) of the plane; None: the last of the points.

    Raises:
        UserError: an argument does not fit; the call is inside jit; the points are not finite, or
            lie on one line up to rounding.

    >>> corners = [jnp.array([0.0, 3.0, 1.0]), jnp.array([1.0, 0.0, 1.0]), jnp.zeros(3)]
    >>> plane = plane_through(corners)
    >>> plane.coordinates.shape, float(plane.explained.sum().round(6))
    ((3, 2), 1.0)
    """
    caller = "plane_through"
    points = list(points) if isinstance(points, Sequence) else [points]
    center = points[-1] if center is None and points else center
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((points, center))):
        raise UserError(f"{caller}: call it outside of jit, grad and vmap; it computes in numpy.")
    for point in [center, *points]:
        tree.check_floating(caller, point, "points")
        tree.check_same_structure(caller, "points", point, center, "center")
    origin, structure = jax.tree.flatten(center)
    leaves = list(zip(*map(jax.tree.leaves, points), strict=True))
    gram = np.sum([ways @ ways.T for ways in map(_ways, leaves, origin)], axis=0)
    if not np.isfinite(gram).all():
        raise UserError(f"{caller}: the points are not all finite.")
    squares, weights = np.linalg.eigh(gram)
    # Rounding leaves about n eps of the largest: a deviation of 1e-6 can be told from a line.
    if len(points) < 2 or squares[-2] <= 1e-12 * squares[-1]:
        raise UserError(
            f"{caller}: the center and the points, {len(points)} of them, lie on one line. Give "
            f"more that differ; a line needs no plane: landscape(loss, params, batch, way, x=x)."
        )
    first = (weights[:, :-3:-1] / np.sqrt(squares[:-3:-1])).T
    axes = [first @ ways for ways in map(_ways, leaves, origin)]
    turn = np.linalg.cholesky(
        np.sum([a @ a.T for a in axes], axis=0)
    )  # corrects what rounding left of the second axis
    axes = [np.linalg.solve(turn, a) for a in axes]
    every = zip(map(_ways, leaves, origin), axes, strict=True)
    places = np.sum([ways @ a.T for ways, a in every], axis=0)
    signs = np.sign(places[np.argmax(np.abs(places), axis=0), [0, 1]])  # the farthest: positive
    one, other = (
        jax.tree.unflatten(
            structure, [_like(a[k] * signs[k], w) for a, w in zip(axes, origin, strict=True)]
        )
        for k in (0, 1)
    )
    explained = np.sum(places**2, axis=0) / np.trace(gram)
    return Plane((one, other), places * signs, explained)


def _ways(leaves: Sequence[Any], start: Any) -> np.ndarray:
    """[points, size of the leaf], the difference of each point from the centre."""
    flat = np.stack([np.ravel(np.asarray(x, np.float64)) for x in leaves])
    return flat - np.ravel(np.asarray(start, np.float64))


def _like(flat: np.ndarray, leaf: Any) -> jax.Array:
    wide = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32
    return jnp.asarray(flat.reshape(np.shape(leaf)), wide)


def check_per(caller: str, params: Params, per: Per) -> Params:
    """The parameters in at least float32, after a check that `per` moves some of them.

    Raises:
        UserError: `per` is unknown or moves no leaf. The message names `caller`.
    """
    tree.check_floating(caller, params)
    if per not in get_args(Per):
        raise unknown("per", per, get_args(Per))
    params = jax.tree.map(jnp.asarray, tree.widen(params))
    if per in _OF_KERNELS and all(leaf.ndim < 2 for leaf in jax.tree.leaves(params)):
        raise UserError(
            f"{caller}: per={per!r} moves leaves of two axes or more, and there are none. Give the "
            f"parameters as kernels, or per='none'."
        )
    return params


def draw(key: jax.Array, params: Params, per: Per) -> Params:
    """A random direction for parameters that `check_per` returned."""
    normal = tree.random_normal(key, params)
    if per == "none":
        return normal
    if per == "element":
        return jax.tree.map(lambda d, w: jnp.sign(d) * jnp.abs(w), normal, params)
    if per == "model":
        return tree.scale(_length_of_all(params) / tree.norm(normal), normal)

    def leaf(d, w):
        if w.ndim < 2:
            return jnp.zeros_like(d)
        length = _length(d, per)
        return d * (_length(w, per) / jnp.where(length > 0, length, 1))

    return jax.tree.map(leaf, normal, params)


def _length(x: jax.Array, per: Per) -> jax.Array:
    """Norm of each filter, or of the whole leaf; it broadcasts against the leaf.

    Numbers are divided by the largest first, because their squares may overflow or underflow.
    """
    axes = tuple(range(x.ndim - (per == "filter")))
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum(jnp.square(x / unit), axis=axes, keepdims=True))


def _length_of_all(params: Params) -> jax.Array:
    lengths = [_length(leaf, "layer").ravel() for leaf in jax.tree.leaves(params)]
    return _length(jnp.concatenate(lengths), "layer")[0]
