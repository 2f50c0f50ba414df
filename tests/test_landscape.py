"""Lines, planes and barriers against polynomials in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from sharpjax import geometry, tree
from sharpjax.errors import UserError
from sharpjax.geometry import (
    Status,
    barrier,
    congruence,
    direction_units,
    hessian,
    landscape,
    plane_through,
    random_direction,
    slices,
    top_eigenpairs,
    trace,
)


def quadratic(matrix, slope, params, batch):
    w = jnp.concatenate([params["bias"], params["kernel"].reshape(-1)])
    return w @ matrix @ w / 2 + w @ slope + jnp.mean(batch)


def problem():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 9))
    matrix = jnp.asarray(matrix + matrix.T)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 2))),
        "bias": jnp.asarray(rng.normal(size=3)),
    }
    return Partial(quadratic, matrix, jnp.asarray(rng.normal(size=9))), params, jnp.ones(6), matrix


def test_a_plane_of_a_quadratic(x64, key):
    loss, params, batch, matrix = problem()
    axes = [random_direction(k, params, per="none") for k in jax.random.split(key)]
    x, y = np.linspace(-2, 2, 5), np.linspace(-1, 3, 4)
    found = landscape(loss, params, batch, axes, x=x, y=y)
    flat = [jnp.concatenate([d["bias"], d["kernel"].reshape(-1)]) for d in axes]
    w = jnp.concatenate([params["bias"], params["kernel"].reshape(-1)])
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            point = w + a * flat[0] + b * flat[1]
            truth = point @ matrix @ point / 2 + point @ loss.args[1] + 1
            np.testing.assert_allclose(found.values[i, j], truth, rtol=1e-12)
    np.testing.assert_allclose(found.values[2], landscape(loss, params, batch, axes[1], x=y).values)
    np.testing.assert_allclose(found.lengths, [jnp.linalg.norm(d) for d in flat])
    np.testing.assert_allclose(found.cosine, flat[0] @ flat[1] / jnp.prod(found.lengths))
    cut = landscape(loss, params, batch, axes, x=x, y=y, microbatch_size=2)
    np.testing.assert_allclose(cut.values, found.values, rtol=1e-12)


def test_along_an_eigenvector(x64, key):
    loss, params, batch, _ = problem()
    pairs = top_eigenpairs(hessian(loss, params, batch), key=key, tol=1e-10)
    axis, x = tree.index(pairs.vectors, 0), jnp.linspace(-1, 1, 7)
    found = landscape(loss, params, batch, axis, x=x)
    slope = tree.vdot(jax.grad(loss)(params, batch), axis)
    truth = loss(params, batch) + x * slope + x**2 * pairs.values[0] / 2
    np.testing.assert_allclose(found.values, truth, rtol=1e-9)


@pytest.mark.parametrize("per", ["filter", "layer"])
def test_directions_have_the_lengths_of_the_weights(key, per):
    """Filters of Flax kernels are along their last axis, of convolutions, too."""
    params = {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 2, 5)), "bias": jnp.ones(5)},
        "dense": {"kernel": jax.random.normal(key, (5, 4)).at[:, 1].set(0)},
    }
    found = random_direction(jax.random.key(1), params, per=per)
    for layer in ("conv", "dense"):
        of = found[layer]["kernel"], params[layer]["kernel"]
        axes = tuple(range(of[0].ndim - (per == "filter")))
        lengths = (jnp.sqrt(jnp.sum(x**2, axes)) for x in of)
        np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert not found["conv"]["bias"].any()


def test_many_slices_have_the_mean_of_the_filters(x64, key):
    """`E d'Hd` is the sum of `|w_f|^2 / n_f tr H_ff`."""
    loss, params, batch, matrix = problem()
    found = slices(loss, params, batch, key=key, x=[-1.0, 0.0, 1.0], num_directions=400)
    blocks = np.diag(matrix)[3:].reshape(3, 2)
    lengths = np.sum(np.square(params["kernel"]), 0)
    truth = loss(params, batch) + np.sum(lengths / 3 * blocks.sum(0)) / 2
    even = (found.values[:, 0] + found.values[:, 2]) / 2
    error = np.std(even) / 20
    assert abs(np.mean(even) - truth) <= 5 * error
    np.testing.assert_allclose(found.values[:, 1], loss(params, batch))
    np.testing.assert_allclose(found.mean, jnp.mean(found.values, 0))


def double_well(w, batch):
    return jnp.mean(batch) * jnp.sum((w**2 - 1) ** 2)


def test_barriers(x64):
    a, b = jnp.array([1.0, 1.0]), jnp.array([-1.0, 1.0])
    found = barrier(double_well, a, b, jnp.ones(2))
    assert found.value == 1 and found.at == 0.5 and found.status == Status.OK
    assert barrier(double_well, a, a, jnp.ones(2)).value == 0
    # A bowl has none, and the line between unequal ends counts.
    bowl = barrier(lambda w, batch: jnp.sum(w**2), a, 3 * b, None)
    assert bowl.value == 0


def test_what_is_not_finite_is_said(key):
    found = landscape(lambda w, _: jnp.log(w[0]), jnp.ones(1), None, jnp.ones(1), x=[0.0, -2.0])
    assert found.status == Status.NON_FINITE and found.values[0] == 0


def test_wrong_arguments(key):
    w, batch = jnp.ones(2), jnp.ones(2)
    with pytest.raises(UserError, match="got 1 directions; give one with x, or two"):
        landscape(double_well, w, batch, w, x=[0.0], y=[0.0])
    with pytest.raises(UserError, match=r"landscape: directions\[0\]"):
        landscape(double_well, w, batch, [jnp.ones(3)], x=[0.0])
    with pytest.raises(UserError, match="x must be a list of numbers"):
        landscape(double_well, w, batch, w, x=1.0)
    with pytest.raises(UserError, match="give 3 or more"):
        barrier(double_well, w, w, batch, num_points=2)
    with pytest.raises(UserError, match="per"):
        random_direction(key, w, per="weight")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("per", ["filter", "layer"])
def test_no_leaf_that_a_random_direction_would_move(key, per):
    vector = jnp.ones(5)
    loss = lambda w, batch: jnp.mean(batch) * jnp.sum(w**2)  # noqa: E731
    with pytest.raises(UserError, match="per='none'"):
        random_direction(key, vector, per=per)
    with pytest.raises(UserError, match="per='none'"):
        slices(loss, vector, jnp.ones(2), key=key, x=[0.0, 1.0], per=per)


# Axes.


@pytest.mark.parametrize("per", ["element", "filter", "layer", "model", "none"])
def test_units_are_the_root_mean_square_of_directions(per, x64, key):
    """In each entry: a mean of n squares of variance at most 2 T^4, and fourth powers as normal."""
    params = {"kernel": jax.random.normal(key, (3, 2)).at[0, 0].set(0), "bias": jnp.ones(3)}
    draw = jax.jit(jax.vmap(lambda k: random_direction(k, params, per=per)))
    drawn = draw(jax.random.split(key, 4000))
    units = direction_units(params, per=per)
    for d, t in zip(jax.tree.leaves(drawn), jax.tree.leaves(units), strict=True):
        assert t.shape == d.shape[1:]
        error = 5 * np.sqrt(2 / 4000) * t**2
        np.testing.assert_array_less(np.abs(np.mean(d**2, 0) - t**2), error + 1e-12)
    if per in ("element", "model"):
        np.testing.assert_allclose(jax.vmap(tree.norm)(drawn), tree.norm(params))


def test_the_mean_picture_is_the_trace_in_these_units(x64, key):
    loss, params, batch, matrix = problem()
    operator = congruence(hessian(loss, params, batch), direction_units(params))
    found = trace(operator, key=key).value
    lengths = np.sum(np.square(params["kernel"]), 0)
    np.testing.assert_allclose(found, np.sum(lengths / 3 * np.diag(matrix)[3:].reshape(3, 2)))


def test_the_plane_of_three_points(x64, key):
    loss, params, batch, _ = problem()
    points = [random_direction(k, params, per="none") for k in jax.random.split(key, 3)]
    plane = plane_through(points)
    a, b = plane.directions
    np.testing.assert_allclose([tree.norm(a), tree.norm(b), tree.vdot(a, b)], [1, 1, 0], atol=1e-14)
    np.testing.assert_allclose(plane.explained.sum(), 1, rtol=1e-14)
    np.testing.assert_array_equal(plane.coordinates[2], 0)
    for point, (x, y) in zip(points, plane.coordinates, strict=True):
        found = landscape(loss, points[2], batch, plane.directions, x=[x], y=[y])
        np.testing.assert_allclose(found.values[0, 0], loss(point, batch), rtol=1e-12)


def test_the_plane_of_a_trajectory(key):
    """Float32 weights, and a second axis that is a thousandth of the first."""
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 1e-3, 1e-5, *[1e-6] * 5])
    path = np.float32(3 + rng.normal(size=(6, 8)) * sizes)
    points = [{"a": jnp.asarray(w[:2].reshape(2, 1)), "b": jnp.asarray(w[2:])} for w in path]
    plane = plane_through(points[:5], center=points[5])
    ways = np.float64(path[:5]) - path[5]
    left, size, right = np.linalg.svd(ways)
    np.testing.assert_allclose(plane.explained, size[:2] ** 2 / np.sum(size**2), rtol=1e-9)
    np.testing.assert_allclose(np.abs(plane.coordinates), np.abs(left * size)[:, :2], rtol=1e-6)
    for k, d in enumerate(plane.directions):
        assert d["b"].dtype == jnp.float32
        flat = np.concatenate([np.ravel(d["a"]), d["b"]])
        np.testing.assert_allclose(np.abs(flat @ right[k]), 1, atol=1e-6)
    turned = plane_through(points[4::-1], center=points[5])
    np.testing.assert_allclose(turned.coordinates[::-1], plane.coordinates, rtol=1e-9)


def test_planes_that_there_are_not():
    line = [jnp.array([1.0, 2.0]) * t for t in range(4)]
    same = jnp.ones(2)
    for points in (line, [same] * 3, line[:1], [], same):
        with pytest.raises(UserError, match="plane_through: .*line|plane_through"):
            plane_through(points)
    with pytest.raises(UserError, match="not all finite"):
        plane_through([jnp.array([jnp.nan, 1.0]), same, 2 * same])
    with pytest.raises(UserError, match="plane_through: points must have the shapes"):
        plane_through([jnp.ones(3), same, 2 * same])
    with pytest.raises(UserError, match="outside of jit"):
        jax.jit(lambda w: plane_through([w, 2 * w, same]).directions)(same)


def test_directions_made_orthogonal(x64, key):
    loss, params, batch, _ = problem()
    a, b = (random_direction(k, params) for k in jax.random.split(key))
    b = tree.add_scaled(b, 30.0, a)
    given = landscape(loss, params, batch, [a, b], x=[0.5], y=[2.0])
    found = landscape(loss, params, batch, [a, b], x=[0.5], y=[2.0], orthogonal=True)
    across = tree.add_scaled(b, -tree.vdot(a, b) / tree.vdot(a, a), a)
    across = tree.scale(tree.norm(b) / tree.norm(across), across)
    truth = landscape(loss, params, batch, [a, across], x=[0.5], y=[2.0])
    np.testing.assert_allclose(found.values, truth.values, rtol=1e-9)
    assert abs(truth.cosine) < 1e-12 and found.cosine == given.cosine > 0.99
    np.testing.assert_array_equal(found.lengths, given.lengths)
    for parallel in (tree.scale(-2.0, a), tree.zeros_like(a)):
        bad = landscape(loss, params, batch, [a, parallel], x=[0.5], y=[2.0], orthogonal=True)
        assert bad.status == Status.BREAKDOWN and np.isnan(bad.values).all()
    with pytest.raises(UserError, match="orthogonal=True is for two directions"):
        landscape(loss, params, batch, a, x=[0.5], orthogonal=True)


# What is drawn.


def test_any_number_of_the_weights_over_moments_of_adam(x64, key):
    """An accuracy, a gradient's length and a largest eigenvalue, of `sum w^4 / 4`."""

    def quartic(w, batch):
        return jnp.mean(batch) * jnp.sum(w**4) / 4

    def length(w, batch):
        return tree.norm(jax.grad(quartic)(w, batch))

    def largest(w, batch):
        return top_eigenpairs(hessian(quartic, w, batch), key=key, tol=1e-9).values[0]

    def accuracy(w, batch):
        return jnp.mean(jnp.where(batch * w[0] > 1, 1.0, 0.0))

    w, batch = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 1.5])
    adam = optax.adam(0.1)
    _, state = adam.update(jax.grad(quartic)(w, batch), adam.init(w), w)
    axes = [optax.tree.get(state, "mu"), optax.tree.get(state, "nu")]
    x, y = np.array([-0.5, 0.0, 1.0]), np.array([0.0, 0.3])
    at = np.asarray(w) + x[:, None, None] * axes[0] + y[None, :, None] * axes[1]
    truths = (np.sqrt(np.sum(at**6, -1)), 3 * np.max(at**2, -1),
              np.mean(batch * at[..., :1] > 1, -1))  # fmt: skip
    for metric, truth in zip((length, largest, accuracy), truths, strict=True):
        found = landscape(metric, w, batch, axes, x=x, y=y)
        np.testing.assert_allclose(found.values, truth, rtol=1e-8)
    cut = landscape(accuracy, w, batch, axes, x=x, y=y, microbatch_size=1)
    np.testing.assert_array_equal(cut.values, found.values)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(3, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-12)(x)
        return nn.Dense(1)(nn.tanh(x))[:, 0]


