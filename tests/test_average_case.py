"""Average-case sharpness against closed forms, within the errors that it states."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import perturbation
from sharpjax.errors import UserError
from sharpjax.geometry import Status, average_sharpness
from sharpjax.geometry.sharpness import directional

# Within 5 standard errors: 6e-7 of all keys fall outside.
ERRORS = 5


def quadratic(matrix, slope, params, batch):
    w = jnp.concatenate([params["a"], params["b"].reshape(-1)])
    return w @ matrix @ w / 2 + w @ slope + jnp.mean(batch)


def problem(slope=0.0):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(10, 10))
    matrix = jnp.asarray(matrix + matrix.T)
    params = {"a": jnp.asarray(rng.normal(size=4)), "b": jnp.asarray(rng.normal(size=(2, 3)))}
    loss = Partial(quadratic, matrix, slope * jnp.asarray(rng.normal(size=10)))
    return loss, params, jnp.ones(6), matrix


@pytest.mark.parametrize(
    "noise, factor", [("gaussian", 1 / 2), ("uniform", 1 / 6), ("sphere", 1 / 20)]
)
@pytest.mark.parametrize("scaling", [perturbation.none(), perturbation.element()])
def test_quadratics(x64, key, noise, factor, scaling):
    loss, params, batch, matrix = problem(slope=30.0)
    scale = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])
    scale = jnp.abs(scale) if scaling == perturbation.element() else jnp.ones(10)
    truth = 0.09 * factor * jnp.sum(scale**2 * jnp.diag(matrix))
    found = average_sharpness(
        *(loss, params, batch), key=key, rho=0.3, noise=noise, scaling=scaling, max_pairs=3000
    )
    assert found.status == Status.OK and found.num_pairs == 3000
    assert abs(found.value - truth) <= ERRORS * found.standard_error
    assert found.standard_error < 0.2 * 0.09 * factor * jnp.linalg.norm(matrix)


def linear(slope, w, batch):
    return w @ slope + jnp.mean(batch)


def test_the_slope_has_no_part_in_the_value(x64, key):
    slope = jnp.arange(1.0, 101.0)
    size = jnp.linalg.norm(slope)
    measure = functools.partial(average_sharpness, Partial(linear, slope), jnp.ones(100))
    found = measure(jnp.ones(4), key=key, rho=0.1, max_pairs=4000)
    # Rounding alone: of losses some 1e3 in size.
    assert abs(found.value) <= found.standard_error < 1e-10
    # g'e is normal with deviation rho |g|: of n squares the relative error of the root is
    # 1 / sqrt(2 n), of n absolute values sqrt(pi / 2 - 1) / sqrt(n).
    np.testing.assert_allclose(found.slope_part, 0.1 * size, rtol=ERRORS / 8000**0.5)
    mean = 0.1 * size * (2 / np.pi) ** 0.5
    np.testing.assert_allclose(found.absolute, mean, rtol=ERRORS * 0.756 / 4000**0.5)
    np.testing.assert_allclose(found.length, 0.1 * 10, rtol=ERRORS / (2 * 4000 * 100) ** 0.5)
    assert found.largest >= 0.1 * size


def bowl(w, batch):
    return jnp.mean(batch) * jnp.sum(w**2)


def test_a_sweep_compiles_once(key, compilations):
    w, batch = jnp.ones(50), jnp.ones(4)
    first = average_sharpness(bowl, w, batch, key=key, rho=0.1, noise="sphere")
    compilations.clear()
    rest = [
        average_sharpness(bowl, w, batch, key=key, rho=rho, noise="sphere") for rho in (0.5, 1.0)
    ]
    assert not compilations
    radii = jnp.array([0.1, 0.5, 1.0])
    lanes = jax.vmap(
        lambda rho: average_sharpness(bowl, w, batch, key=key, rho=rho, noise="sphere")
    )(radii)
    for one, lane, rho in zip([first, *rest], lanes.value, radii, strict=True):
        assert abs(one.value - rho**2) <= ERRORS * one.standard_error
        assert abs(lane - rho**2) <= ERRORS * one.standard_error
        np.testing.assert_allclose(one.length, rho, rtol=1e-5)


def test_it_stops_where_the_error_is_met(key):
    w, batch = jnp.ones(50), jnp.ones(4)
    found = average_sharpness(bowl, w, batch, key=key, rho=1.0, relative_error=0.1, max_pairs=999)
    assert found.status == Status.OK and 16 <= found.num_pairs < 999
    assert found.standard_error <= 0.1 * found.value
    short = average_sharpness(bowl, w, batch, key=key, rho=1.0, relative_error=1e-6, max_pairs=20)
    assert short.status == Status.NOT_CONVERGED and short.num_pairs == 20


def test_microbatches_and_a_radius_of_zero(x64, key):
    loss = Partial(lambda c, w, batch: jnp.mean((batch @ w) ** 4) * c, jnp.float64(1.0))
    rng = np.random.default_rng(1)
    w, batch = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(8, 3)))
    measure = functools.partial(average_sharpness, loss, w, batch, key=key, max_pairs=20)
    whole, cut = measure(rho=0.2), measure(rho=0.2, microbatch_size=2)
    np.testing.assert_allclose(whole.value, cut.value, rtol=1e-10)
    zero = measure(rho=0.0)
    assert zero.value == zero.standard_error == zero.length == 0 and zero.status == Status.OK


def test_a_radius_below_the_resolution_is_named(key):
    """Of weights of 1,000 in float32, the last place is 6e-5."""
    w, batch = jnp.full(200, 1000.0), jnp.ones(4)
    found = average_sharpness(bowl, w, batch, key=key, rho=1e-5)
    assert found.status == Status.BREAKDOWN and found.lost_fraction > 0.9
    fine = average_sharpness(bowl, w, batch, key=key, rho=1e-1)
    assert fine.status == Status.OK and fine.lost_fraction < 0.01


def test_pruned_weights_stay(x64, key):
    w, batch = jnp.concatenate([jnp.zeros(50), jnp.ones(50)]), jnp.ones(4)
    found = average_sharpness(
        *(bowl, w, batch), key=key, rho=0.5, noise="sphere", scaling=perturbation.element()
    )
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value, 0.25, rtol=1e-10)  # the sphere of the other 50


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "sphere"])
@pytest.mark.parametrize(
    "scaling",
    [
        perturbation.element(),
        perturbation.filters(),
        perturbation.layers(),
        perturbation.support(),
        perturbation.only("a", perturbation.element()),
    ],
)
def test_where_no_weight_moves_nothing_rises(noise, scaling, key):
    """All weights that have a unit are zero, and so is it."""
    params, batch = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, jnp.ones(4)
    loss = lambda w, batch: jnp.mean(batch) * jnp.sum(jnp.exp(w["a"]))  # noqa: E731
    found = average_sharpness(
        *(loss, params, batch), key=key, rho=0.5, noise=noise, scaling=scaling, max_pairs=4
    )
    assert found.status == Status.OK and found.num_pairs == 4
    assert found.value == found.slope_part == found.absolute == found.largest == 0
    assert found.length == found.lost_fraction == 0 and found.loss == 6
    # What is left is what losses at one and the same point may differ by.
    assert found.standard_error <= directional.rounding(params) * found.loss


@dataclasses.dataclass(frozen=True)
class Signed:
    """Units with the sign of the weight."""

    def __call__(self, params, /):
        return params


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "sphere"])
def test_the_sign_of_a_unit_counts_for_nothing(x64, key, noise):
    """Of a quadratic that is even in each weight, the same draws give the same rise."""
    w, batch = jnp.array([2.0, -1.0, 0.0, -3.0]), jnp.ones(4)
    loss = Partial(lambda at, w, batch: jnp.mean(batch) * jnp.sum((w - at) ** 2), w)
    how = dict(key=key, rho=0.3, noise=noise, max_pairs=20)
    found, right = (
        average_sharpness(loss, w, batch, scaling=scaling, **how)  # pyright: ignore[reportArgumentType]
        for scaling in (Signed(), perturbation.element())
    )
    assert found.status == Status.OK and found.value > 0
    for name in ("value", "standard_error", "absolute", "largest", "length"):
        # Of 4 terms, each a difference of weights that are ten times as large.
        np.testing.assert_allclose(getattr(found, name), getattr(right, name), rtol=1e-13)
    everything = jnp.full(4, -2.0)
    found = average_sharpness(bowl, everything, batch, scaling=Signed(), **how)  # pyright: ignore[reportArgumentType]
    assert found.status == Status.OK and found.length > 0


def test_what_is_not_finite(key):
    found = average_sharpness(lambda w, _: jnp.log(w[0]), jnp.ones(1), None, key=key, rho=9.0)
    assert found.status == Status.NON_FINITE


def test_rounding_of_the_losses_counts_to_the_error_that_was_asked_for(key):
    """Of a loss of 1,000 in float32 the difference is known to 2e-3, and the value is 5e-3."""
    loss = lambda w, batch: 1e3 + jnp.mean(batch) * jnp.sum(w**2)  # noqa: E731
    found = average_sharpness(
        *(loss, jnp.ones(50), jnp.ones(4)), key=key, rho=1e-2, relative_error=0.1, max_pairs=100
    )
    assert found.standard_error > 0.1 * jnp.abs(found.value)
    assert found.status == Status.NOT_CONVERGED


def test_a_loss_that_is_not_finite_has_no_sharpness(key):
    loss = lambda w, batch: jnp.mean(batch) * jnp.log(-jnp.sum(w**2))  # noqa: E731
    found = average_sharpness(loss, jnp.ones(5), jnp.ones(4), key=key, rho=0.1)
    assert found.status == Status.NON_FINITE and jnp.isnan(found.value)


def test_wrong_arguments(key):
    with pytest.raises(UserError, match="noise"):
        average_sharpness(bowl, jnp.ones(2), jnp.ones(2), key=key, rho=1.0, noise="laplace")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="average_sharpness: rho"):
        average_sharpness(bowl, jnp.ones(2), jnp.ones(2), key=key, rho=-1.0)
