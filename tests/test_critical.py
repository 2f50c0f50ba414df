"""Critical sharpness: quadratics first, then losses that bend, jump, never rise or never fall."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry import critical_sharpness, directional_sharpness
from sharpjax.geometry.sharpness import critical
from sharpjax.geometry.status import Status
from tests.problems import awkward_loss, awkward_net


def quadratic(w, problem):
    H, g = problem["H"][0], problem["g"][0]
    return jnp.dot(g, w) + jnp.dot(w, jnp.dot(H, w)) / 2 + 10


def problems(count, size=6):
    """Random quadratics with a direction that descends, and their `d'Hd / -g'd`."""
    rng = np.random.default_rng(0)
    H = rng.normal(size=(count, size, size))
    H = np.einsum("nij,nkj->nik", H, H)
    g, d = rng.normal(size=(2, count, size))
    d *= -np.sign(np.einsum("ni,ni->n", g, d))[:, None]
    truth = np.einsum("ni,nij,nj->n", d, H, d) / -np.einsum("ni,ni->n", g, d)
    return {"H": H[:, None], "g": g[:, None]}, d, truth


@pytest.mark.parametrize(("relative_error", "losses"), [(0.1, 5), (0.01, 5), (1e-6, 5)])
def test_quadratics(relative_error, losses, x64, strict):
    """The interval holds the truth, `value` is exact, and the passes are as many as promised."""
    batch, d, truth = problems(40)

    def call(batch, d):
        return critical_sharpness(quadratic, jnp.zeros(6), batch, d, relative_error=relative_error)

    found = jax.tree.map(np.asarray, jax.vmap(call)(batch, d))
    assert (found.status == Status.OK).all()
    assert (found.low <= truth).all() and (truth <= found.high).all()
    assert (found.high - found.low <= relative_error * found.value).all()
    # Differences of losses near 10 are rounded to 2e-15 or so; they are as large as the descent.
    depth = np.min(-np.einsum("ni,ni->n", batch["g"][:, 0], d) / truth / 2)
    np.testing.assert_allclose(found.value, truth, rtol=1e-13 / depth)
    away = np.floor(np.log2(2 / truth))
    expected = losses + np.abs(away)
    # At a bracket just as wide as is asked for, one more or less.
    assert (np.abs(found.num_losses - expected) <= 2).all()
    np.testing.assert_allclose(np.median(found.num_losses - expected), 0, atol=1)


@pytest.mark.parametrize("first_step", [0.25, 1.0, 8.0])
def test_a_step_that_is_hit_exactly(first_step):
    """The loss is back at its start to the bit: the bracket is closed round that step."""

    def loss(w, _):
        return w**2

    found = critical_sharpness(
        loss, jnp.float32(1), None, jnp.float32(-2), first_step=first_step, relative_error=0.01
    )
    assert found.low <= 2 <= found.high <= 1.01 * found.low and int(found.status) == Status.OK
    assert int(found.num_losses) <= 6 + abs(math.log2(first_step))


def test_float32_intervals_hold_the_truth():
    """Also those that rounding keeps from closing, whose status says so."""
    batch, d, truth = problems(60)
    batch, d32 = jax.tree.map(np.float32, (batch, d))
    slope = -np.einsum("ni,ni->n", batch["g"][:, 0].astype(float), d32.astype(float))
    H = batch["H"][:, 0].astype(float)
    truth = np.einsum("ni,nij,nj->n", d32.astype(float), H, d32.astype(float)) / slope
    for relative_error in (0.1, 1e-5):
        found = jax.vmap(
            lambda b, d, e=relative_error: critical_sharpness(
                quadratic, jnp.zeros(6), b, d, relative_error=e
            )
        )(batch, d32)
        known = ~np.isnan(found.value)
        assert (known == (found.status != Status.BREAKDOWN)).all()
        assert (found.low <= truth)[known].all() and (truth <= found.high)[known].all()
        width = (found.high / found.low - 1)[known] / relative_error
        narrow = found.status[known] == Status.OK
        assert (width[narrow] < 1.1).all() and (width[~narrow] > 0.9).all()
    assert (found.status == Status.NOT_CONVERGED).any()  # of width 1e-5
    assert (found.num_losses < 64).all()  # they stop where nothing is to be gained


@pytest.mark.parametrize("bend", [-0.2, 0.1, 1e-4, 3.0])
def test_a_cubic(bend, x64, strict):
    """`-w + w^2 + c w^3` is back at 0 where `c w^2 + w = 1`; without the bend at 1."""

    def loss(w, batch):
        return jnp.mean(batch) * (-w + w**2 + bend * w**3)

    w, d, batch = jnp.float64(0), jnp.float64(1), np.ones(4)
    truth = 2 / ((np.sqrt(1 + 4 * bend) - 1) / (2 * bend))
    for relative_error in (0.1, 1e-3, 1e-9):
        found = critical_sharpness(loss, w, batch, d, relative_error=relative_error)
        assert int(found.status) == Status.OK and int(found.num_losses) <= 20
        assert found.low <= truth <= found.high <= (1 + relative_error) * found.low
        assert found.low <= found.value <= found.high
        assert float(found.estimates()["critical_sharpness"].standard_error) >= abs(
            found.value - truth
        )
    quadratic = directional_sharpness(loss, w, batch, d).value
    np.testing.assert_allclose(quadratic, 2, rtol=1e-12)
    assert abs(found.value / quadratic - 1) < 2 * abs(bend)


@pytest.mark.parametrize("first_step", [1e-3, 1.0, 1e4])
def test_a_quartic(first_step, x64):
    """`(w^2 - 1)^2` from w = 2 downhill: back at w = -2, over a hill at 0 that is lower."""

    def loss(w, _):
        return (w**2 - 1) ** 2

    found = critical_sharpness(
        loss, jnp.float64(2), None, jnp.float64(-1), first_step=first_step, relative_error=1e-3
    )
    assert found.low <= 0.5 <= found.high and int(found.status) == Status.OK
    assert int(found.num_losses) < 30


@pytest.mark.parametrize("outside", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_loss_that_is_not_finite_has_risen(outside, x64):
    """Falling up to the step 3, then not a number: that is where it rises."""

    def loss(w, _):
        return jnp.where(w > 3, outside, -w)

    found = critical_sharpness(loss, jnp.float64(0), None, jnp.float64(1))
    assert found.low <= 2 / 3 <= found.high and int(found.status) == Status.OK
    # A first step that is outside already is halved.
    far = critical_sharpness(loss, jnp.float64(0), None, jnp.float64(1), first_step=1e5)
    assert far.low <= 2 / 3 <= far.high and int(far.status) == Status.OK


def test_a_loss_that_never_rises_has_no_value():
    def loss(w, _):
        return jax.nn.softplus(w)

    found = critical_sharpness(loss, jnp.float32(0), None, jnp.float32(-1), largest_step=8)
    assert np.isnan(found.value) and np.isnan(found.step)
    assert int(found.status) == Status.NOT_CONVERGED and int(found.num_losses) == 5
    assert float(found.low) == 0 and float(found.high) == 2 / 8  # what is known
    short = critical_sharpness(loss, jnp.float32(0), None, jnp.float32(-1), max_losses=3)
    assert int(short.num_losses) == 3 and float(short.high) == 2 / 2
    assert np.isnan(short.estimates()["critical_sharpness"].standard_error)


@pytest.mark.parametrize(
    ("w", "direction"),
    [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1e-4, -1e-4)],
    ids=["uphill", "at the minimum", "nowhere", "a descent less than rounding"],
)
def test_no_descent_has_no_value(w, direction):
    def loss(w, _):
        return 1 + w**2

    found = critical_sharpness(loss, jnp.float32(w), None, jnp.float32(direction))
    assert np.isnan(found.value) and int(found.status) == Status.BREAKDOWN
    assert float(found.high) == math.inf


def test_a_start_that_is_not_finite():
    for w, d in ((-1.0, 1.0), (1.0, jnp.nan)):
        found = critical_sharpness(lambda w, _: jnp.log(w), jnp.float32(w), None, jnp.float32(d))
        assert np.isnan(found.value) and np.isnan(found.low) and np.isnan(found.high)
        assert int(found.status) == Status.NON_FINITE and int(found.num_losses) == 1


def test_what_has_no_derivative_will_do(x64):
    def loss(w, _):
        return jax.pure_callback(lambda w: np.asarray((w - 1) ** 2), w, w)

    found = critical_sharpness(loss, jnp.float64(0), None, jnp.float64(1))
    np.testing.assert_allclose(found.value, 1, rtol=1e-12)


def conv_loss(params, batch):
    h = jax.lax.conv_general_dilated(batch["x"], params["kernel"], (1, 1), "SAME")
    return jnp.mean((jnp.tanh(h).mean(axis=(2, 3)) @ params["head"] - batch["y"]) ** 2)


def test_loop_forms_and_microbatches_agree(key, x64):
    keys = jax.random.split(key, 4)
    params = {
        "kernel": jax.random.normal(keys[0], (4, 2, 3, 3), jnp.float64),
        "head": jax.random.normal(keys[1], (4, 2), jnp.float64),
    }
    batch = {
        "x": jax.random.normal(keys[2], (4, 2, 6, 6), jnp.float64),
        "y": jax.random.normal(keys[3], (4, 2), jnp.float64),
    }
    d = tree.scale(-1.0, jax.grad(conv_loss)(params, batch))

    def call(params, **options):
        return critical_sharpness(conv_loss, params, batch, d, **options)

    host, device = call(params), jax.jit(call)(params)
    parts = call(params, microbatch_size=2)
    assert int(host.status) == Status.OK and int(host.num_losses) == int(device.num_losses)
    for other in (device, parts):
        np.testing.assert_allclose(host.value, other.value, rtol=1e-10)
    evaluate = critical._Evaluate(1e-15, None)
    bracket = critical._start(params, 1.0, 2.0, 0.1)
    operands = critical._Operands(jax.tree_util.Partial(conv_loss), params, batch, d)
    assert loops.choose_form(evaluate, bracket, operands) == "host"


def test_another_point_compiles_nothing(compilations):
    params, batch = awkward_net(dtype=np.float32)
    for scale in (1.0, 1.1):
        compilations.clear()
        w = tree.scale(scale, params)
        d = tree.scale(-scale, jax.grad(awkward_loss)(w, batch))
        critical_sharpness(awkward_loss, w, batch, d, first_step=scale, relative_error=0.1 * scale)
    assert not [name for name in compilations if "loop" in name or "finish" in name]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first_step": 0.0}, "first_step must be one finite number > 0, got 0.0"),
        ({"largest_step": math.inf}, "largest_step must be one finite"),
        ({"first_step": 4.0, "largest_step": 0.5}, "first_step=4.0 is beyond largest_step=0.5"),
        ({"relative_error": "small"}, "relative_error must be one finite"),
        ({"relative_error": np.ones(2)}, "relative_error must be one finite"),
        ({"max_losses": 2}, "max_losses must be a whole number >= 3, got 2"),
        ({"direction": {"gain": np.ones(())}}, "direction must have the tree structure"),
        ({"microbatch_size": 5}, "chunks of 5 do not divide 12 examples"),
    ],
)
def test_impossible_arguments(wrong, message):
    params, batch = awkward_net(dtype=np.float32)
    given = {"direction": params, **wrong}
    with pytest.raises(UserError, match=f"^critical_sharpness: {message}"):
        critical_sharpness(awkward_loss, params, batch, **given)


def test_a_step_that_was_traced_and_is_impossible():
    params, batch = awkward_net(dtype=np.float32)
    call = jax.jit(lambda s: critical_sharpness(awkward_loss, params, batch, params, first_step=s))
    for step in (-1.0, 2.0**21):  # beyond the largest
        found = call(step)
        assert np.isnan(found.value) and int(found.status) == Status.NON_FINITE
