"""Axes of pictures of a landscape: random directions in units of the weights, and planes through
points."""

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
    """A plane through parameters; `plane_through` makes it.

    Attributes:
        directions: two trees like the parameters, of length 1 and orthogonal: what `landscape`
            takes.
        coordinates: [points, 2], where the points are in it, in numpy's float64.
        explained: [2], shares of the squared distances to the centre that lie along each.
    """

    directions: tuple[Params, Params]
    coordinates: np.ndarray
    explained: np.ndarray


def random_direction(key: jax.Array, params: Params, *, per: Per = "filter") -> Params:
    """A random direction in units of the weights (Li et al., 2018, arXiv 1712.09913).

    Normal numbers, of which each filter is brought to the length of that filter of the parameters.
    A filter is a slice of a kernel along its last axis, as in Flax. Leaves of fewer than two axes
    (biases, normalisation) stay where they are, as in the paper's pictures.

    Args:
        key: for the draw.
        params: pytree of floating arrays.
        per: "filter"; "layer", whole kernels brought to the length of theirs; or, of all leaves,
            "element", every weight by its own size, up or down; "model", all weights together
            brought to the length of the parameters; "none", normal numbers as they are.

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
    """How far `random_direction` moves each weight: `T`, the root of the mean of `d^2`.

    Entries of `d` are uncorrelated, so that `E d'Hd = tr(T H T)`: the mean of all pictures along
    random directions is, to second order, `L + x^2 / 2 tr(T H T)`, the average-case sharpness in
    units of filters. Take the trace of `congruence(hessian(...), direction_units(params))`.

    `T = |w_f|_2 / sqrt(n_f)` of a filter of n_f weights, alike of a layer and of the model; `|w|`
    of an element; 1 for "none"; 0 for leaves that stay where they are.

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
    """The plane through `center` that is nearest to all points: of three points, theirs.

    Of the checkpoints of a training, last one last, it is the plane of its trajectory (Li et al.,
    2018, arXiv 1712.09913): principal axes of the ways from the centre, which are not centred, so
    that the centre lies in the plane. `explained` says how much of the trajectory the picture
    shows. Of any walk in many dimensions, a random one too, two axes explain most (Antognini and
    Sohl-Dickstein, 2018, arXiv 1806.08805).

        plane = plane_through(checkpoints)
        found = landscape(loss, checkpoints[-1], batch, plane.directions, x=x, y=y)
        plots.landscape({"sgd": found}, label="loss", paths={"sgd": plane.coordinates})

    Cost: P x T^2 multiplications in float64 on the host, of T points. Memory: T copies of the
    largest leaf.

    Args:
        points: trees like each other, two beside the centre at least.
        center: the point (0, 0) of the plane; None: the last of the points.

    Raises:
        UserError: an argument does not fit; inside of jit; points that are not finite, or that lie
            on one line, as far as rounding tells.

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
    # Rounding leaves some n eps of the largest: half the digits of a way are told from a line.
    if len(points) < 2 or squares[-2] <= 1e-12 * squares[-1]:
        raise UserError(
            f"{caller}: the center and the points, {len(points)} of them, lie on one line. Give "
            f"more that differ; a line needs no plane: landscape(loss, params, batch, way, x=x)."
        )
    first = (weights[:, :-3:-1] / np.sqrt(squares[:-3:-1])).T
    axes = [first @ ways for ways in map(_ways, leaves, origin)]
    turn = np.linalg.cholesky(
        np.sum([a @ a.T for a in axes], axis=0)
    )  # what rounding left of the second one
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
    """[points, size of the leaf], from the centre to each."""
    flat = np.stack([np.ravel(np.asarray(x, np.float64)) for x in leaves])
    return flat - np.ravel(np.asarray(start, np.float64))


def _like(flat: np.ndarray, leaf: Any) -> jax.Array:
    wide = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32
    return jnp.asarray(flat.reshape(np.shape(leaf)), wide)


def check_per(caller: str, params: Params, per: Per) -> Params:
    """The parameters in float32 at least, where there is something to move.

    Raises:
        UserError: names `caller`; an unknown unit, or no leaf that it would move.
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
    """A direction of parameters that `check_per` has seen."""
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
    """Of each filter, or of the whole leaf; it broadcasts against the leaf.

    Numbers are divided by the largest first: their squares may leave the range of the type.
    """
    axes = tuple(range(x.ndim - (per == "filter")))
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum(jnp.square(x / unit), axis=axes, keepdims=True))


def _length_of_all(params: Params) -> jax.Array:
    lengths = [_length(leaf, "layer").ravel() for leaf in jax.tree.leaves(params)]
    return _length(jnp.concatenate(lengths), "layer")[0]
