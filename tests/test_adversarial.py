"""FGSM and PGD against closed forms of linear models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.metrics import scores
from sharpjax.metrics.adversarial import fgsm, pgd

WIDE = (-100.0, 100.0)


def linear(w, x):
    z = x.reshape(len(x), -1) @ w
    return jnp.stack([jnp.zeros_like(z), z], axis=1)


def problem(num=64, features=6):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=features), rng.normal(size=(num, features // 2, 2))
    label = (rng.uniform(size=num) < 0.8) == (x.reshape(num, -1) @ w > 0)
    return jnp.asarray(w), jnp.asarray(x), jnp.asarray(label, jnp.int32)


def margins(w, x, label):
    return (2 * np.asarray(label) - 1) * (np.asarray(x).reshape(len(x), -1) @ np.asarray(w))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_model_is_robust_up_to_its_margin(norm, dual, x64, key):
    """The worst point of the ball lowers the margin by epsilon ||w||, in the dual norm."""
    w, x, label = problem()
    logits_fn = jax.tree_util.Partial(linear, w)
    fall = 0.3 * np.linalg.norm(w, dual)
    want = margins(w, x, label) > fall
    assert 0.1 < want.mean() < 0.7
    one = fgsm(logits_fn, x, label, epsilon=0.3, norm=norm, bounds=WIDE)
    many = pgd(logits_fn, x, label, epsilon=0.3, norm=norm, bounds=WIDE, key=key, restarts=2)
    for found in (one, many):
        # On a sphere the ascent comes near the highest point, and in a cube it reaches it.
        near = 0.03 * fall if found is many and norm == "l2" else 1e-9
        apart = np.abs(margins(w, x, label) - fall) > near
        np.testing.assert_array_equal(found.correct[apart], want[apart])
        np.testing.assert_array_equal(found.clean, margins(w, x, label) > 0)
        excess = margins(w, found.input, label) - (margins(w, x, label) - fall)
        assert excess.min() > -1e-9 and excess.max() <= near
        moved = np.asarray(found.input - x).reshape(64, -1)
        order = np.inf if norm == "linf" else 2
        assert np.linalg.norm(moved, order, axis=1).max() < 0.3 * (1 + 1e-9)
    assert float(scores.mean(one.correct).value) == want.mean()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sure_model_has_a_gradient(norm, key):
    """At a margin of some 200 the cross-entropy is 0 in float32, and so is its gradient."""
    w, x, label = problem()
    scale = 200 / np.abs(margins(w, x, label)).min()
    w, x = jnp.float32(scale * w), jnp.float32(x)
    label = jnp.int32(margins(w, x, jnp.ones(64)) > 0)
    found = pgd(jax.tree_util.Partial(linear, w), x, label, epsilon=0.3, key=key, norm=norm,
                bounds=WIDE)  # fmt: skip
    fall = 0.3 * np.linalg.norm(w, 1 if norm == "linf" else 2)
    np.testing.assert_array_equal(found.correct, margins(w, x, label) > fall)
    assert found.clean.all() and 0.1 < found.correct.mean() < 0.9


def test_inputs_stay_within_their_bounds(key):
    _, _, label = problem()
    x = jax.random.uniform(key, (64, 3, 2))
    logits_fn = jax.tree_util.Partial(linear, jnp.ones(6))
    for norm in ("linf", "l2"):
        found = pgd(logits_fn, x, label, epsilon=0.5, key=key, steps=3, norm=norm)
        assert found.input.min() >= 0 and found.input.max() <= 1
        moved = found.input - x if norm == "linf" else np.linalg.norm(found.input - x, axis=(1, 2))
        assert np.abs(moved).max() <= 0.5 + 1e-6
    with pytest.raises(UserError, match=r"outside of bounds=.0.0, 1.0.; give them before"):
        fgsm(logits_fn, 2 * x, label, epsilon=0.1)


def curved(w, x):
    h = jnp.tanh(3 * x.reshape(len(x), -1) @ w)
    return h @ jnp.cos(jnp.arange(w.shape[1] * 3.0)).reshape(-1, 3)


def test_more_looking_finds_no_less(key):
    w = jax.random.normal(key, (6, 8))
    x = jax.random.uniform(jax.random.key(1), (64, 6))
    label = jnp.argmax(curved(w, x), 1)
    logits_fn = jax.tree_util.Partial(curved, w)
    given = {"epsilon": 0.1, "key": key}
    clean = fgsm(logits_fn, x, label, epsilon=0.0)
    assert clean.correct.all() and np.array_equal(clean.input, x)
    one = pgd(logits_fn, x, label, **given, restarts=1)
    # The first of several restarts has a key of its own.
    again = pgd(logits_fn, x, label, **given, restarts=1)
    np.testing.assert_array_equal(one.input, again.input)
    assert one.correct.mean() <= fgsm(logits_fn, x, label, epsilon=0.1).correct.mean()
    two = pgd(logits_fn, x, label, **given, restarts=3)
    assert two.correct.mean() <= one.correct.mean() + 2 / 64
    # Inside a trace too.
    traced = jax.jit(lambda x: pgd(logits_fn, x, label, **given))(x)
    np.testing.assert_array_equal(traced.correct, one.correct)
    of_weights = jax.jit(lambda w: pgd(jax.tree_util.Partial(curved, w), x, label, **given))(w)
    np.testing.assert_array_equal(of_weights.correct, one.correct)


def test_inputs_are_floating_and_classes_two_or_more():
    for x, num_classes, words in ((jnp.uint8, 2, "x is uint8"), (jnp.float32, 1, "of one class")):
        with pytest.raises(UserError, match=words):
            fgsm(lambda x, k=num_classes: 1.0 * x[:, :k], jnp.zeros((4, 2), x),
                 jnp.zeros(4, jnp.int32), epsilon=0.1)  # fmt: skip


def test_a_label_in_a_byte():
    """Class 261 is not class 5."""
    logits_fn = jax.tree_util.Partial(lambda x: jnp.zeros((2, 300)).at[:, 261].set(x[:, 0]))
    found = fgsm(logits_fn, jnp.ones((2, 1)), jnp.array([5, 7], jnp.uint8), epsilon=0.0)
    assert not found.clean.any() and not found.correct.any()


def test_what_is_not_finite_is_not_right(key):
    def broken(x):
        return jnp.stack([jnp.zeros(len(x)), jnp.full(len(x), jnp.nan)], 1)

    found = fgsm(broken, jnp.zeros((4, 2)), jnp.ones(4, jnp.int32), epsilon=0.1)
    assert not found.correct.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0; give a number >= 0"),
        ({"step_size": float("nan")}, "step_size=nan"),
        ({"steps": 0}, "adversarial.pgd: steps must be a whole number"),
        ({"restarts": 0}, "restarts must be a whole number"),
        ({"norm": "l1"}, "unknown norm .adversarial.pgd. 'l1'"),
        ({"label": jnp.full(64, 2)}, "a label is no class: from 0 to 1 is allowed"),
        ({"label": jnp.zeros(3, jnp.int32)}, r"label \[3\], and the logits are \[64, 2\]"),
    ],
)
def test_what_is_refused(options, words, key):
    w, x, label = problem()
    given = {"label": label, "epsilon": 0.1, "key": key, "bounds": WIDE} | options
    with pytest.raises(UserError, match=words):
        pgd(jax.tree_util.Partial(linear, w), x, **given)
