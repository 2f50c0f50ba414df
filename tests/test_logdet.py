"""Log-determinants against exact ones, how often their errors hold, and when none is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian
from sharpjax.geometry.spectra.logdet import logdet
from tests.problems import Diagonal, awkward_loss, awkward_net, dense


def test_a_hessian_with_a_damping(x64, strict, key):
    params, batch = awkward_net()
    damping = 4.0
    sign, truth = np.linalg.slogdet(dense(awkward_loss, params, batch) + damping * np.eye(34))
    operator = hessian(awkward_loss, params, batch) + damping
    found = geometry.check(logdet(operator, key=key, num_steps=34, num_probes=64))
    assert sign == 1 and found.num_products == 34 * 64
    assert abs(found.value - truth) < 3 * found.standard_error < 3
    assert found.quadrature_error < 1e-9
    smallest = np.linalg.eigvalsh(dense(awkward_loss, params, batch)).min() + damping
    assert abs(found.smallest - smallest) < 1e-9 and found.smallest_residual < 1e-6
    estimates = found.estimates()
    assert estimates["logdet"] == (found.value, found.standard_error, found.num_products)
    assert np.isnan(estimates["logdet_quadrature_error"].standard_error)


@pytest.mark.parametrize("factor", [1e-10, 1.0, 1e10])
def test_a_factor_adds_its_logarithm_and_no_error(factor):
    """`log det cA = n log c + log det A`: the probes do not see it.

    But for rounding: the weights of a probe are the squares of a row of 64 orthonormal vectors,
    which sum to 1 within 64 eps, and so much of `n log c` is the error.
    """
    values = np.linspace(1, 3, 1000, dtype=np.float32)
    found = logdet(Diagonal(jnp.asarray(factor * values)), key=jax.random.key(7))
    same = logdet(Diagonal(jnp.asarray(values)), key=jax.random.key(7))
    assert found.status == Status.OK
    shift = 1000 * np.log(factor)
    atol = 64 * np.finfo(np.float32).eps * (abs(shift) + abs(same.value))
    assert atol < same.standard_error / 10
    np.testing.assert_allclose(found.value - shift, same.value, atol=atol)
    np.testing.assert_allclose(found.standard_error, same.standard_error, rtol=1e-2)


def test_identity_is_exact(key):
    found = geometry.check(logdet(Diagonal(jnp.full(300, 2.0)), key=key))
    np.testing.assert_allclose(found.value, 300 * np.log(2), rtol=1e-5)
    assert found.standard_error < 1e-3 and found.num_products == 8


def many(values, count, **options):
    operator = Diagonal(jnp.asarray(values, jnp.float32))
    keys = jax.random.split(jax.random.key(2), count)
    return jax.jit(jax.vmap(lambda key: logdet(operator, key=key, **options)))(keys)


def test_the_standard_error_covers_where_it_stops_the_probes():
    """Nominal .954, of 500 keys, and stopped after different numbers of probes."""
    values = np.r_[np.geomspace(1, 50, 30), np.random.default_rng(0).uniform(0.5, 1, 170)]
    found = many(values, 500, num_steps=24, absolute_error=5.0, num_probes=24)
    assert (found.status == Status.OK).all() and (found.quadrature_error < 0.1).all()
    assert len(np.unique(found.num_products)) > 2
    covered = np.mean(np.abs(found.value - np.log(values).sum()) < 2 * found.standard_error)
    assert 0.92 < covered < 0.98, covered


def test_the_quadrature_error_is_that_of_too_few_products(x64):
    """Condition number 1e4: 8 to 64 products are not enough, and the error says so."""
    values = np.geomspace(1e-4, 1, 2000)
    operator = Diagonal(jnp.asarray(values))
    key = jax.random.key(0)
    exact = logdet(operator, key=key, num_steps=256, num_probes=4)
    assert exact.quadrature_error < 1e-2
    for steps in (8, 32, 64):
        found = logdet(operator, key=key, num_steps=steps, num_probes=4)
        off = found.value - exact.value  # of the very same probes
        assert off > 0
        assert 0.4 * off < found.quadrature_error < 4 * off


@pytest.mark.parametrize(
    "least, status",
    [(1e-2, Status.OK), (3e-6, Status.NOT_POSITIVE), (-0.5, Status.NOT_POSITIVE)],
    ids=["positive", "below float32", "negative"],
)
def test_only_of_positive_operators(key, least, status):
    """One small eigenvalue, twelve in all: every probe finds it."""
    values = np.r_[np.linspace(0.1, 1, 11), least]
    found = logdet(Diagonal(jnp.asarray(values, jnp.float32)), key=key, num_steps=16)
    assert found.status == status
    assert np.isnan(found.value) == (status == Status.NOT_POSITIVE)
    np.testing.assert_allclose(found.smallest, least, atol=2e-6)


def test_a_damping_that_may_be_too_small_is_said(key):
    """The smallest Ritz value is positive, and its residual reaches below zero."""
    operator = Diagonal(jnp.asarray(np.r_[np.linspace(0.2, 30, 3000), 0.05], jnp.float32))
    found = logdet(operator, key=key, num_steps=8, num_probes=4)
    assert found.smallest > 0 > found.smallest - found.smallest_residual
    assert found.status == Status.NOT_CONVERGED and np.isfinite(found.value)


def test_targets(key):
    operator = Diagonal(jnp.linspace(1.0, 4.0, 400))
    solve = {"key": key, "num_steps": 16, "num_probes": 40}
    found = logdet(operator, absolute_error=4.0, **solve)
    assert found.status == Status.OK and found.standard_error <= 4
    assert 4 <= found.num_products // 16 < 40
    same = logdet(operator, relative_error=4.0 / float(found.value), **solve)
    assert same.num_products == found.num_products
    missed = logdet(operator, relative_error=1e-6, **solve)
    assert missed.status == Status.NOT_CONVERGED and missed.num_products == 640


def test_a_population_with_one_that_is_not_finite():
    stacked = Diagonal(jnp.stack([jnp.linspace(1.0, 2.0, 50), jnp.full(50, jnp.nan)]))
    keys = jax.random.split(jax.random.key(0), 2)
    found = jax.vmap(lambda operator, key: logdet(operator, key=key))(stacked, keys)
    assert found.status.tolist() == [0, Status.NON_FINITE]
    assert np.isnan(found.value).tolist() == [False, True]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 3}, "num_steps must be a whole number >= 4, got 3"),
        ({"num_probes": 1}, "num_probes must be a whole number >= 4, got 1"),
        ({"absolute_error": np.inf}, "absolute_error must be a number >= 0 or None, got inf"),
        ({"key": None}, "key must be one random key"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=f"logdet: {message}"):
        logdet(Diagonal(jnp.ones(3)), **({"key": jax.random.key(0)} | options))
