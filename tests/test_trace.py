"""The trace of an operator, and what its standard error is worth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import geometry, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian, restricted, trace
from tests.problems import Diagonal, awkward_loss, awkward_net, dense
from tests.traces import TRACES, traced

# That of a trained network: a few values above a bulk.
SPECTRUM = np.r_[40, 23, 18, 16, 16, 14, 10, 9, 6, 4, np.linspace(-0.5, 2, 190)]
DOMINATED = np.r_[40, np.linspace(-0.5, 1, 199)]


def test_it_equals_the_mean_over_its_own_probes(x64, strict, key):
    """By the formula: value = mean z'Az, error = sqrt(2 mean |A z|^2 / N)."""
    params, batch = awkward_net()
    operator = hessian(awkward_loss, params, batch)
    found = trace(operator, key=key, method="hutchinson", max_products=5)
    product, carry, zs = operator.linearize(), jax.random.split(key)[0], []
    for _ in range(5):
        carry, subkey = jax.random.split(carry)
        zs.append(tree.random_normal(subkey, params))
    np.testing.assert_allclose(
        found.value, np.mean([tree.vdot(z, product(z)) for z in zs]), rtol=1e-12
    )
    mean_square = np.mean([tree.vdot(product(z), product(z)) for z in zs])
    np.testing.assert_allclose(found.standard_error, np.sqrt(2 * mean_square / 5), rtol=1e-12)
    assert found.num_products == 5 and found.status == Status.OK


def test_it_converges_to_the_dense_trace(x64, key):
    params, batch = awkward_net()
    truth = np.trace(dense(awkward_loss, params, batch))
    operator = hessian(awkward_loss, params, batch)
    solve = functools.partial(trace, operator, key=key, method="hutchinson")
    found = solve(relative_error=0.02, max_products=100_000)
    assert found.status == Status.OK and 4 < found.num_products < 100_000
    assert found.standard_error <= 0.02 * abs(found.value)
    assert abs(found.value - truth) < 4 * found.standard_error
    # And no sooner than it may: one probe fewer would not have been enough.
    fewer = solve(max_products=int(found.num_products) - 1)
    assert fewer.standard_error > 0.02 * abs(fewer.value)


def coverage(spectrum, **options):
    """Share of 4,000 runs whose 1.96 standard errors cover the truth, and the mean count."""
    operator = Diagonal(jnp.asarray(spectrum, "float32"))
    keys = jax.random.split(jax.random.key(0), 4000)
    solve = functools.partial(trace, operator, method="hutchinson", **options)
    found = jax.jit(jax.vmap(lambda k: solve(key=k)))(keys)
    off = np.abs(found.value - spectrum.sum())
    return np.mean(off < 1.96 * found.standard_error), np.mean(found.num_products)


@pytest.mark.parametrize(
    "options, counts",
    [
        ({"max_products": 4}, (4, 4)),
        ({"max_products": 32}, (32, 32)),
        ({"relative_error": 0.1, "max_products": 200}, (6, 12)),
        ({"absolute_error": 20.0, "max_products": 200}, (12, 24)),
    ],
)
def test_the_standard_error_covers_at_its_nominal_rate(options, counts):
    """Also where it decides when to stop. The rate itself is off by .007 (2 sd) at most."""
    rate, count = coverage(SPECTRUM, **options)
    assert counts[0] <= count <= counts[1]
    assert 0.93 < rate < 0.96


def test_the_standard_error_where_one_eigenvalue_is_all():
    """The hardest case: a sum of few squares, whose low values come with low errors."""
    rate, _ = coverage(DOMINATED, max_products=4)
    assert 0.88 < rate < 0.94
    rate, _ = coverage(DOMINATED, max_products=48)
    assert 0.93 < rate < 0.96


def test_the_spread_of_the_values_would_not_cover():
    """What the standard error is not: this is why it is made from the products."""
    z = np.random.default_rng(0).normal(size=(4000, 4, len(SPECTRUM)))
    values = np.square(z) @ SPECTRUM
    off = np.abs(values.mean(1) - SPECTRUM.sum())
    assert np.mean(off < 1.96 * values.std(1, ddof=1) / 2) < 0.88


def test_four_probes_at_least(key):
    found = trace(Diagonal(jnp.ones(10_000)), key=key, relative_error=0.5)
    assert found.num_products == 4 and found.status == Status.OK


def test_zero_is_exact(key):
    found = trace(Diagonal(jnp.zeros(7)), key=key, relative_error=0.0, absolute_error=0.0)
    assert found.value == found.standard_error == 0 and found.num_products == 4


