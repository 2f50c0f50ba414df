"""Worst cases in the largest norm, by closed forms: linear losses, quadratics, linear models."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import perturbation
from sharpjax.errors import UserError
from sharpjax.geometry import Status, worst_case_sharpness

NONE, ELEMENT = perturbation.none(), perturbation.element()
BOTH = pytest.mark.parametrize("rule", [NONE, ELEMENT])


def polynomial(H, g, centre, w, _):
    """`g'd + d'Hd / 2` of `d = w - c`, on a tree of two leaves: one compilation for all of them."""
    d = jnp.concatenate([w["a"].reshape(-1), w["b"]]) - centre
    return jnp.dot(g, d) + jnp.dot(d, jnp.dot(H, d)) / 2


def problem(H, g):
    """A quadratic, the parameters, and these as a vector with one weight at zero."""
    w = np.random.default_rng(0).normal(size=len(g))
    w[-1] = 0.0
    params = {"a": jnp.asarray(w[:4].reshape(2, 2)), "b": jnp.asarray(w[4:])}
    return Partial(polynomial, *map(jnp.asarray, (H, g, w))), params, w


def flat(t):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(t)])


def units(rule, w):
    return np.ones_like(w) if rule == NONE else np.abs(w)


@BOTH
def test_linear_loss(rule, key, x64, strict):
    g = np.random.default_rng(1).normal(size=8)
    loss, params, w = problem(np.zeros((8, 8)), g)
    ball: Any = {"key": key, "rho": 0.3, "scaling": rule}
    found = worst_case_sharpness(loss, params, None, norm="linf", **ball)
    T = units(rule, w)
    np.testing.assert_allclose(found.value, 0.3 * np.abs(T * g).sum(), rtol=1e-12)
    np.testing.assert_allclose(flat(found.perturbation), 0.3 * T * np.sign(g), rtol=1e-12)
    assert int(found.num_gradients) == 21 and int(found.status) == Status.OK
    assert float(found.value) > float(worst_case_sharpness(loss, params, None, **ball).value)


@BOTH
def test_diagonal_quadratic_at_a_stationary_point(rule, key, x64, strict):
    h = np.array([5.0, 2.0, 1.0, 0.5, 0.1, -0.2, -1.0, 3.0])
    loss, params, w = problem(np.diag(h), np.zeros(8))
    call = functools.partial(
        worst_case_sharpness, loss, params, None, key=key, rho=0.3, scaling=rule, norm="linf"
    )
    truth = 0.3**2 / 2 * np.sum(units(rule, w) ** 2 * np.maximum(h, 0))
    # Where the curvature is negative, the best is to stay: the last steps are 2^-6 of the first.
    found = call()
    assert truth * (1 - 1e-2) <= float(found.value) <= truth * (1 + 1e-12)
    assert (np.abs(flat(found.perturbation)) <= 0.3 * units(rule, w) * (1 + 1e-12)).all()
    assert truth * (1 - 1e-6) <= float(call(num_steps=100).value)


@BOTH
def test_no_corner_of_the_box_is_higher(rule, key, x64):
    # A convex function is highest at a corner.
    rng = np.random.default_rng(2)
    A = rng.normal(size=(8, 8))
    g = 3 * rng.normal(size=8)
    loss, params, w = problem(A @ A.T, g)
    corners = 2 * (np.arange(256)[:, None] >> np.arange(8) & 1) - 1
    e = 0.3 * units(rule, w) * corners
    truth = np.max(e @ g + np.sum(e @ A * (e @ A), axis=1) / 2)
    ball: Any = {"key": key, "rho": 0.3, "scaling": rule}
    found = worst_case_sharpness(loss, params, None, norm="linf", restarts=4, **ball)
    np.testing.assert_allclose(found.value, truth, rtol=1e-12)
    inside = worst_case_sharpness(loss, params, None, restarts=4, **ball)
    assert float(inside.value) <= float(found.value)


def margins(w, batch):
    margin = batch["sign"] * (batch["x"] @ jnp.concatenate([w["a"].reshape(-1), w["b"]]))
    return jnp.mean(jax.nn.softplus(-margin))


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_linear_model_one_example_at_a_time(norm, dual, key, x64):
    """`softplus(-margin + rho |T x|_*)`: at m = 1 it is found, and it bounds all other m."""
    rng = np.random.default_rng(3)
    x, sign = rng.normal(size=(6, 8)), np.sign(rng.normal(size=6))
    _, params, w = problem(np.eye(8), np.zeros(8))
    batch = {"x": jnp.asarray(x), "sign": jnp.asarray(sign)}
    margin, reach = sign * (x @ w), np.linalg.norm(np.abs(w) * x, dual, axis=1)
    rises = np.logaddexp(0, -margin + 0.5 * reach) - np.logaddexp(0, -margin)
    by_m = {
        m: worst_case_sharpness(
            margins, params, batch, key=key, rho=0.5, scaling=ELEMENT, norm=norm, m=m
        )
        for m in (1, 3, 6)
    }
    np.testing.assert_allclose(by_m[1].value, rises.mean(), rtol=1e-10)
    assert by_m[1].value > by_m[3].value > by_m[6].value > 0


def test_nothing_moves_without_a_gradient_or_out_of_zero(key, x64):
    loss, params, w = problem(-np.eye(8), np.zeros(8))
    found = worst_case_sharpness(loss, params, None, key=key, rho=0.3, norm="linf")
    assert float(found.value) == 0.0 and not flat(found.perturbation).any()
    loss, params, w = problem(np.eye(8), np.ones(8))
    found = worst_case_sharpness(
        loss, params, None, key=key, rho=0.3, scaling=ELEMENT, norm="linf", restarts=3
    )
    assert flat(found.perturbation)[-1] == 0.0  # the weight at zero
    np.testing.assert_allclose(np.abs(flat(found.perturbation)), 0.3 * np.abs(w), rtol=1e-12)


def test_an_infinite_gradient_is_told_though_it_has_a_sign(key):
    def root(w, _):
        return jnp.sum(jnp.sqrt(w))

    found = worst_case_sharpness(root, jnp.zeros(2), None, key=key, rho=1.0, norm="linf")
    assert int(found.status) == Status.NON_FINITE and np.isfinite(found.value)


def test_an_unknown_norm_is_refused(key):
    norm: Any = "inf"
    with pytest.raises(UserError, match=r"norm \(worst_case_sharpness\) 'inf'.*l2, linf"):
        worst_case_sharpness(lambda w, _: w, jnp.float32(1), None, key=key, rho=1.0, norm=norm)
