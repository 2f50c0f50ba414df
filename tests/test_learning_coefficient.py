"""Local learning coefficients: quadratics of which Langevin dynamics is known in closed form, steps
included, then singular losses by integration, errors over many keys, and chains that fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import loops
from sharpjax.errors import UserError
from sharpjax.geometry import composed, local_learning_coefficient
from sharpjax.geometry.status import Status

H = np.array([0.5, 1.0, 2.0, 4.0])
N = 50
TEMPER = N / np.log(N)  # n beta
PULL = 3.0  # localization
STIFF = TEMPER * H + PULL


def bowl(w, batch):
    """A quadratic with the curvatures `H` at zero."""
    w = jnp.concatenate([w["a"], w["b"]])
    return jnp.mean(batch).astype(w.dtype) * jnp.sum(jnp.asarray(H, w.dtype) * w**2) / 2


ZERO = {"a": np.zeros(1), "b": np.zeros(3)}
ONES = np.ones(N)


def steps_to_settle(stiff, step_size, left=1e-4):
    """Until the variances are as they stay, but for a share of it."""
    return int(np.ceil(np.log(left) / (2 * np.log(np.max(np.abs(1 - step_size * stiff / 2))))))


@pytest.mark.parametrize("product", [0.1, 1.5])
def test_quadratics_in_closed_form(product, key, x64, strict):
    """The stationary variance of a step of size e is `1 / (a (1 - e a / 4))`, a the stiffness."""
    step_size = product / STIFF.max()
    variance = 1 / (STIFF * (1 - step_size * STIFF / 4))
    expected = np.sum(TEMPER * H * variance) / 2
    limit = np.sum(TEMPER * H / STIFF) / 2  # of infinitely small steps
    found = local_learning_coefficient(
        *(bowl, ZERO, ONES),
        key=key,
        step_size=step_size,
        localization=PULL,
        num_chains=200,
        num_steps=400,
        burn_in=steps_to_settle(STIFF, step_size),
    )
    # Of 200 chains: 4.5 standard errors, and the share that was not settled.
    bound = 4.5 * float(found.standard_error) + 1e-4 * expected
    assert bound < 0.1 * expected
    assert abs(found.value - expected) < bound
    assert abs(found.value - found.step_bias - limit) < bound
    np.testing.assert_allclose(found.step_bias, expected - limit, rtol=0.1)
    assert (int(found.status) == Status.OK) == (expected - limit < 0.1 * expected)
    assert float(found.loss) == 0 and found.chains.shape == (200,)
    # Without the pull it is half the number of parameters.
    assert limit == pytest.approx(np.sum(1 - PULL / STIFF) / 2)


def scattered(w, batch):
    """`|w - c|^2 / 2` of each example's own c: gradients of mini-batches have a noise of their own,
    which is the same everywhere."""
    return jnp.mean(jnp.sum(jnp.square(w - batch["c"]), axis=1)) / 2


def test_mini_batches_in_closed_form(key, x64):
    rng = np.random.default_rng(0)
    c, size, dim = rng.normal(size=(N, 2)), 5, 2
    step_size, stiff = 0.02, TEMPER + PULL
    # With replacement; the baseline is that of the same mini-batch, so only gradients are noisy.
    noise = np.var(c, axis=0).sum() / size
    injected = dim + step_size / 4 * TEMPER**2 * noise
    expected = TEMPER / 2 * injected / (stiff * (1 - step_size * stiff / 4))
    call = functools.partial(
        *(local_learning_coefficient, scattered, c.mean(axis=0), {"c": c}),
        key=key,
        step_size=step_size,
        localization=PULL,
        num_chains=200,
        num_steps=300,
        burn_in=steps_to_settle(stiff, step_size),
    )
    found = call(batch_size=size)
    bound = 4.5 * float(found.standard_error) + 1e-4 * expected
    assert abs(found.value - expected) < bound < 0.1 * expected
    np.testing.assert_allclose(
        found.loss, np.var(c, axis=0).sum() / 2, atol=5 / np.sqrt(200 * 300 * size)
    )
    whole = call()
    limit = TEMPER * dim / 2 / stiff
    assert abs(whole.value - whole.step_bias - limit) < 4.5 * float(whole.standard_error) + 1e-3
    # What mini-batches add is counted as a bias of the step: a little too much, by the pull.
    assert 0 < found.value - whole.value < found.step_bias
    assert found.step_bias - whole.step_bias < 1.5 * (found.value - whole.value)


def crossing(w, batch):
    return jnp.mean(batch) * jnp.square(w[0] * w[1])


def deep_linear(w, batch):
    return jnp.mean(batch) * jnp.square(w[0] * w[1] - 1) / 2


@pytest.mark.parametrize(
    ("loss", "centre", "step_size"), [(crossing, [0.0, 0.0], 2e-3), (deep_linear, [1.0, 1.0], 2e-3)]
)
def test_singular_losses_by_integration(loss, centre, step_size, key, x64):
    """A normal crossing, and a linear net of two layers: the mean over the tempered density, by a
    grid. (Both tend to 1 / 2 as n grows, the first only as `1 / log n`.)"""
    pull, temper = 2.0, 30.0
    axis = np.linspace(-6, 6, 1201)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij")) + np.reshape(centre, (2, 1, 1))
    levels = temper * np.asarray(loss(grid, ONES))
    away = np.sum((grid - np.reshape(centre, (2, 1, 1))) ** 2, axis=0)
    density = np.exp(-levels - pull * away / 2)
    truth = np.sum(levels * density) / np.sum(density)
    found = local_learning_coefficient(
        *(loss, np.array(centre), ONES),
        key=key,
        step_size=step_size,
        localization=pull,
        beta=temper / N,
        num_chains=256,
        num_steps=8000,
        burn_in=2000,
    )
    assert int(found.status) == Status.OK
    assert 0.1 < truth < 0.6 < len(centre) / 2
    # To first order in the step its bias is what is said, so what is left is no more than that.
    bound = 4.5 * float(found.standard_error) + float(found.step_bias)
    assert abs(found.value - truth) < bound < 0.15


def test_errors_are_the_spread_over_keys(x64):
    """Steps are so short that neighbours are nearly the same: the error knows."""
    keys = jax.random.split(jax.random.key(3), 300)
    found = jax.vmap(
        lambda key: local_learning_coefficient(
            *(bowl, ZERO, ONES),
            key=key,
            step_size=0.2 / STIFF.max(),
            localization=PULL,
            num_chains=4,
            num_steps=60,
            burn_in=100,
        )
    )(keys)
    spread = np.std(found.value, ddof=1)
    claimed = np.sqrt(np.mean(np.square(found.standard_error)))
    # Each variance is good to sqrt(2 / (dof)) of itself: 300 values, 900 degrees of freedom; chains
    # of a chi-square are skewed, so twice that; 3.5 of these.
    np.testing.assert_allclose(claimed, spread, rtol=0.25)
    # Taken for independent, the steps would claim several times less.
    assert claimed > 2 * np.sqrt(0.5 * len(H) / (4 * 60))


@pytest.mark.parametrize("product", [3.9, 4.1])
def test_steps_that_are_too_long(product, key, x64):
    found = local_learning_coefficient(
        *(bowl, ZERO, ONES),
        key=key,
        step_size=product / STIFF.max(),
        localization=PULL,
        num_chains=2,
        num_steps=300,
        burn_in=50,
    )
    assert int(found.status) == Status.NOT_CONVERGED
    assert found.step_bias > 0.5 * found.value > 0


def test_chains_that_leave(key):
    def cliff(w, batch):
        return jnp.mean(batch) * jnp.where(jnp.abs(w) < 0.5, w**2, jnp.nan)

    call = functools.partial(local_learning_coefficient, cliff, np.float32(0), np.float32(ONES))
    found = call(key=key, step_size=0.1, localization=0.0, num_steps=2000, num_chains=3)
    assert int(found.status) == Status.NON_FINITE and int(found.num_gradients) < 3 * 2500
    assert np.isnan(found.value) and np.isnan(found.standard_error) and np.isnan(found.chains).all()


def test_a_burn_in_that_is_too_short(key, x64):
    call = functools.partial(
        *(local_learning_coefficient, bowl, ZERO, ONES),
        key=key,
        step_size=0.01 / STIFF.max(),
        localization=PULL,
        num_chains=100,
        num_steps=400,
    )
    short = call(burn_in=0)
    assert int(short.status) == Status.NOT_CONVERGED
    assert short.drift > 0.2 * short.value
    settled = call(burn_in=3000)
    assert int(settled.status) == Status.OK and settled.drift < short.drift


def test_an_error_whose_square_leaves_float32(key):
    def run(scale):
        loss = jax.tree_util.Partial(
            lambda s, w, batch: s * jnp.mean(batch) * jnp.sum(w**2), jnp.float32(scale)
        )
        call = functools.partial(local_learning_coefficient, loss, np.zeros(2, np.float32))
        return call(np.float32(ONES), key=key, step_size=0.01, localization=1.0, num_steps=20)

    # So flat that the chains do not feel it: the value is as the scale is.
    some, less = run(2.0**-30), run(2.0**-100)
    np.testing.assert_allclose(less.value, some.value * 2.0**-70, rtol=1e-4)
    np.testing.assert_allclose(less.standard_error, some.standard_error * 2.0**-70, rtol=1e-4)


def test_one_chain_has_no_error(key, x64):
    found = local_learning_coefficient(
        *(bowl, ZERO, ONES), key=key, step_size=0.1 / STIFF.max(), localization=PULL, num_chains=1
    )
    assert np.isnan(found.standard_error) and np.isfinite(found.value)
    assert int(found.status) == Status.OK
    estimate = found.estimates()["local_learning_coefficient"]
    assert int(estimate.num_evaluations) == 1500 == int(found.num_gradients)


def conv_loss(params, batch):
    h = jax.lax.conv_general_dilated(batch["x"], params["kernel"], (1, 1), "SAME")
    return jnp.mean((jnp.tanh(h).mean(axis=(2, 3)) @ params["head"] - batch["y"]) ** 2)


def test_loop_forms_agree(key, x64):
    keys = jax.random.split(key, 4)
    params = {
        "kernel": jax.random.normal(keys[0], (4, 2, 3, 3), jnp.float64),
        "head": jax.random.normal(keys[1], (4, 2), jnp.float64),
    }
    batch = {
        "x": jax.random.normal(keys[2], (4, 2, 6, 6), jnp.float64),
        "y": jax.random.normal(keys[3], (4, 2), jnp.float64),
    }

    def call(params):
        return local_learning_coefficient(
            *(conv_loss, params, batch),
            key=key,
            step_size=1e-3,
            localization=1.0,
            num_chains=2,
            num_steps=8,
            burn_in=2,
            batch_size=2,
        )

    host = call(params)
    choose, loops.choose_form = loops.choose_form, lambda *_: "device"
    try:  # side by side, in a host loop
        beside = call(params)
    finally:
        loops.choose_form = choose
    for a, b in zip(host, beside, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_another_temperature_compiles_nothing(key, compilations):
    w, batch = jax.tree.map(np.float32, (ZERO, ONES))
    for scale in (1.0, 0.9):
        compilations.clear()
        local_learning_coefficient(
            *(bowl, w, batch),
            key=key,
            step_size=0.01 * scale,
            localization=PULL * scale,
            beta=scale,
            num_steps=int(20 * scale),
            burn_in=int(10 * scale),
        )
    assert not [name for name in compilations if "loop" in name or "start" in name]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step_size": 0.0}, "step_size must be one finite number > 0, got 0.0"),
        ({"localization": -1.0}, "localization must be one finite number >= 0, got -1.0"),
        ({"beta": np.inf}, "beta must be one finite number > 0"),
        ({"num_chains": 0}, "num_chains must be a whole number >= 1"),
        ({"num_steps": 1}, "num_steps must be a whole number >= 2"),
        ({"burn_in": -1}, "burn_in must be a whole number >= 0"),
        ({"batch_size": 0.5}, "batch_size must be a whole number >= 1"),
        ({"key": 3}, "key must be one random key"),
        ({"batch": np.ones(1)}, "beta is 1 / log n, and n is 1; give beta"),
        ({"loss": lambda w, b: bowl(w, b) * len(b), "batch_size": 5}, ".* batch_size=5"),
    ],
)
def test_impossible_arguments(wrong, message, key):
    given = {"loss": bowl, "params": ZERO, "batch": ONES, "key": key, "step_size": 0.1}
    with (
        jax.enable_x64(True),
        pytest.raises(UserError, match=f"^local_learning_coeff.*: {message}"),
    ):
        local_learning_coefficient(**{**given, "localization": 1.0, **wrong})


def test_weighted_means_are_not_cut(key):
    def weighted(outputs, batch):
        return jnp.sum(batch * outputs**2) / jnp.sum(batch)

    loss = composed(
        lambda w, batch: w * batch, weighted, example_weight=lambda batch: jnp.abs(batch)
    )
    call = functools.partial(
        *(local_learning_coefficient, loss, np.float32(1), np.float32(ONES)),
        key=key,
        step_size=0.001,
        localization=1.0,
    )
    with pytest.raises(UserError, match="declares weights.*leave batch_size out"):
        call(batch_size=5)


def test_examples_of_no_weight_are_none(x64, key):
    """Padding changes no number, traced or not: neither n nor the default beta counts it."""

    def weighted(outputs, batch):
        return jnp.sum(batch * outputs**2) / jnp.sum(batch) / 2

    loss = composed(lambda w, b: w + 0 * b, weighted, example_weight=lambda b: b)
    call = functools.partial(
        *(local_learning_coefficient, loss, np.float64(0)),
        **{"key": key, "step_size": 0.01, "localization": 1.0, "num_steps": 20, "burn_in": 5},
    )
    padded = jnp.asarray(np.r_[np.ones(50), np.zeros(50)])
    expected = call(jnp.ones(50)).value
    for found in (call(padded), jax.jit(call)(padded)):
        np.testing.assert_allclose(found.value, expected, rtol=1e-10)
    with pytest.raises(UserError, match="beta is 1 / log n, and n is 1; give beta"):
        call(jnp.asarray([1.0, 0.0]))


@pytest.mark.parametrize(
    ("centre", "step_size", "pull"),
    [(np.zeros(4), 1e-6, 1.0), (np.full(4, 1e5), 1e-12, 0.0)],
    ids=["few steps", "steps below rounding"],
)
def test_chains_that_have_not_filled_their_space_say_so(centre, step_size, pull, key):
    """The value is far below the truth of nearly d / 2, and all but still."""
    found = local_learning_coefficient(
        *(lambda w, b: jnp.mean(b) * jnp.sum((w - centre) ** 2) / 2, centre.astype("f4"), ONES),
        key=key,
        step_size=step_size,
        localization=pull,
    )
    assert found.value < 0.1 and found.status == Status.NOT_CONVERGED
    truth = np.sum(TEMPER / (2 * (TEMPER + pull)) * np.ones(4))
    assert found.value + found.missing > 0.9 * truth