def test_either_error_stops_it(key):
    operator = Diagonal(jnp.asarray(np.r_[np.ones(50), -np.ones(50)], "float32"))
    never = trace(operator, key=key, relative_error=1e-6, max_products=20)
    assert never.status == Status.NOT_CONVERGED and never.num_products == 20
    with pytest.raises(geometry.NotOk, match="Trace: it did not converge"):
        geometry.check(never)
    found = trace(operator, key=key, relative_error=1e-6, absolute_error=5.0, max_products=20)
    assert found.status == Status.OK and found.num_products < 20
    assert trace(operator, key=key, max_products=20).status == Status.OK  # nothing was asked for


def nan_loss(params, batch):
    return jnp.mean(batch) * jnp.sum(jnp.sqrt(params))


def test_a_loss_that_is_not_finite(key):
    found = trace(hessian(nan_loss, jnp.array([0.0, 1.0]), jnp.ones(3)), key=key)
    assert found.status == Status.NON_FINITE and found.num_products == 1


@pytest.mark.parametrize("method", ["deflated", "hutchinson", "xtrace"])
def test_a_trace_beyond_float32(key, method):
    """Each product is a number, and their sum is not."""
    found = trace(Diagonal(jnp.full(40, 2.0**126)), key=key, method=method)
    assert np.isinf(found.value) and found.status == Status.NON_FINITE


def test_lanes_equal_single_calls(x64, strict, key):
    spectra = jnp.stack([jnp.linspace(0.1, 1 + i, 30) for i in range(3)])
    solve = functools.partial(trace, relative_error=0.1, max_products=64)
    together = jax.vmap(lambda d: solve(Diagonal(d), key=key))(spectra)
    for i in range(3):
        alone = solve(Diagonal(spectra[i]), key=key)
        assert together.num_products[i] == alone.num_products
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-12)
    inside = jax.jit(lambda d: solve(Diagonal(d), key=key))(spectra[0])
    np.testing.assert_allclose(inside.value, together.value[0], rtol=1e-12)


def test_narrow_parameters_blocks_and_rows(key):
    params, batch = awkward_net(dtype=np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    operator = restricted(hessian(awkward_loss, narrow, batch), "gain")
    found = trace(operator, key=key, method="hutchinson")
    assert found.value.dtype == jnp.float32
    named = found.estimates()
    assert list(named) == ["trace"] and named["trace"].value == found.value
    assert named["trace"].standard_error == found.standard_error
    assert named["trace"].num_evaluations == found.num_products == 100


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_parameters(key, kind):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    values = {"a": jnp.arange(32.0).reshape(8, 4), "b": jnp.ones(3)}
    expected = trace(Diagonal(values), key=key, max_products=8)
    lies = {"a": jax.NamedSharding(mesh, jax.P("model")), "b": jax.NamedSharding(mesh, jax.P())}
    with jax.set_mesh(mesh):
        operator = Diagonal(jax.device_put(values, lies))
        found = jax.jit(functools.partial(trace, max_products=8))(operator, key=key)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-5)


def counted_loss(scale, params, batch):
    traced("loss")
    return jnp.mean(jnp.tanh(batch @ params) ** 2) * scale


def test_new_numbers_compile_nothing(key):
    def solve(i, **options):
        loss = Partial(counted_loss, jnp.float32(i))
        operator = hessian(loss, jnp.full(5, 0.1 * i), jnp.full((6, 5), float(i)))
        return trace(operator, key=jax.random.fold_in(key, i), **options)

    solve(1, relative_error=0.5)
    traced = TRACES["loss"]
    solve(2, relative_error=0.4, max_products=9)
    solve(3, absolute_error=jnp.float32(0.1), max_products=5)
    assert TRACES["loss"] == traced > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"relative_error": -0.1}, "relative_error must be a number >= 0"),
        ({"relative_error": float("nan")}, "relative_error must be a number"),
        ({"absolute_error": float("inf")}, "absolute_error must be a number"),
        ({"absolute_error": np.ones(2)}, "absolute_error must be a number"),
        ({"max_products": 3}, "max_products must be a whole number >= 4, got 3"),
        ({"max_products": 8.0}, "max_products must be a whole number >= 4, got 8.0"),
        ({"key": 0}, "trace: key must be one random key"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=message):
        trace(Diagonal(jnp.ones(5)), **({"key": jax.random.key(0)} | options))


def test_an_operator_is_asked_for():
    with pytest.raises(UserError, match="trace: the first argument must be an operator"):
        trace(jnp.ones((3, 3)), key=jax.random.key(0))  # pyright: ignore[reportArgumentType]
