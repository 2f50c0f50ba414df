"""Scalings, the ascent direction and the ball: closed forms, zero gradients, tiny and bfloat16
numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import perturbation, tree
from sharpjax.errors import UserError

RULES = [perturbation.none(), perturbation.element(), perturbation.element(eta=0.1)]


def trees(key, dtype=jnp.float32):
    """Parameters and a gradient of awkward structure: a scalar, an empty leaf, a nested tuple."""
    keys = jax.random.split(key, 6)
    shapes = {"a": (3, 2), "b": ({"c": (4,)}, ()), "empty": (0, 5)}

    def make(keys):
        keys = iter(keys)
        return jax.tree.map(
            lambda shape: jax.random.normal(next(keys), shape, dtype) + 0.1,
            shapes,
            is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(i, int) for i in x),
        )

    return make(keys[:4]), make(keys[2:])


def flat(t):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])


@pytest.mark.parametrize("rule", RULES)
def test_ascent_is_the_closed_form(rule, key, x64, strict):
    params, grads = trees(key, jnp.float64)
    w, g = flat(params), flat(grads)
    T = np.ones_like(w) if isinstance(rule, perturbation.NoScaling) else np.abs(w) + rule.eta
    got = perturbation.ascent(grads, params, rho=0.3, scaling=rule)
    np.testing.assert_allclose(flat(got), 0.3 * T**2 * g / np.linalg.norm(T * g), rtol=1e-13)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    unit = perturbation.to_unit(got, rule(params))
    assert float(tree.norm(unit)) == pytest.approx(0.3, rel=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_ascent_is_the_worst_point_of_its_ball(rule, key, x64):
    # <g, e> over the ball is at most rho ||T g||, and e attains it.
    params, grads = trees(key, jnp.float64)
    best = perturbation.ascent(grads, params, rho=0.3, scaling=rule)
    bound = 0.3 * tree.norm(perturbation.from_unit(grads, rule(params)))
    assert float(tree.vdot(grads, best)) == pytest.approx(float(bound), rel=1e-12)
    for k in jax.random.split(key, 20):
        unit = perturbation.project(tree.random_normal(k, params), 0.3)
        other = perturbation.from_unit(unit, rule(params))
        assert float(tree.vdot(grads, other)) <= float(bound)


@pytest.mark.parametrize("norm", ["l2", "linf", "none"])
def test_ascent_does_not_know_the_sign_of_a_unit(norm, key, x64):
    params, grads = trees(key, jnp.float64)
    expected = perturbation.ascent(
        grads, params, rho=0.3, scaling=perturbation.element(), norm=norm
    )
    found = perturbation.ascent(grads, params, rho=0.3, scaling=lambda w: w, norm=norm)
    assert np.any(flat(params) < 0)
    np.testing.assert_array_equal(flat(found), flat(expected))


def test_rules_are_equal_by_value_and_hashable():
    assert perturbation.element(eta=0.1) == perturbation.element(eta=0.1)
    assert hash(perturbation.element(eta=0.1)) == hash(perturbation.element(eta=0.1))
    assert perturbation.element(eta=0.1) != perturbation.element()
    assert perturbation.element() != perturbation.none()


@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf, "a", None, np.ones(2)])
def test_impossible_eta(eta):
    with pytest.raises(UserError, match="perturbation.element: eta"):
        perturbation.element(eta=eta)


@pytest.mark.parametrize("scaling", ["layers", None, 3, {"w": 1.0}, [perturbation.none()]])
def test_what_is_no_rule(scaling):
    w = {"w": jnp.ones(2)}
    for name, make in {
        "only": lambda: perturbation.only("w", scaling),
        "support": lambda: perturbation.support(scaling),
        "ascent": lambda: perturbation.ascent(w, w, rho=0.1, scaling=scaling),
    }.items():
        with pytest.raises(UserError, match=f"perturbation.{name}: scaling must be a hash"):
            make()


@pytest.mark.parametrize("rule", RULES)
def test_zero_gradient_gives_exactly_zero_and_finite_derivatives(rule, key):
    params, grads = trees(key)
    zero = tree.zeros_like(grads)

    def squared_radius(grads, params):
        e = perturbation.ascent(grads, params, rho=0.3, scaling=rule)
        return sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(e)), e

    (_, e), by = jax.value_and_grad(squared_radius, argnums=(0, 1), has_aux=True)(zero, params)
    assert not flat(e).any()
    assert np.isfinite(flat(by)).all()
    # Under vmap a lane with a zero gradient stays zero and leaves its neighbour alone.
    both = tree.stack([zero, grads])
    lanes = jax.jit(
        jax.vmap(lambda g: perturbation.ascent(g, params, rho=0.3, scaling=rule)),
    )(both)
    assert not flat(tree.index(lanes, 0)).any()
    alone = perturbation.ascent(grads, params, rho=0.3, scaling=rule)
    np.testing.assert_allclose(flat(tree.index(lanes, 1)), flat(alone), rtol=1e-6)


def test_derivative_of_ascent_is_that_of_the_formula(key, x64):
    params, grads = trees(key, jnp.float64)
    direction = tree.random_normal(key, grads)

    def along(t):
        moved = tree.add_scaled(grads, t, direction)
        return perturbation.ascent(moved, params, rho=0.3, scaling=perturbation.element())

    _, tangent = jax.jvp(along, (0.0,), (1.0,))
    step = 1e-6
    numeric = (flat(along(step)) - flat(along(-step))) / (2 * step)
    np.testing.assert_allclose(flat(tangent), numeric, atol=1e-8)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30, 1e38])
def test_radius_does_not_depend_on_the_size_of_the_gradient(size, key):
    # The squares of these leave the range of float32.
    params, grads = trees(key)
    got = perturbation.ascent(tree.scale(size, grads), params, rho=0.3)
    assert np.linalg.norm(flat(got)) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("largest", [8e37, 9e37, 3.4e38])
def test_radius_at_the_largest_gradients(largest):
    # Above 8.5e37 its inverse is a subnormal number, which is flushed to zero.
    grads = jnp.array([0.6, -0.8], jnp.float32) * jnp.float32(largest)
    for call in (perturbation.ascent, jax.jit(perturbation.ascent)):
        np.testing.assert_allclose(call(grads, grads, rho=1.0), [0.6, -0.8], rtol=1e-5)


def test_a_nan_gradient_is_not_hidden(key):
    params, grads = trees(key)
    grads["b"] = (grads["b"][0], jnp.float32(jnp.nan))
    assert np.isnan(flat(perturbation.ascent(grads, params, rho=0.3))).all()


def test_element_scaling_leaves_zero_weights_where_they_are(key):
    params, grads = trees(key)
    params["a"] = jnp.zeros_like(params["a"])
    e = perturbation.ascent(grads, params, rho=0.3, scaling=perturbation.element())
    assert not flat(e["a"]).any()
    assert flat(e["b"]).all()
    # In units of T they are excluded from the set, not infinitely far.
    unit = perturbation.to_unit(grads, perturbation.element()(params))
    assert not flat(unit["a"]).any()
    assert np.isfinite(flat(unit)).all()


def test_unit_coordinates_round_trip(key, x64, strict):
    params, grads = trees(key, jnp.float64)
    scale = perturbation.element(eta=0.1)(params)
    again = perturbation.from_unit(perturbation.to_unit(grads, scale), scale)
    np.testing.assert_allclose(flat(again), flat(grads), rtol=1e-14)


def test_project(key, x64, strict):
    unit, _ = trees(key, jnp.float64)
    length = float(tree.norm(unit))
    inside = perturbation.project(unit, 1.01 * length)
    np.testing.assert_array_equal(flat(inside), flat(unit))
    outside = perturbation.project(unit, 0.5 * length)
    np.testing.assert_allclose(flat(outside), 0.5 * flat(unit), rtol=1e-14)
    zero = perturbation.project(tree.zeros_like(unit), 0.0)
    assert not flat(zero).any()
    by = jax.grad(lambda u: tree.norm(perturbation.project(u, 1.0)) ** 2)(unit)
    assert np.isfinite(flat(by)).all()


@pytest.mark.parametrize("size", [1e-37, 1e-24, 1e19, 1e37])
def test_project_where_squares_leave_float32(size, strict):
    """Sum, root, quotient and product round in turn: a few units in the last place."""
    unit = {"w": jnp.array([3 * size]), "v": jnp.array([-4 * size, 0.0])}
    for rho in (0.5 * size, 1.0, 1e-24):
        found = flat(perturbation.project(unit, rho)).astype(np.float64)
        factor = min(1.0, rho / (5 * size))
        exact = {"w": np.array([3 * size]), "v": np.array([-4 * size, 0.0])}
        np.testing.assert_allclose(found, factor * flat(exact), rtol=1e-6)


def test_plain_numbers_are_units_of_a_leaf(strict):
    def twice(params):
        return jax.tree.map(lambda w: 2.0, params)

    def as_arrays(params):
        return jax.tree.map(lambda w: jnp.float32(2), params)

    w, g = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, -2.0, 0.0])}
    for norm in ("l2", "linf", "none"):
        for rule in (lambda rule: rule, lambda rule: perturbation.only("w", rule)):
            found, expected = (
                perturbation.ascent(g, w, rho=0.1, scaling=rule(of), norm=norm)
                for of in (twice, as_arrays)
            )
            np.testing.assert_array_equal(found["w"], expected["w"])
            assert found["w"].dtype == jnp.float32


def test_computed_in_float32_for_bfloat16():
    # 4,096 equal entries: a bfloat16 sum of squares stops growing at 256.
    grads = {"w": jnp.full(4096, 1.0, jnp.bfloat16)}
    e = perturbation.ascent(grads, grads, rho=1.0)["w"]
    assert e.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(e), 1 / 64, rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_lost_fraction_counts_what_rounding_takes(jit):
    params = {"w": jnp.array([1.0, 1.0, 1.0, 0.0], jnp.bfloat16), "v": jnp.ones(2, jnp.float32)}
    e = {"w": jnp.array([1e-3, 1e-2, 0.0, 1e-9]), "v": jnp.array([1e-9, 1e-3])}
    lost = jax.jit(perturbation.lost_fraction) if jit else perturbation.lost_fraction
    # bfloat16 has 8 bits: 1 + 1e-3 is 1. Five entries are perturbed, w[0] and v[0] are lost.
    assert float(lost(params, e)) == pytest.approx(2 / 5)
    assert float(lost(params, tree.zeros_like(e))) == 0.0


def test_perturb_rounds_once(key):
    params = {"w": jax.random.normal(key, (64,), jnp.bfloat16)}
    e = {"w": jax.random.normal(jax.random.fold_in(key, 1), (64,)) * 0.01}
    got = jax.jit(perturbation.perturb)(params, e)["w"]
    want = (np.asarray(params["w"], np.float32) + np.asarray(e["w"])).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(got), want)


def test_ascent_commutes_with_relu_rescaling_under_element_scaling_only(key, x64):
    # w2 relu(w1 x) is unchanged by (c w1, w2 / c); so is the perturbed network where T = |w|.
    keys = jax.random.split(key, 3)
    params = {
        "w1": jax.random.normal(keys[0], (3, 4), jnp.float64),
        "b1": jax.random.normal(keys[1], (4,), jnp.float64),
        "w2": jax.random.normal(keys[2], (4, 1), jnp.float64),
    }
    x = jax.random.normal(jax.random.fold_in(key, 3), (5, 3), jnp.float64)
    c = jnp.array([0.1, 2.0, 5.0, 30.0])

    def rescale(p):
        return {"w1": p["w1"] * c, "b1": p["b1"] * c, "w2": p["w2"] / c[:, None]}

    def loss(p):
        return jnp.mean((jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] - 1.0) ** 2)

    def perturbed(p, rule):
        e = perturbation.ascent(jax.grad(loss)(p), p, rho=0.2, scaling=rule)
        return perturbation.perturb(p, e)

    rule = perturbation.element()
    first, second = rescale(perturbed(params, rule)), perturbed(rescale(params), rule)
    np.testing.assert_allclose(flat(first), flat(second), rtol=1e-10)
    for rule in (perturbation.none(), perturbation.element(eta=0.1)):
        first, second = rescale(perturbed(params, rule)), perturbed(rescale(params), rule)
        assert np.abs(flat(first) - flat(second)).max() > 1e-3


def test_ascent_of_lanes_is_ascent_lane_by_lane(key):
    pairs = [trees(k) for k in jax.random.split(key, 3)]
    params = tree.stack([p for p, _ in pairs])
    grads = tree.stack([g for _, g in pairs])

    def one(g, p):
        return perturbation.ascent(g, p, rho=0.3, scaling=perturbation.element(eta=0.01))

    lanes = jax.vmap(one)(grads, params)
    for i, (p, g) in enumerate(pairs):
        np.testing.assert_allclose(flat(tree.index(lanes, i)), flat(one(g, p)), rtol=1e-6)
