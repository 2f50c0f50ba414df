"""The authors' conventions, each against what it should come to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special

from sharpjax import geometry, losses, tree
from sharpjax.errors import UserError
from sharpjax.losses import CrossEntropy
from sharpjax.metrics import functional
from sharpjax.studies.papers import conventions


def _quadratic(w, batch):
    return jnp.mean(batch) * jnp.sum(jnp.array([1.0, 2.0, 6.0]) * w**2) / 2


def test_noise_changes_have_the_mean_of_a_quadratic():
    key, batch, rho, draws = jax.random.key(0), jnp.ones(2), 0.5, 2000
    with jax.enable_x64(True):
        found = conventions.noise_changes(
            _quadratic, jnp.zeros(3), batch, key=key, rho=rho, num_draws=draws, num_params=3
        )
    found = np.asarray(found)
    mean = rho**2 / 3 * 9 / 2  # rho^2 tr(H) / (2 P)
    deviation = rho**2 / 3 * np.sqrt((1 + 4 + 36) / 2)
    assert abs(np.mean(found) - mean) < 5 * deviation / np.sqrt(draws)
    assert len(found) == draws and np.min(found) > 0


def test_noise_of_radius_0_changes_nothing():
    state = jax.random.normal(jax.random.key(1), (3,))
    found = conventions.noise_changes(
        _quadratic, state, jnp.ones(2), key=jax.random.key(0), rho=0.0, num_draws=3, num_params=3
    )
    assert np.array_equal(found, np.zeros(3))


class _Normalised(nn.Module):
    @nn.compact
    def __call__(self, image, *, train=False):
        x = nn.Dense(4)(image.reshape(len(image), -1))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


def test_noise_falls_on_statistics_of_batches_too():
    model, image = _Normalised(), jax.random.normal(jax.random.key(0), (6, 2, 2, 1))
    params, variables = (made := model.init(jax.random.key(1), image)).pop("params"), made
    batch = {"image": image, "label": jnp.arange(6) % 3}
    loss, how = conventions.LossOfState(model), {"rho": 0.1, "num_draws": 2, "num_params": 9}
    key = jax.random.key(2)
    state = {"params": params, "variables": variables}
    found = conventions.noise_changes(loss, state, batch, key=key, **how)
    of_params = conventions.noise_changes(
        losses.Classification(model, variables), params, batch, key=key, **how
    )
    assert np.all(np.isfinite(found)) and not np.allclose(found, of_params)
    # By hand: the first draw on every leaf.
    noise = tree.random_normal(jax.random.fold_in(key, 1), state)
    moved = tree.add_scaled(state, 0.1 / 3, noise)
    by_hand = loss(moved, batch) - loss(state, batch)
    assert abs(found[0] - by_hand) < 16 * jnp.finfo(jnp.float32).eps * loss(state, batch)


def _mlp(params, batch):
    x = batch["x"]
    for name in ("a", "b"):
        x = jax.nn.leaky_relu(x @ params[name])
    return x @ params["head"]


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 4)
        shapes = {"a": (4, 5), "b": (5, 6), "head": (6, 3)}
        params = {
            name: jax.random.normal(k, shape, "float64")
            for (name, shape), k in zip(shapes.items(), keys, strict=False)
        }
        x = jax.random.normal(keys[3], (12, 4), "float64")
        return params, {"x": x, "label": jnp.arange(12) % 3}


def test_the_factor_of_fisher_rao_is_one_too_many(net):
    """A ReLU net of three layers without biases: exact with the factor 3, and theirs is 4."""
    params, batch = net
    with jax.enable_x64(True):
        loss = geometry.composed(_mlp, CrossEntropy())
        right = geometry.fisher_rao(loss, params, batch, labels="observed").value
        logits = _mlp(params, batch)
        theirs = conventions.fisher_rao(logits, batch["label"], num_layers=3)
        assert abs(theirs / right - 4 / 3) < 1e-12


def test_relative_flatness_is_summed_over_batches(net):
    params, batch = net
    with jax.enable_x64(True):
        loss = geometry.composed(_mlp, CrossEntropy())

        def value(batch):
            return geometry.relative_flatness(loss, params, batch, head="head").value

        parts = [value(jax.tree.map(lambda x, i=i: x[i : i + 4], batch)) for i in (0, 4, 8)]
        whole = conventions.summed_over_batches(value(batch), num_examples=12, batch_size=4)
        assert abs(sum(parts) / whole - 1) < 1e-12


def test_division_before_the_head_is_exact_only_without_a_shortcut(net):
    params, batch = net
    with jax.enable_x64(True):
        features = jax.nn.leaky_relu(jax.nn.leaky_relu(batch["x"] @ params["a"]) @ params["b"])
        deviation = jnp.std(features, 0)
        new = conventions.divided_by_deviation(params, deviation, head="head", before=("b",))
        assert np.allclose(_mlp(new, batch), _mlp(params, batch), rtol=1e-12, atol=1e-12)
        loss = geometry.composed(_mlp, CrossEntropy())
        theirs = geometry.relative_flatness(loss, new, batch, head="head").value
        right = geometry.relative_flatness(loss, params, batch, head="head").normalised
        # A constant feature has no part in ours, and in theirs it keeps its scale.
        assert np.all(deviation > 0) and abs(theirs / right - 1) < 1e-12

        def with_shortcut(params, batch):
            x = jax.nn.leaky_relu(batch["x"] @ params["a"])
            shortcut = jnp.pad(x, ((0, 0), (0, 1)))
            return (jax.nn.leaky_relu(x @ params["b"]) + shortcut) @ params["head"]

        moved = with_shortcut(new, batch) - with_shortcut(params, batch)
        assert np.max(np.abs(moved)) > 1e-3


def test_a_second_softmax_shrinks_a_divergence():
    a, b = (np.random.default_rng(i).normal(0, 3, (20, 4)) for i in (0, 1))
    once = functional.jensen_shannon(a, b)
    twice = functional.jensen_shannon(conventions.softmax_twice(a), conventions.softmax_twice(b))
    p, q = (special.softmax(special.softmax(x, 1), 1) for x in (a, b))
    m = (p + q) / 2
    by_hand = np.mean((special.rel_entr(p, m) + special.rel_entr(q, m)).sum(1) / 2)
    assert abs(twice - by_hand) < 1e-14 and twice < once


def test_what_two_softmaxes_leave_of_a_teacher():
    """Of one that is 99.1 % sure of one of ten classes, and of one that is quite sure."""
    with jax.enable_x64(True):
        sure = jnp.log(jnp.array([[0.991, *[0.001] * 9]]))
        p = conventions.softened_twice(sure, 3.0)
        assert round(float(p.max()), 5) == 0.13386
        entropy = -jnp.sum(p * jnp.log(p))
        assert abs(entropy - 2.297) < 5e-4 < np.log(10) - entropy
        most = conventions.softened_twice(1e3 * jnp.eye(10)[:1], 3.0).max()
        assert abs(most - 1 / (1 + 9 * np.exp(-1 / 3))) < 1e-14


def test_a_teacher_by_the_authors_convention():
    """Of outputs that are probabilities, and with alpha the weight of the labels."""
    with jax.enable_x64(True):
        z, t = jax.random.normal(jax.random.key(4), (2, 6, 10), "float64")
        prior = jax.nn.softmax(t[0])
        how = {"kind": "constant", "temperature": 3.0, "prior": prior}
        weight = conventions.teacher_weight(alpha=0.9)
        teacher = losses.Teacher(**how, weight=weight, inputs="probabilities")
        same = jnp.broadcast_to(jnp.log(prior), z.shape)
        found = teacher(z, {})
        assert abs(found - conventions.distillation_of_probabilities(z, same, 3.0)) < 1e-15
        q, p = (special.softmax(special.softmax(x, 1) / 3, 1) for x in (z, same))
        assert abs(found - 9 * np.mean(special.rel_entr(p, q).sum(1))) < 1e-14
        assert abs(weight - 0.1) < 1e-15
    with pytest.raises(UserError, match="papers.teacher_weight: alpha=10; give a number"):
        conventions.teacher_weight(alpha=10)
