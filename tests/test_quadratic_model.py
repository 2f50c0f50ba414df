"""The worst case to second order against dense secular solutions, and its bound of what no Krylov
space has shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import perturbation, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, check, quadratic_sharpness, worst_case_sharpness
from sharpjax.geometry.sharpness import quadratic_model
from tests.problems import trust_region

N, COUNT = 30, 24


def polynomial(H, g, centre, w, _):
    d = w - centre
    return jnp.dot(g, d) + jnp.dot(d, jnp.dot(H, d)) / 2


def problems(seed):
    """Hessians, gradients and radii of many sizes; every third Hessian is negative, every fifth
    gradient has no part along the top eigenvector."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(COUNT):
        values = rng.normal(size=N) ** 3 * 10.0 ** rng.uniform(-2, 2)
        values = -np.abs(values) - 0.01 if i % 3 == 0 else values
        Q, _ = np.linalg.qr(rng.normal(size=(N, N)))
        H, g = (Q * values) @ Q.T, rng.normal(size=N) * 10.0 ** rng.uniform(-3, 1)
        if i % 5 == 0:
            top = Q[:, np.argmax(values)]
            g -= top * (top @ g)
        found.append(((H + H.T) / 2, g, 10.0 ** rng.uniform(-2, 1)))
    return found


@functools.cache
def lanes(num_products):
    """All problems at once."""

    def one(H, g, rho, key):
        loss, w = Partial(polynomial, H, g, jnp.ones(N)), jnp.ones(N)
        return quadratic_sharpness(loss, w, None, key=key, rho=rho, num_products=num_products)

    keys = jax.random.split(jax.random.key(0), COUNT)
    args = (jnp.asarray(np.stack(x)) for x in zip(*problems(0), strict=True))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*args, keys))


@pytest.mark.parametrize("num_products", [2, N])
def test_the_interval_holds_the_secular_solution(num_products, x64, strict):
    found = lanes(num_products)
    truth = np.array([trust_region(*problem) for problem in problems(0)])
    rounding = 1e-8 * truth  # of the reference, where it comes near the pole
    assert (found.value <= truth + rounding).all()
    assert (truth <= found.value + found.error + rounding).all()
    for (H, g, rho), e, value, rise in zip(
        problems(0), found.perturbation, found.value, found.rise, strict=True
    ):
        assert np.linalg.norm(e) <= rho * (1 + 1e-12)
        scale = np.abs(g @ e) + np.abs(e @ H @ e)
        assert abs(value - rise) + abs(value - g @ e - e @ H @ e / 2) <= 1e-10 * scale
    if num_products == 2:  # a small space is told from a large one
        assert (found.status == Status.NOT_CONVERGED).any()
    else:
        assert (found.error <= 1e-2 * truth).all() and not found.status.any()


def spectrum(values, g):
    Q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(len(values), len(values))))
    H, g = (Q * values) @ Q.T, Q @ g
    w = np.random.default_rng(2).normal(size=len(values))
    return Partial(polynomial, *map(jnp.asarray, ((H + H.T) / 2, g, w))), jnp.asarray(w), H, g


VALUES = np.concatenate([[-8.0, -3.0, 2.0, 5.0], np.linspace(-1, 1, N - 4)])
ORTHOGONAL = np.where(np.arange(N) == 3, 0.0, 0.1)


@pytest.mark.parametrize("rho", [0.1, 1.0])
@pytest.mark.parametrize("g", [np.zeros(N), ORTHOGONAL], ids=["stationary", "hard"])
@pytest.mark.parametrize("rule", [perturbation.none(), perturbation.element()])
def test_what_the_gradient_does_not_show(rule, g, rho, key, x64):
    loss, w, H, g = spectrum(VALUES, g)
    T = np.ones(N) if rule == perturbation.none() else np.abs(np.asarray(w))
    scaled = T[:, None] * H * T
    call = functools.partial(quadratic_sharpness, loss, w, None, key=key, rho=rho, scaling=rule)
    found = check(call())
    truth = trust_region(scaled, T * g, rho)
    if not g.any():
        assert truth == pytest.approx(rho**2 / 2 * np.linalg.eigvalsh(scaled)[-1], rel=1e-12)
    assert truth - float(found.error) <= float(found.value) <= truth * (1 + 1e-10)
    assert float(found.error) <= 1e-2 * truth
    assert float(found.rise) == pytest.approx(float(found.value), rel=1e-9)
    assert int(found.num_products) <= 12 + 24
    ascent = worst_case_sharpness(loss, w, None, key=key, rho=rho, scaling=rule, restarts=2)
    assert float(ascent.value) <= float(found.value + found.error)


