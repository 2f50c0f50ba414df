"""Worst cases by closed forms: in the largest norm, over radii, by example, by layer, of what
pruning has left."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import perturbation, tree
from sharpjax.errors import UserError
from sharpjax.geometry import (
    Status,
    adaptive_sharpness,
    layerwise_sharpness,
    quadratic_sharpness,
    sam_sharpness,
    worst_case_sharpness,
)
from sharpjax.geometry.sharpness import worst_case

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
    np.testing.assert_allclose(np.asarray(by_m[1].per_chunk), rises, rtol=1e-10)
    np.testing.assert_allclose(np.mean(np.asarray(by_m[3].per_chunk)), by_m[3].value, rtol=1e-12)
    np.testing.assert_array_equal(np.asarray(by_m[6].per_chunk), [by_m[6].value])
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


@pytest.mark.parametrize("rho", [1e-24, 1e20])
def test_radii_whose_squares_leave_float32(rho, key):
    """A linear loss rises by `rho |T g|`. Twenty steps of rounding the length to 4 units in the
    last place come to 80 of them."""
    slope, how = 1 / rho, {"key": key, "rho": rho}
    loss = Partial(lambda g, w, _: jnp.sum(jax.tree.leaves(w)[0]) * g, jnp.float32(slope))
    zeros, tiny = jnp.zeros(4), 80 * float(jnp.finfo(jnp.float32).eps)
    found = worst_case_sharpness(loss, zeros, None, **how)
    np.testing.assert_allclose(found.value, 2.0, rtol=tiny)
    (layer,) = layerwise_sharpness(loss, {"a": zeros}, None, **how, groups=["a"]).values()
    np.testing.assert_allclose(layer.value, 2.0, rtol=tiny)
    np.testing.assert_allclose(sam_sharpness(loss, zeros, None, rho=rho).value, 2.0, rtol=tiny)


EPS = float(jnp.finfo(jnp.float32).eps)


def linear(g, w, batch):
    return 1 + jnp.mean(batch) * jnp.dot(g, w["a"] - 1)


def of_linear(g, rho, key):
    """The rise of a linear loss by four searches of two programs, which is `rho |g|` for each."""
    loss, w, batch = Partial(linear, g), {"a": jnp.ones(len(g))}, jnp.ones(2)
    how: Any = {"key": key, "rho": rho, "num_steps": 2}
    (layer,) = layerwise_sharpness(loss, w, batch, **how).values()
    chunks = worst_case_sharpness(loss, w, batch, m=1, **how)
    return layer, chunks, sam_sharpness(loss, w, batch, rho=rho)


def test_a_radius_below_the_resolution_of_the_weights_is_named(key):
    """Every entry of `e` is half the radius, and half a unit in the last place of 1 is EPS / 2."""
    g = jnp.full(4, 1e8)
    for found in of_linear(g, EPS / 4, key):
        assert float(found.value) == 0.0 and int(found.status) == Status.BREAKDOWN
        # The loss is 1, so its own rounding does not count beside the rise.
        np.testing.assert_allclose(found.standard_error, EPS / 4 * 2e8, rtol=1e-5)
    for found in of_linear(g, 1e3 * EPS, key):
        assert int(found.status) == Status.OK
        assert abs(found.value - 1e3 * EPS * 2e8) <= found.standard_error <= 1e-3 * found.value


def test_the_rounding_of_the_losses_counts(key):
    """A rise of 1e-8 of a loss of 1 cannot be seen in float32."""
    for found in of_linear(jnp.full(100, 1e-5), 1e-4, key):
        assert abs(found.value - 1e-8) <= found.standard_error <= 17 * EPS
        assert int(found.status) == Status.OK
    for found in of_linear(jnp.full(100, 1e-5), 0.0, key):
        assert found.value == found.standard_error == 0


def test_weights_that_hardly_count_may_be_lost(key):
    """Most entries of `e` are lost, but the rise comes from the others."""
    g = 10.0 ** -jnp.arange(0.0, 20.0)
    for found in of_linear(g, 1e-2, key):
        assert perturbation.lost_fraction({"a": jnp.ones(20)}, {"a": 1e-2 * g}) > 0.5
        assert int(found.status) == Status.OK
        truth = 1e-2 * np.linalg.norm(np.asarray(g, np.float64))
        assert abs(found.value - truth) <= found.standard_error <= 20 * EPS


def test_an_unknown_norm_is_refused(key):
    norm: Any = "inf"
    with pytest.raises(UserError, match=r"norm \(worst_case_sharpness\) 'inf'.*l2, linf"):
        worst_case_sharpness(lambda w, _: w, jnp.float32(1), None, key=key, rho=1.0, norm=norm)


# Several radii, layers, and pruned weights.


def quadratic():
    rng = np.random.default_rng(4)
    A = rng.normal(size=(8, 8))
    return problem(A + A.T, rng.normal(size=8))


MEASURES = {
    "worst case": functools.partial(worst_case_sharpness, num_steps=3),
    "box": functools.partial(worst_case_sharpness, num_steps=3, norm="linf"),
    "adaptive": functools.partial(adaptive_sharpness, num_steps=3),
    "sam": lambda *problem, key, rho: sam_sharpness(*problem, rho=rho),
    "quadratic": quadratic_sharpness,
}


@pytest.mark.parametrize("name", MEASURES)
def test_an_array_of_radii_is_so_many_calls(name, key, compilations, x64):
    loss, params, _ = quadratic()
    call = functools.partial(MEASURES[name], loss, params, None, key=key)
    radii = [0.0, 0.1, 1.0]
    together = call(rho=np.array(radii))
    alone = tree.stack([call(rho=r) for r in radii])
    assert together.value.shape == (3,) and float(together.value[0]) == 0.0
    assert jax.tree.structure(together) == jax.tree.structure(alone)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a, b)
    compilations.clear()
    jax.block_until_ready(call(rho=[0.2, 0.3, 0.4]))
    jax.block_until_ready(call(rho=0.7))
    assert compilations == []


def test_radii_inside_a_trace(key, x64):
    loss, params, _ = quadratic()
    for measure in (MEASURES["worst case"], quadratic_sharpness):
        call = functools.partial(measure, loss, params, None, key=key)
        radii = jnp.array([0.0, 0.1, 1.0])
        outside, inside = call(rho=radii), jax.jit(lambda r, call=call: call(rho=r))(radii)
        np.testing.assert_allclose(inside.value, outside.value, rtol=1e-9)
    assert not inside.status.any()


@pytest.mark.parametrize("rho", [[], [0.1, -0.1], [[0.1]], ["a"], [0.1, np.nan]])
def test_impossible_radii(rho, key):
    for name, call in MEASURES.items():
        with pytest.raises(UserError, match="_sharpness: rho"):
            call(lambda w, _: w, jnp.float32(1), None, key=key, rho=rho), name


@pytest.mark.parametrize(("rule", "leave_out"), [(NONE, False), (perturbation.layers(), True)])
def test_layers_are_those_of_the_rule_that_names_them(leave_out, rule, key, x64, monkeypatch):
    loss, params, _ = quadratic()
    steps = []
    plain = worst_case.Search.__call__
    monkeypatch.setattr(
        worst_case.Search, "__call__", lambda *args: steps.append(1) or plain(*args)
    )
    how: Any = {"key": key, "rho": 0.5, "num_steps": 4 + leave_out, "restarts": 2}
    found = layerwise_sharpness(
        loss,
        params,
        None,
        leave_out=leave_out,
        scaling=rule,
        groups={"one": "a", "two": "b"},
        **how,
    )
    traced = len(steps)
    assert list(found) == ["one", "two"]
    for name, leaf in (("one", "b" if leave_out else "a"), ("two", "a" if leave_out else "b")):
        only = perturbation.only(leaf, rule)
        alone = worst_case_sharpness(loss, params, None, scaling=only, **how)
        np.testing.assert_allclose(found[name].value, alone.value, rtol=1e-12)
        moved = {n for n, e in found[name].perturbation.items() if np.any(np.asarray(e))}
        assert moved == {leaf}
    # The rules are compiled one by one, the layers together.
    assert len(steps) == 3 * traced


def test_layers_in_chunks_and_radii(key):
    batch = jnp.array([1.0, 3.0])
    params = {"a": {"w": jnp.zeros(2), "b": jnp.zeros(1)}, "c": jnp.zeros(1)}

    def loss(w, batch):
        return jnp.mean(batch) * (2 * w["a"]["w"][0] + w["a"]["b"][0] + w["c"][0])

    how: Any = {"key": key, "rho": [0.5, 1.0], "m": 1, "norm": "linf", "num_steps": 2}
    found = layerwise_sharpness(loss, params, batch, **how)
    np.testing.assert_allclose(
        np.asarray(found["a"].per_chunk), [[1.5, 4.5], [3.0, 9.0]], rtol=1e-6
    )
    np.testing.assert_allclose(found["c"].value, [1.0, 2.0], rtol=1e-6)
    with pytest.raises(UserError, match="no leaf is named 'd'"):
        layerwise_sharpness(loss, params, batch, groups=["d"], **how)


@pytest.mark.parametrize(("rule", "norm"), [(NONE, "l2"), (perturbation.layers(), "linf")])
def test_what_pruning_has_left(rule, norm, key, x64):
    """On the support the numbers are those of the smaller problem; without it zeros move."""
    H, g = np.diag(np.arange(8.0)), np.arange(1.0, 9.0)
    loss, params, w = problem(H, g)
    keep = np.array([1, 0, 1, 1, 1, 1, 0, 0], bool)
    loss = Partial(polynomial, *loss.args[:2], loss.args[2] * keep)
    params = jax.tree.map(lambda x, k: x * k, params, {"a": keep[:4].reshape(2, 2), "b": keep[4:]})
    how: Any = {"key": key, "rho": 0.4, "norm": norm, "num_steps": 6}
    call = functools.partial(worst_case_sharpness, loss, params, None, **how)
    found, free = call(scaling=perturbation.support(rule)), call(scaling=rule)
    e = flat(found.perturbation)
    assert not e[~keep].any() and e[keep].all() and flat(free.perturbation)[~keep].all()
    T = np.concatenate(
        [
            np.broadcast_to(t, x.shape).ravel()
            for t, x in zip(jax.tree.leaves(rule(params)), jax.tree.leaves(params), strict=True)
        ]
    )
    size = np.linalg.norm(e / T, 2 if norm == "l2" else np.inf)
    assert size == pytest.approx(0.4, rel=1e-9)
    # To first order the dual norm of what moves; the curvature adds to it, and is none below 0.
    slope = 0.4 * np.linalg.norm((T * g)[keep], 2 if norm == "l2" else 1)
    assert slope < float(found.value) <= slope + 7 / 2 * np.sum(e**2) * (1 + 1e-12)
    assert float(found.value) < float(free.value)
