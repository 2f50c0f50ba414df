"""The radius of noise that the loss stands: closed forms within the errors that are stated, then
losses that jump, are bounded, or are rounded."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import perturbation
from sharpjax.errors import UserError
from sharpjax.geometry import Status, average_sharpness, flat_radius

# Within 5 standard errors: 6e-7 of all keys fall outside.
ERRORS = 5
FACTOR = {"gaussian": 1 / 2, "uniform": 1 / 6, "sphere": 1 / 20}


def quadratic(matrix, slope, params, batch):
    w = jnp.concatenate([params["a"], params["b"].reshape(-1)])
    return w @ matrix @ w / 2 + w @ slope + jnp.mean(batch)


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(10, 10))
    matrix = jnp.asarray(matrix @ matrix.T)
    params = {"a": jnp.asarray(rng.normal(size=4)), "b": jnp.asarray(rng.normal(size=(2, 3)))}
    return Partial(quadratic, matrix, jnp.asarray(rng.normal(size=10))), params, matrix


@pytest.mark.parametrize("noise", FACTOR)
@pytest.mark.parametrize("scaling", [perturbation.none(), perturbation.element()])
def test_quadratics(x64, strict, key, noise, scaling):
    """`factor rho^2 tr(THT) = target`; and `average_sharpness`, whose draws are the same, is there
    the target."""
    loss, params, matrix = problem()
    scale = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])
    scale = jnp.abs(scale) if scaling == perturbation.element() else jnp.ones(10)
    truth = jnp.sqrt(0.3 / (FACTOR[noise] * jnp.sum(scale**2 * jnp.diag(matrix))))
    how: Any = dict(key=key, noise=noise, scaling=scaling)
    found = flat_radius(loss, params, jnp.ones(6), target=0.3, num_pairs=400, **how)
    assert found.status == Status.OK
    assert found.low <= found.value <= found.high <= 1.02 * found.low
    assert abs(found.value - truth) <= ERRORS * found.standard_error
    assert found.standard_error < 0.1 * truth
    assert found.estimates()["flat_radius"].standard_error >= found.standard_error
    # The guess is exact, so a radius above it and one below it follow the first, unless it is more
    # than a factor of 16 away.
    far = 1 + np.ceil(np.log(truth / 0.01) / np.log(16))
    assert int(found.num_losses) <= 1 + (2 + far) * 800
    rise = average_sharpness(loss, params, jnp.ones(6), rho=found.value, max_pairs=400, **how)
    np.testing.assert_allclose(rise.value, 0.3, rtol=1e-9)


def errors(w, batch):
    return jnp.mean(w < 0) * jnp.mean(batch)


def test_the_radius_at_which_accuracy_is_lost(x64, key):
    """Without derivatives: weights 1 with noise are negative with probability `Phi(-1 / rho)`."""
    w, batch = jnp.ones(2000), jnp.ones(4)
    found = flat_radius(errors, w, batch, key=key, target=0.1)
    value, error = np.asarray(found.estimates()["flat_radius"][:2])
    assert found.status == Status.OK and abs(value - 1 / 1.2815515655446004) <= ERRORS * error
    # A share p of n draws has deviation sqrt(p (1 - p) / n), less in pairs, and the slope of
    # `Phi(-1 / rho)` there is 0.288.
    # The interval adds 2 % at the most.
    assert error < 2 * (0.09 / 64_000) ** 0.5 / 0.288 + 0.02 * value


def power(exponent, w, batch):
    return jnp.mean(batch) * jnp.sum(jnp.abs(w) ** exponent)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("first_rho", [1e-6, 1.0, 1e5])
def test_other_powers(x64, key, exponent, first_rho):
    """From any first radius: `rho^p E|u|^p = target` at the draws that there are."""
    problem = Partial(power, exponent), jnp.zeros(3), jnp.ones(4)
    found = flat_radius(*problem, key=key, target=0.01, first_rho=first_rho, num_pairs=4)
    assert found.status == Status.OK and found.high <= 1.02 * found.low
    at_one = average_sharpness(*problem, key=key, rho=1.0, max_pairs=4)
    truth = (0.01 / at_one.value) ** (1 / exponent)
    assert found.low <= truth * (1 + 1e-12) and truth <= found.high * (1 + 1e-12)


def bounded(height, w, batch):
    return height * jnp.mean(batch) * (1 - jnp.exp(-jnp.sum(w**2)))


def test_no_bracket(key):
    """A loss that never rises so far; one that had not risen by the largest radius."""
    w, batch = jnp.zeros(5), jnp.ones(4)
    found = flat_radius(Partial(bounded, 0.05), w, batch, key=key, target=0.1)
    assert found.status == Status.NOT_CONVERGED and found.high == jnp.inf
    assert found.low == 2.0**20 and np.isnan(found.value) and np.isnan(found.standard_error)
    near = flat_radius(Partial(bounded, 1.0), w, batch, key=key, target=0.1, largest_rho=0.02)
    np.testing.assert_array_equal(near.low, np.float32(0.02))
    assert near.status == Status.NOT_CONVERGED and near.high == jnp.inf
    short = flat_radius(Partial(bounded, 1.0), w, batch, key=key, target=0.1, max_tries=2)
    assert short.status == Status.NOT_CONVERGED and short.low < short.high


def cliff(w, batch):
    return jnp.mean(batch) * jnp.where(jnp.abs(w) < 1, w**2, jnp.inf)


def test_a_cliff(key):
    """Where the loss is infinite the target is passed; how the cliff spreads is not known."""
    found = flat_radius(cliff, jnp.float32(0), jnp.ones(4), key=key, target=9.0)
    assert found.status == Status.OK and found.low < found.high <= 1.02 * found.low
    assert np.isfinite(found.value) and np.isnan(found.standard_error)


def offset(height, w, batch):
    return height + jnp.mean(batch) * jnp.sum(jnp.square(w - 1e4))


def test_what_cannot_be_resolved(key):
    w, batch = jnp.full(5, 1e4), jnp.ones(4)
    assert (
        flat_radius(Partial(offset, 1e6), w, batch, key=key, target=0.1).status == Status.BREAKDOWN
    )  # the loss is rounded to 0.06
    assert (
        flat_radius(Partial(offset, 0.0), w, batch, key=key, target=1e-6).status == Status.BREAKDOWN
    )  # weights are rounded to 1e-3
    assert (
        flat_radius(Partial(offset, jnp.nan), w, batch, key=key, target=0.1).status
        == Status.NON_FINITE
    )


def test_targets_in_lanes_compile_once(x64, key, compilations):
    loss, params, _ = problem()

    def call(target):
        return flat_radius(loss, params, jnp.ones(6), key=key, target=target, num_pairs=8)

    lanes = jax.vmap(call)(jnp.array([0.01, 0.1, -1.0]))
    assert lanes.status.tolist() == [Status.OK, Status.OK, Status.NON_FINITE]
    alone = [call(0.01), call(0.1)]
    np.testing.assert_allclose(lanes.value[:2], [x.value for x in alone], rtol=1e-9)
    compilations.clear()
    call(0.2)
    assert not compilations


def test_refuses_what_is_no_function_of_the_parameters(key):
    def constant(w, batch):
        return jnp.mean(batch)

    with pytest.raises(UserError, match="flat_radius: the loss does not depend on params. Compute"):
        flat_radius(constant, jnp.ones(3), jnp.ones(4), key=key, target=0.1)


@pytest.mark.parametrize(
    "bad",
    [
        dict(target=0.0),
        dict(target=0.1, noise="normal"),
        dict(target=0.1, first_rho=2.0, largest_rho=1.0),
        dict(target=0.1, num_pairs=1),
        dict(target=0.1, scaling=3),
        dict(target=0.1, relative_error=-1.0),
    ],
)
def test_refuses(key, bad: Any):
    with pytest.raises(UserError, match="flat_radius|noise"):
        flat_radius(errors, jnp.ones(3), jnp.ones(4), key=key, **bad)
