"""Sharpness along an update: a quadratic, signs, what is rounding, what a user can get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import directional_curvature, directional_sharpness
from sharpjax.geometry.status import Status
from tests.problems import awkward_loss, awkward_net, dense, flat


def gradient(params, batch):
    return jax.grad(awkward_loss)(params, batch)


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_it_is_that_of_the_dense_hessian(microbatch_size, key, x64, strict):
    params, batch = awkward_net()
    update = tree.random_normal(key, params)
    d, g, H = flat(update), flat(gradient(params, batch)), dense(awkward_loss, params, batch)
    found = directional_sharpness(
        awkward_loss, params, batch, update, microbatch_size=microbatch_size
    )
    np.testing.assert_allclose(found.value, d @ H @ d / -(d @ g), rtol=1e-10)
    np.testing.assert_allclose([found.slope, found.curvature], [d @ g, d @ H @ d], rtol=1e-10)
    np.testing.assert_allclose(found.loss, awkward_loss(params, batch), rtol=1e-12)
    assert int(found.status) == Status.OK
    estimate = found.estimates()["directional_sharpness"]
    assert float(estimate.value) == float(found.value) and float(estimate.standard_error) == 0


def test_a_step_of_gradient_descent(x64):
    params, batch = awkward_net()
    optimizer = optax.sgd(0.3)
    update, _ = optimizer.update(gradient(params, batch), optimizer.init(params))
    along = directional_curvature(awkward_loss, params, batch)
    found = directional_sharpness(awkward_loss, params, batch, update)
    np.testing.assert_allclose(found.value, 0.3 * along.value, rtol=1e-12)
    assert found.slope < 0
    # The other way it ascends: the slope changes its sign, the curvature does not.
    other = directional_sharpness(awkward_loss, params, batch, tree.scale(-1.0, update))
    np.testing.assert_allclose(other.value, -found.value, rtol=1e-12)


def test_the_edge_is_at_two(x64):
    """Along the update of a quadratic the loss is where it was at the step `2 / value`."""
    eigenvalues, w = jnp.array([1.0, 4.0, 9.0]), jnp.array([1.0, -2.0, 0.5])

    def loss(w, _):
        return jnp.sum(eigenvalues * w**2) / 2

    update = -jnp.array([0.3, 0.2, -0.1]) * w
    step = 2 / directional_sharpness(loss, w, None, update).value
    np.testing.assert_allclose(loss(w + step * update, None), loss(w, None), rtol=1e-14)


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_updates_whose_squares_leave_float32(size):
    def loss(w, _):
        return w[0] ** 2 + 3 * w[1] ** 2

    found = directional_sharpness(loss, jnp.array([0.0, 1.0]), None, jnp.array([0.0, -size]))
    np.testing.assert_allclose(found.value, size, rtol=1e-6)
    # `d'Hd` of the second is no number in float32.
    known = np.isfinite(found.curvature)
    assert known == (size < 1) and int(found.status) == (0 if known else Status.NON_FINITE)


@pytest.mark.parametrize("direction", [[0.0, 0.0], [1.0, 0.0], [1.0, 1e-8]])
def test_no_slope_is_no_number(direction):
    def loss(w, _):
        return w[0] ** 2 + 3 * w[1] ** 2

    found = directional_sharpness(loss, jnp.array([0.0, 1.0]), None, jnp.array(direction))
    assert np.isnan(found.value) and int(found.status) == Status.BREAKDOWN


def test_no_gradient_and_no_number(key):
    update = jnp.ones(2)
    still = directional_sharpness(lambda w, _: jnp.sum(w**2), jnp.zeros(2), None, update)
    assert np.isnan(still.value) and int(still.status) == Status.BREAKDOWN
    for w, d in ((-1.0, 1.0), (1.0, jnp.inf)):
        w, d = w * update, d * update
        found = directional_sharpness(lambda w, _: jnp.sum(jnp.log(w)), w, None, d)
        assert int(found.status) == Status.NON_FINITE


def test_narrow_parameters_are_widened(key):
    params, batch = awkward_net(dtype=np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    update = tree.random_normal(key, params)
    found = directional_sharpness(awkward_loss, narrow, batch, update)
    wide = directional_sharpness(awkward_loss, tree.widen(narrow), batch, update)
    np.testing.assert_array_equal(found.value, wide.value)


def test_updates_of_another_layout(key):
    params, batch = awkward_net(dtype=np.float32)
    for update, message in (
        (
            {"gain": params["gain"]},
            "direction must have the tree structure",
        ),
        (
            jax.tree.map(lambda x: x[..., None], params),
            "direction must have the shapes",
        ),
        (jax.tree.map(lambda x: x > 0, params), "every leaf of direction"),
    ):
        with pytest.raises(UserError, match=f"^directional_sharpness: {message}"):
            directional_sharpness(awkward_loss, params, batch, update)