def test_one_set_of_products_serves_all_radii(key, x64, monkeypatch):
    loss, w, H, g = spectrum(VALUES, np.ones(N))
    spans = []
    plain = quadratic_model._span
    monkeypatch.setattr(
        quadratic_model, "_span", lambda *args: spans.append(plain(*args)) or spans[-1]
    )
    radii = np.array([0.0, 0.01, 0.1, 1.0, 10.0])
    found = jax.vmap(lambda r: quadratic_sharpness(loss, w, None, key=key, rho=r))(radii)
    assert len(spans) == 1 and spans[0].num_products.shape == ()
    truth = np.array([trust_region(H, g, r) if r else 0.0 for r in radii])
    assert float(found.value[0]) == 0.0 == float(found.error[0]) and not found.status.any()
    assert (np.abs(found.value - truth) <= found.error + 1e-10 * truth).all()
    alone = quadratic_sharpness(loss, w, None, key=key, rho=radii[3])
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b[3] if np.ndim(b) else b, rtol=1e-8, atol=1e-12)


def product_of(w, batch):
    return jnp.mean(batch) * (w["a"][0] * w["b"] + w["a"][1] ** 3)


def test_leaves_of_several_sizes_and_types(key):
    # d = (a0, b, a1) from (1, 2, 1): g = (2, 1, 3), curvature 6 along a1, 1 between the others.
    params = {"a": jnp.ones(2), "b": jnp.float32(2), "c": jnp.zeros((0, 3), jnp.bfloat16)}
    H = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 6.0]])
    found = check(quadratic_sharpness(product_of, params, jnp.ones(4), key=key, rho=0.1))
    truth = trust_region(H, np.array([2.0, 1.0, 3.0]), 0.1)
    assert abs(float(found.value) - truth) <= float(found.error) + 1e-6 * truth
    assert jax.tree.structure(found.perturbation) == jax.tree.structure(params)
    moved = perturbation.perturb(tree.widen(params), found.perturbation)
    rise = product_of(moved, jnp.ones(4)) - product_of(params, jnp.ones(4))
    np.testing.assert_allclose(found.rise, rise, rtol=1e-4)
    parts = quadratic_sharpness(
        product_of, params, jnp.ones(4), key=key, rho=0.1, microbatch_size=2
    )
    np.testing.assert_allclose(parts.value, found.value, rtol=1e-5)
    assert found.estimates()["quadratic_sharpness"].standard_error == found.error


@pytest.mark.parametrize("size", [1e-25, 1e-10, 1e15])
def test_numbers_whose_squares_leave_float32(size, key):
    def line(w, _):
        return jnp.float32(size) * (0.6 * w[0] + 0.8 * w[1])

    found = check(quadratic_sharpness(line, jnp.zeros(3), None, key=key, rho=0.5))
    assert float(found.value) == pytest.approx(0.5 * size, rel=1e-5)
    np.testing.assert_allclose(found.perturbation, [0.3, 0.4, 0], rtol=1e-5, atol=1e-6)


def test_where_there_is_no_maximum_or_no_number(key):
    call = functools.partial(quadratic_sharpness, batch=None, key=key, rho=0.5)
    flat = check(call(lambda w, _: jnp.sum(0 * w), jnp.ones(3)))
    assert float(flat.value) == float(flat.error) == 0.0
    frozen = check(call(lambda w, _: jnp.sum(w**2), jnp.zeros(3), scaling=perturbation.element()))
    assert float(frozen.value) == 0.0 and not frozen.perturbation.any()
    one = check(call(lambda w, _: 0.1 * w - w**2, jnp.float32(0)))  # highest at .05, within
    assert float(one.value) == pytest.approx(0.0025, abs=float(one.error))
    nan = call(lambda w, _: jnp.sum(jnp.log(w)), jnp.array([-1.0, 2.0]))
    assert np.isnan(nan.value) and int(nan.status) == Status.NON_FINITE
    negative = jax.jit(lambda r: call(lambda w, _: jnp.sum(w), jnp.ones(3), rho=r))(-1.0)
    assert np.isnan(negative.value) and int(negative.status) == Status.NON_FINITE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rho": -1.0}, "rho"),
        ({"rho": 0.1, "tol": 0.0}, "tol"),
        ({"rho": 0.1, "num_products": 0}, "num_products"),
        ({"rho": 0.1, "scaling": "element"}, "scaling"),
    ],
)
def test_what_a_user_can_get_wrong(wrong, message, key):
    with pytest.raises(UserError, match=f"^quadratic_sharpness: {message}"):
        quadratic_sharpness(lambda w, _: jnp.sum(w), jnp.ones(2), None, key=key, **wrong)


def test_the_rounding_of_the_weights_counts_to_the_error_of_the_rise(key):
    """Below half a unit in the last place of 1 no weight moves, and the loss does not rise."""

    def loss(w, _):
        return jnp.dot(jnp.array([3e8, 4e8]), w - 1) + jnp.sum((w - 1) ** 2)

    found = quadratic_sharpness(loss, jnp.ones(2), None, key=key, rho=np.array([2e-8, 1e-4, 0.0]))
    np.testing.assert_allclose(found.value, [10.0, 5e4, 0.0], rtol=1e-5)
    off, error = np.abs(found.rise - found.value), np.asarray(found.rise_error)
    assert float(found.rise[0]) == 0.0 and (off <= error).all() and error[2] == 0.0
    assert error[1] <= 2e-3 * float(found.value[1])
    rise = found.estimates()["quadratic_sharpness_rise"]
    np.testing.assert_array_equal(rise.standard_error, error)
