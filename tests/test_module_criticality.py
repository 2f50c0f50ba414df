"""How far one layer may be moved to its start, and with how much noise: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from sharpjax.layerwise import criticality

SIZE = 4000
SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WITH_INTEGERS = {"layer": {"w": jnp.ones(4)}, "other": {"w": jnp.ones(3)}, "count": jnp.arange(3)}


def loss(params, batch):
    """mean (w - 1)^2 of the layer, where the other one is 1. So with noise

    E L = (1 - alpha)^2 + sigma^2.
    """
    wrong = jnp.sum(jnp.square(params["other"]["w"] - 1))
    return jnp.mean(batch) * (jnp.mean(jnp.square(params["layer"]["w"] - 1)) + wrong)


def two():
    """Trained and initial parameters, in the precision of the test."""
    trained = {"layer": {"w": jnp.ones(SIZE)}, "other": {"w": jnp.ones(3)}}
    return trained, {"layer": {"w": jnp.zeros(SIZE)}, "other": {"w": 7 * jnp.ones(3)}}


def curve(layer, **options):
    return criticality.interpolation(loss, *two(), layer, jnp.ones(2), **options)


def of_layer(epsilon, key=0, **options):
    options = {"sigmas": SIGMAS, "num_draws": 20} | options
    return criticality.module_criticality(
        loss, *two(), "layer", jnp.ones(2), epsilon=epsilon, key=jax.random.key(key), **options
    )


def test_a_quadratic_loss(x64, strict):
    found = of_layer(0.305)
    exact = (1 - found.alphas[:, None]) ** 2 + found.sigmas**2
    assert found.loss.shape == (11, 6)
    # The error is known to 1 part in 6, of 20 draws.
    assert np.all(np.abs(found.loss - exact) <= 10 * found.standard_error)
    # Of the mean over SIZE entries of 2 (1 - alpha) sigma z + sigma^2 z^2, whose variances add up.
    deviation = np.sqrt(4 * exact * found.sigmas**2 - 2 * found.sigmas**4) / np.sqrt(SIZE)
    ratio = found.standard_error * 20**0.5 / deviation
    assert np.all((ratio > 1 / 3) & (ratio < 3))
    # By hand: sigma = 0.5 is borne from alpha = 0.8 on, and no other pair is cheaper. No mean is
    # within .015 of epsilon, ten deviations or more.
    assert np.min(np.abs(exact - 0.305)) > 0.0149
    assert (found.alpha, found.sigma) == (0.8, 0.5)
    assert found.value == pytest.approx(0.8**2 * SIZE / 0.5**2, rel=1e-12)
    assert found.low == found.value == found.high
    assert found.distance == pytest.approx(SIZE**0.5, rel=1e-12) and not found.at_edge


def test_the_bounds_of_what_is_borne():
    nowhere = of_layer(-1.0)
    assert nowhere.value == nowhere.low == nowhere.high == np.inf
    assert np.isnan(nowhere.alpha) and not nowhere.at_edge
    anything = of_layer(1e9)
    assert (anything.value, anything.alpha, anything.sigma) == (0.0, 0.0, 0.6)
    assert anything.at_edge
    one = of_layer(0.305, num_draws=1)
    assert np.isnan([one.low, one.high]).all() and np.isnan(one.standard_error).all()
    assert one.value == of_layer(0.305, num_draws=1).value


def test_what_the_draws_leave_open():
    """With epsilon at the mean of a point itself, two errors more do not bear it."""
    first = of_layer(0.305)
    i, j = 8, 4  # alpha = 0.8, sigma = 0.5
    found = of_layer(float(first.loss[i, j]))
    assert found.value == pytest.approx((0.8 / 0.5) ** 2 * SIZE, rel=1e-6)
    assert found.low <= found.value < found.high


def test_a_layer_that_never_moved():
    trained, _ = two()
    found = criticality.module_criticality(
        loss, trained, trained, "layer", jnp.ones(2), epsilon=0.5, key=jax.random.key(0),
        sigmas=SIGMAS, num_draws=2,
    )  # fmt: skip
    assert (found.value, found.distance, found.alpha) == (0.0, 0.0, 0.0)


def wrong(params, batch):
    """A share, as an error rate is: finite whatever the parameters."""
    return jnp.mean(batch) * jnp.mean(params["layer"]["w"] > 0.5)


def test_losses_without_a_number_are_no_infinite_criticality():
    """Infinity says that no point bears the noise. Where the losses are NaN nothing is said."""

    def nowhere(params, batch):
        return jnp.nan * loss(params, batch)

    found = criticality.module_criticality(
        nowhere, *two(), "layer", jnp.ones(2), epsilon=0.3, key=jax.random.key(0),
        sigmas=SIGMAS, num_draws=2,
    )  # fmt: skip
    assert np.isnan([found.value, found.low, found.high, found.alpha, found.sigma]).all()
    with pytest.raises(geometry.NotOk, match="not finite"):
        geometry.check(found)
    assert geometry.check(of_layer(-1.0)).value == np.inf


@pytest.mark.parametrize("where", ["layer", "other"])
@pytest.mark.parametrize("which", ["trained", "initial"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_parameters_that_are_not_finite(where, which, number):
    """A loss may be finite there: an error rate is, whatever the outputs."""
    trained, start = two()
    spoilt = trained if which == "trained" else start
    spoilt[where]["w"] = spoilt[where]["w"].at[1].set(number)
    found = criticality.module_criticality(
        wrong, trained, start, "layer", jnp.ones(2),
        epsilon=1.0, key=jax.random.key(0), sigmas=SIGMAS, num_draws=2,
    )  # fmt: skip
    if (where, which) == ("other", "initial"):  # of which nothing is taken
        assert found.status == geometry.Status.OK and found.value == 0
        return
    assert found.status == geometry.Status.NON_FINITE
    assert np.isnan([found.value, found.low, found.high, found.alpha, found.sigma]).all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_at_some_points(number):
    """These do not bear the noise; the least of the others is found, and the status tells."""

    def breaks(params, batch):
        value = loss(params, batch)
        return jnp.where(value < 0.5, value, number)

    found = criticality.module_criticality(
        breaks, *two(), "layer", jnp.ones(2), epsilon=0.305, key=jax.random.key(0),
        sigmas=SIGMAS, num_draws=20,
    )  # fmt: skip
    assert found.status == geometry.Status.NON_FINITE
    assert found.value == found.low == found.high == of_layer(0.305).value < np.inf
    none = criticality.module_criticality(
        breaks, *two(), "layer", jnp.ones(2), epsilon=-1.0, key=jax.random.key(0),
        sigmas=SIGMAS, num_draws=2,
    )  # fmt: skip
    expected = np.nan if np.isnan(number) else np.inf
    np.testing.assert_array_equal([none.value, none.low, none.high], expected)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_way_whose_squares_are_no_float32(size):
    """|theta_F - theta_0| = size sqrt(SIZE), rounded once: u = 2^-24, and as much in each entry."""
    trained, start = two()
    trained["layer"]["w"] = jnp.full(SIZE, size, jnp.float32)
    found = criticality.interpolation(wrong, trained, start, "layer", jnp.ones(2), alphas=[0.5])
    assert found.distance / size == pytest.approx(SIZE**0.5, rel=2**-22)


def test_the_way_of_one_layer(x64, strict):
    found = curve("layer")
    np.testing.assert_allclose(found.loss, (1 - found.alpha) ** 2, atol=1e-12)
    assert found.distance == pytest.approx(SIZE**0.5, rel=1e-12)
    np.testing.assert_allclose(curve("other", alphas=[0.0, 0.5, 1.0]).loss, [108, 27, 0])
    both = curve("all", alphas=[0.5], groups={"all": "*"})
    np.testing.assert_allclose(both.loss, [27.25])


def test_all_layers_are_one_program(compilations):
    places = np.linspace(0, 1, 7)  # as many as in no other test
    curve("layer", alphas=places)
    curve("other", alphas=places)
    assert len([name for name in compilations if "_loop" in name]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alphas": [0, 1.5]}, r"alphas=\[0, 1.5\]; give a list of numbers in \[0, 1\]"),
        ({"sigmas": [0, 0.5]}, r"in \(0, 1\]"),
        ({"sigmas": []}, "sigmas="),
        ({"num_draws": 0}, "num_draws must be a whole number >= 1"),
        ({"epsilon": np.nan}, "epsilon=nan"),
        ({"key": 3}, "key must be one random key"),
        ({"layer": "lay"}, "unknown layer .*did you mean 'layer'"),
        ({"alphas": [0, np.nan]}, r"alphas=\[0, nan\]; give a list of numbers in \[0, 1\]"),
        ({"alphas": []}, r"alphas=\[\]"),
        ({"alphas": "abc"}, "alphas='abc'"),
        ({"alphas": [0, [1]]}, "alphas="),
        ({"sigmas": [0.5, None]}, "sigmas="),
        ({"epsilon": "a"}, "epsilon='a'; give a finite number"),
        ({"epsilon": [0.5]}, "epsilon="),
        ({"initial": {"layer": {"w": jnp.ones(2)}}}, "initial must have the tree structure"),
        ({"layer": ["layer"]}, r"unknown layer"),
        ({"groups": {"layer": "Foo/*"}}, "no leaf is named 'Foo/"),
        ({"groups": 3}, "groups is an int"),
        ({"batch": jnp.ones(0)}, "the batch is empty"),
        ({"microbatch_size": 3}, "3"),
        ({"loss": lambda params, batch: batch}, "scalar"),
        ({"params": WITH_INTEGERS, "initial": WITH_INTEGERS}, r"'count' is int32\[3\]"),
    ],
)
def test_what_is_refused(options, words):
    trained, start = two()
    own = {"loss": loss, "params": trained, "initial": start, "layer": "layer"}
    own |= {"batch": jnp.ones(2), "epsilon": 0.3, "key": jax.random.key(0)}
    with pytest.raises(UserError, match=words) as error:
        criticality.module_criticality(**own | options)
    assert str(error.value).count("criticality.module_criticality") == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alphas": [0, np.nan]}, r"alphas=\[0, nan\]; give a list of finite numbers"),
        ({"alphas": [0, np.inf]}, "alphas="),
        ({"alphas": []}, r"alphas=\[\]"),
        ({"alphas": 0.5}, "alphas=0.5"),
        ({"layer": "lay"}, "unknown layer .*did you mean 'layer'"),
        ({"initial": {}}, "initial must have the tree structure"),
        ({"batch": jnp.ones(0)}, "the batch is empty"),
        ({"params": WITH_INTEGERS, "initial": WITH_INTEGERS}, r"'count' is int32\[3\]"),
    ],
)
def test_what_an_interpolation_refuses(options, words):
    trained, start = two()
    own = {"loss": loss, "params": trained, "initial": start, "layer": "layer"}
    with pytest.raises(UserError, match=words) as error:
        criticality.interpolation(**own | {"batch": jnp.ones(2)} | options)
    assert str(error.value).count("criticality.interpolation") == 1
    assert "\n" not in str(error.value)
