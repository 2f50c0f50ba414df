"""Lines, planes and barriers against polynomials in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import (
    Status,
    barrier,
    hessian,
    landscape,
    random_direction,
    slices,
    top_eigenpairs,
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
