"""Distillation of features: closed forms, what each does not see, a step that trains with it."""

import doctest
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.losses import attention_transfer, feature_distillation, similarity_distillation

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
LOSSES = (attention_transfer, feature_distillation, similarity_distillation)


def features(seed=0, channels=3):
    return jax.random.normal(jax.random.key(seed), (4, 2, 3, channels), jnp.float64)


def test_each_by_hand(x64, strict):
    f, g = features(0), features(1)
    maps = [np.square(x).sum(-1).reshape(4, -1) for x in (f, g)]
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*maps, strict=True)]
    np.testing.assert_allclose(attention_transfer(f, g), 2 - 2 * np.mean(cosine), rtol=1e-12)
    np.testing.assert_allclose(feature_distillation(f, g), np.sum((f - g) ** 2) / 8, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(feature_distillation)(f, g), (f - g) / 4, atol=1e-15)
    rows = [np.asarray(x).reshape(4, -1) for x in (f, g)]
    G, H = ((x @ x.T) / np.linalg.norm(x @ x.T, axis=1)[:, None] for x in rows)
    np.testing.assert_allclose(similarity_distillation(f, g), np.sum((G - H) ** 2) / 16, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_equal_has_no_loss_and_no_slope(loss, x64):
    f = features()
    value, slope = jax.value_and_grad(loss)(f, f)
    assert value == 0 and not np.any(slope)
    assert loss(f, features(1)) > 1e-3


def test_what_they_do_not_see(x64):
    f, g = features(0), features(1)
    scales = jnp.arange(1.0, 5)[:, None, None, None]
    for one, other in ((scales * f, g), (f[..., ::-1], g), (f, jnp.concatenate([g, g], -1))):
        np.testing.assert_allclose(
            attention_transfer(one, other), attention_transfer(f, g), rtol=1e-12
        )
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (18, 18), jnp.float64))[0]
    turned = 3 * f.reshape(4, -1) @ turn
    want = similarity_distillation(f, g)
    np.testing.assert_allclose(similarity_distillation(turned, g), want, rtol=1e-12)
    assert abs(similarity_distillation(scales * f, g) / want - 1) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_features_of_dead_units_have_a_finite_slope_and_nan_is_seen(loss, x64):
    f, g = features().at[1].set(0), features(1)
    assert np.all(np.isfinite(jax.grad(loss)(f, g)))
    assert np.isnan(loss(f.at[0, 0, 0].set(jnp.nan), g))
    assert np.isnan(loss(f, g.at[0, 0, 0].set(jnp.nan)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_16_bit_features_are_compared_in_float32(loss, dtype):
    """The same numbers, whose squares overflow in float16."""
    f, g = (300 * jax.random.normal(jax.random.key(i), (4, 2, 3, 8), dtype) for i in (0, 1))
    wide = loss(f.astype(jnp.float32), g.astype(jnp.float32))
    assert loss(f, g) == wide > 0 and loss(f, g).dtype == jnp.float32


@pytest.mark.parametrize("power", [80.0, -80.0])
@pytest.mark.parametrize("loss", [attention_transfer, similarity_distillation])
def test_squares_of_large_and_small_features_neither_overflow_nor_underflow(loss, power, x64):
    """To the bit: the scale is a power of 2."""
    f, g = (features(i).astype(jnp.float32) for i in (0, 1))
    value, slope = jax.value_and_grad(loss)(f, g)
    scaled, scaled_slope = jax.value_and_grad(loss)(2**power * f, g / 2**power)
    assert scaled == value
    np.testing.assert_array_equal(2**power * scaled_slope, slope)


def test_shapes_that_do_not_fit_are_refused():
    f = jnp.ones((4, 2, 3, 5))
    for loss, other in (
        (attention_transfer, f[:, :1]),
        (attention_transfer, f[:3]),
        (feature_distillation, f[..., :3]),
        (similarity_distillation, f[:3]),
    ):
        with pytest.raises(UserError, match=f"losses.{loss.__name__}: features are .* give"):
            loss(f, other)
    with pytest.raises(UserError, match="with the same places between"):
        attention_transfer(f[:, 0, 0], f[:, 0, 0])


def test_a_step_of_training_with_features():
    """The recipe of the documents."""
    page = DOCS / "function.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted >= 10 and found.failed == 0
