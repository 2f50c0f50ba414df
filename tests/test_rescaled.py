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