def test_statistics_of_batch_norm_at_each_point(x64, key):
    """Along the weights before BatchNorm the network stays, but not with statistics of the centre.
    The recipe of docs/sharpness.md."""
    model, x = Normalised(), jax.random.normal(key, (16, 2))
    batch = {"x": x, "y": jnp.sin(x[:, 0])}
    variables = jax.tree.map(lambda w: w.astype(jnp.float64), model.init(key, x, train=False))
    params = variables.pop("params")

    def frozen(params, batch):
        out = model.apply({"params": params, **variables}, batch["x"], train=False)
        return jnp.mean((out - batch["y"]) ** 2)

    def anew(params, batch):
        out, _ = model.apply(
            {"params": params, **variables}, batch["x"], train=True, mutable="batch_stats"
        )
        return jnp.mean((out - batch["y"]) ** 2)

    way = jax.tree.map(jnp.zeros_like, params)
    way["Dense_0"] = params["Dense_0"]
    found = landscape(anew, params, batch, way, x=[-0.5, 0.0, 1.0, 3.0])
    np.testing.assert_allclose(found.values, anew(params, batch), rtol=1e-9)
    stale = landscape(frozen, params, batch, way, x=[-0.5, 0.0, 1.0, 3.0])
    assert np.ptp(stale.values) > 1e-2 * stale.values[1]


def test_what_does_not_depend_on_the_weights():
    with pytest.raises(UserError, match="landscape: the loss does not depend on params. Compute"):
        landscape(lambda w, b: jnp.mean(b), jnp.ones(2), jnp.ones(2), jnp.ones(2), x=[0.0])


@pytest.mark.parametrize("per", ["filter", "layer", "model"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**80])
def test_directions_of_weights_whose_squares_are_out_of_range(per, scale):
    """They were 0, and infinite."""
    key = jax.random.key(0)
    params = {"a": jax.random.normal(key, (3, 4)), "b": jnp.zeros((2, 2)), "c": jnp.ones(2)}
    scaled = jax.tree.map(lambda w: scale * w, params)
    for make in (lambda p: geometry.random_direction(key, p, per=per),
                 lambda p: geometry.direction_units(p, per=per)):  # fmt: skip
        for wanted, found in zip(*map(jax.tree.leaves, (make(params), make(scaled))), strict=True):
            np.testing.assert_allclose(found / scale, wanted, rtol=32 * np.finfo("f").eps)
