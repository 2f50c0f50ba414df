"""Measures that `docs/sharpness.md` composes of others: Keskar's, layers in balls of their own,
the noise of quantised weights, other objectives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax import perturbation, tree
from sharpjax.geometry import average_sharpness, composed, hessian, worst_case_sharpness
from sharpjax.losses import CrossEntropy, distillation

# Within 5 standard errors: 6e-7 of all keys fall outside.
ERRORS = 5
BATCH = jnp.ones(4)


def weighted(curvature, centre, params, batch):
    """A quadratic of diagonal Hessian, at its minimum at the centre."""
    off = tree.add_scaled(params, -1.0, centre)
    return tree.total(jax.tree.leaves(jax.tree.map(_weighted, curvature, off))) * jnp.mean(batch)


def _weighted(h, x):
    return jnp.sum(h * jnp.square(x)) / 2


def linear(slope, params, batch):
    return tree.vdot(slope, params) * jnp.mean(batch)


def layers(rng, *shapes):
    return {f"layer_{i}": jnp.asarray(rng.normal(size=s) * 4.0**i) for i, s in enumerate(shapes)}


def test_keskar(x64, key):
    """`100 (max f - f) / (1 + f)` over `|z_i| <= eps (|x_i| + 1)`, in closed form: a linear loss,
    and a quadratic at its minimum."""
    rng = np.random.default_rng(0)
    params, other = (layers(rng, (3, 4), (5,)) for _ in range(2))
    size = jax.tree.map(lambda w: 0.01 * (jnp.abs(w) + 1), params)
    rise = sum(float(jnp.sum(size[n] * jnp.abs(other[n]))) for n in params)
    curved = sum(float(jnp.sum(jnp.square(size[n] * other[n]))) / 2 for n in params)
    minimum = Partial(weighted, jax.tree.map(jnp.square, other), params)
    for loss, highest in ((Partial(linear, other), rise), (minimum, curved)):
        found = worst_case_sharpness(
            loss, params, BATCH, key=key, rho=0.01, scaling=perturbation.element(1.0), norm="linf"
        )
        keskar = 100 * found.value / (1 + found.loss)
        np.testing.assert_allclose(keskar, 100 * highest / (1 + loss(params, BATCH)), rtol=1e-9)


# Relative balls of layers (Stutz et al., 2021, arXiv 2104.04448): `|e_l| <= xi |w_l|` of each.


def test_one_ball_bounds_a_ball_for_each_layer(x64, key):
    """The product of L balls of radius xi holds the one ball of that radius, and lies in the one of
    radius `sqrt(L) xi`; so do their worst cases."""
    rng = np.random.default_rng(0)
    shapes = ((3, 4), (5,), (4, 2))
    params, slope = layers(rng, *shapes), layers(rng, *shapes)
    length = {name: float(jnp.linalg.norm(w)) for name, w in params.items()}
    product = 0.1 * sum(length[n] * float(jnp.linalg.norm(slope[n])) for n in params)
    loss, scaling = Partial(linear, slope), perturbation.layers()
    inner, outer = (
        worst_case_sharpness(
            loss, params, BATCH, key=key, rho=rho, scaling=scaling, num_steps=2
        ).value
        for rho in (0.1, 0.1 * 3**0.5)
    )
    np.testing.assert_allclose(
        inner, 0.1 * sum((length[n] * jnp.linalg.norm(slope[n])) ** 2 for n in params) ** 0.5
    )
    assert inner < product < outer


def root_mean_square(params):
    return jax.tree.map(lambda w: jnp.sqrt(jnp.mean(jnp.square(w))), params)


def test_the_average_over_balls_of_layers(x64, key):
    """Noise of length `xi |w_l|` in every layer: `xi^2 / 2 sum_l |w_l|^2 tr(H_ll) / n_l`."""
    rng = np.random.default_rng(0)
    params = layers(rng, (30, 40), (50,), (40, 20))
    curvature = jax.tree.map(lambda w: jnp.asarray(rng.uniform(size=w.shape)), params)
    loss = Partial(weighted, curvature, params)
    found = average_sharpness(
        loss, params, BATCH, key=key, rho=0.5, scaling=root_mean_square, max_pairs=100
    )
    truth = sum(0.125 * jnp.sum(jnp.square(w)) * jnp.mean(curvature[n]) for n, w in params.items())
    assert abs(found.value - truth) <= ERRORS * found.standard_error < 0.1 * truth
    length = sum(0.25 * jnp.sum(jnp.square(w)) for w in params.values()) ** 0.5
    np.testing.assert_allclose(found.length, length, rtol=0.05)


def half_step(params):
    """Of 8 bits: 127 steps to each side of 0, of one length for each tensor."""
    return jax.tree.map(lambda w: jnp.max(jnp.abs(w)) / 127 / 2, params)


def half_step_of_channels(params):
    """One length for each channel, which is the last axis of a kernel."""

    def of(w):
        return jnp.max(jnp.abs(w), axis=range(w.ndim - 1), keepdims=True) / 127 / 2

    return jax.tree.map(of, params)


def test_uniform_noise_is_that_of_rounding(x64, key):
    """Weights that are really rounded raise the loss as uniform noise of half a step does."""
    rng = np.random.default_rng(0)
    params = layers(rng, (50, 60), (40, 50))
    curvature = jax.tree.map(lambda w: jnp.asarray(rng.uniform(size=w.shape)), params)
    loss = Partial(weighted, curvature, params)
    for rule in (half_step, half_step_of_channels):
        steps = jax.tree.map(lambda half: 2 * half, rule(params))
        rounded = jax.tree.map(lambda w, step: step * jnp.round(w / step), params, steps)
        noise = average_sharpness(
            *(loss, params, BATCH), key=key, rho=1.0, noise="uniform", scaling=rule
        )
        moments = jax.tree.map(lambda h, step: h * step**2 / 24, curvature, steps)
        truth = sum(map(jnp.sum, moments.values()))
        assert abs(noise.value - truth) <= ERRORS * noise.standard_error < 0.05 * truth
        # Of a square of a uniform number the deviation is sqrt(4 / 5) of its mean.
        spread = sum(0.8 * jnp.sum(jnp.square(x)) for x in moments.values()) ** 0.5
        assert abs(loss(rounded, BATCH) - truth) <= ERRORS * spread < 0.2 * truth


def logits(params, batch):
    return batch["x"] @ params


def decay(params):
    return 0.5 * jnp.sum(jnp.square(params)) / 2


def taught(outputs, batch):
    return distillation(outputs, batch["taught"], 1.0)


def test_of_the_training_objective_and_of_a_student(x64, key):
    """Weight decay c adds `c rho^2 / 2` to the average on a sphere. A student of one layer has at
    any teacher the Hessian that it has with labels."""
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(6, 4))),
        "label": jnp.asarray(rng.integers(0, 3, 6)),
        "taught": jnp.asarray(rng.normal(size=(6, 3))),
    }
    params = jnp.asarray(rng.normal(size=(4, 3)))
    plain = composed(logits, CrossEntropy())
    decayed = composed(logits, CrossEntropy(), regularizer=decay)
    one, other = (
        average_sharpness(loss, params, batch, key=key, rho=0.3, noise="sphere").value
        for loss in (plain, decayed)
    )
    np.testing.assert_allclose(other - one, 0.5 * 0.09 / 2, rtol=1e-9)
    student, labelled = (
        hessian(loss, params, batch).to_dense() for loss in (composed(logits, taught), plain)
    )
    np.testing.assert_allclose(student, labelled, atol=1e-12)
