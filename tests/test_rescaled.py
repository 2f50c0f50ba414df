"""Logits of one scale: what measures of sharpness no longer see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import Status, composed, hessian, worst_case_sharpness
from sharpjax.losses import CrossEntropy, normalised_logits, tempered_logits
from tests import nets


def scaled(net, factor):
    kernel, bias = net.params[-1]
    return [*net.params[:-1], (factor * kernel, factor * bias)]


def test_the_scale_of_the_last_layer_drops_out(x64, key):
    """Of the layers before it: its own weights have another unit."""
    net = nets.mlp()
    loss = composed(normalised_logits(net.model_fn), CrossEntropy())
    plain = composed(net.model_fn, CrossEntropy())
    for of, same in ((loss, True), (plain, False)):
        one, other = (
            hessian(of, scaled(net, factor), net.batch, where=["0/*", "1/*"]).to_dense()
            for factor in (1.0, 7.0)
        )
        assert np.allclose(one, other, rtol=1e-8, atol=1e-10) == same


def test_by_hand(x64):
    z = jnp.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    model_fn = normalised_logits(lambda params, batch: params)
    found = model_fn(z, None)
    np.testing.assert_allclose(found[0], np.array([2, -1, -1]) / 6**0.5)
    assert not found[1].any()
    slopes = jax.jacobian(model_fn)(z, None)
    assert np.isfinite(slopes).all() and not slopes[1].any()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e8 / 3])
@pytest.mark.parametrize("classes", [10, 1000])
def test_equal_logits_become_0_whatever_they_are(value, classes):
    """Also if their mean is rounded to another number."""
    model_fn = normalised_logits(lambda params, batch: params)
    z, weights = jnp.full((1, classes), value), jnp.arange(classes, dtype=jnp.float32)
    found, slope = jax.value_and_grad(lambda z: jnp.sum(weights * model_fn(z, None)))(z)
    assert found == 0 and not slope.any()


def test_logits_that_are_nan_stay_nan_and_16_bits_do_not_overflow():
    z = jnp.array([[3.0, jnp.nan, 0.0], [900.0, 300.0, 300.0]])
    found = normalised_logits(lambda params, batch: params)(z.astype(jnp.float16), None)
    assert jnp.isnan(found[0]).all()
    # Some ten operations in float32.
    np.testing.assert_allclose(found[1], np.array([2, -1, -1]) / 6**0.5, rtol=1e-6)


def test_equal_logits_are_no_error(key):
    batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    loss = composed(normalised_logits(lambda w, batch: batch["x"] @ w), CrossEntropy())
    found = worst_case_sharpness(loss, jnp.zeros((2, 3)), batch, key=key, rho=0.1)
    assert found.status == Status.OK and np.isfinite(found.value)


def test_temperatures(x64):
    net = nets.mlp()
    loss = composed(tempered_logits(net.model_fn, 2.0), CrossEntropy())
    halved = composed(net.model_fn, CrossEntropy())(scaled(net, 0.5), net.batch)
    np.testing.assert_allclose(loss(net.params, net.batch), halved, rtol=1e-12)
    with pytest.raises(UserError, match="temperature must be above 0, got 0"):
        tempered_logits(net.model_fn, 0.0)
