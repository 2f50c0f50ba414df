"""Batch sharpness: every batch of a tiny data set, its errors over many keys, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import batch_sharpness, directional_curvature
from sharpjax.geometry.sharpness import batch
from sharpjax.geometry.status import Status


def squares(w, data):
    """Linear regression."""
    return jnp.mean(jnp.square(data["x"] @ w - data["y"])) / 2


def regression(dtype=np.float64, n=7, d=3):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(n, d)).astype(dtype), "y": rng.normal(size=n).astype(dtype)}
    return rng.normal(size=d).astype(dtype), data


def enumerated(w, data, batch_size):
    """`g'Hg` and `|g|^2` of all batches."""
    found = []
    for chosen in itertools.combinations(range(len(data["y"])), batch_size):
        x, y = data["x"][list(chosen)], data["y"][list(chosen)]
        g, H = x.T @ (x @ w - y) / batch_size, x.T @ x / batch_size
        found.append((g @ H @ g, g @ g))
    return np.array(found).T


KEYS = 400


@pytest.fixture(scope="module")
def many():
    """Of 50 batches of 3 of 7 examples: all values and errors over many keys, and the truths."""
    with jax.enable_x64(True):
        w, data = regression()
        keys = jax.random.split(jax.random.key(1), KEYS)
        found = jax.vmap(
            lambda key: batch_sharpness(squares, w, data, batch_size=3, key=key, max_batches=50)
        )(keys)
        stopped = jax.vmap(
            lambda key: batch_sharpness(
                *(squares, w, data), batch_size=3, key=key, max_batches=400, relative_error=0.1
            )
        )(keys)
        above, below = enumerated(w, data, 3)
    ratio = above.mean() / below.mean()
    cov = np.cov(above, below, bias=True)
    bias = (ratio * cov[1, 1] - cov[0, 1]) / below.mean() ** 2 / 50  # to first order in 1 / 50
    found, stopped = jax.tree.map(np.asarray, (found, stopped))
    return found, stopped, np.mean(above / below), ratio, bias


def test_values_are_those_of_all_batches(many):
    found, _, truth, ratio, bias = many
    assert abs(truth / ratio - 1) > 0.05  # two things under two names
    error = np.sqrt(np.mean(np.square(found.standard_error)) / KEYS)
    assert abs(np.mean(found.value) - truth) < 4 * error
    error = np.sqrt(np.mean(np.square(found.ratio_standard_error)) / KEYS)
    assert abs(np.mean(found.ratio_of_means) - ratio - bias) < 4 * error + abs(bias)
    assert (found.num_batches == 50).all() and (found.status == Status.OK).all()


def test_errors_are_the_spread_over_keys(many):
    found, *_ = many
    # A standard deviation from 400 draws is good to 1 / sqrt(800), if not heavy tailed: 4 of these.
    for value, error in (
        (found.value, found.standard_error),
        (found.ratio_of_means, found.ratio_standard_error),
    ):
        spread = np.std(value, ddof=1)
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(error))), spread, rtol=0.15)


def test_errors_cover_where_they_stop_the_draws(many):
    _, stopped, truth, ratio, _ = many
    ended = stopped.status == Status.OK
    assert ended.mean() > 0.9 and (stopped.num_batches >= 16).all()
    assert (stopped.num_batches[~ended] == 400).all()
    for value, error, at in (
        (stopped.value, stopped.standard_error, truth),
        (stopped.ratio_of_means, stopped.ratio_standard_error, ratio),
    ):
        assert (error[ended] <= 0.1 * value[ended]).all()
        covered = np.mean(np.abs(value - at) < 1.96 * error)
        assert covered > 0.85


def test_batches_of_one_are_single_examples(key, x64, strict):
    """With one example `g'Hg / |g|^2` is `|x|^2`, whatever the weights and the targets."""
    w, data = regression()
    found = batch_sharpness(squares, w, data, batch_size=1, key=key, max_batches=40)
    lengths = np.sum(data["x"] ** 2, axis=1)
    assert lengths.min() < found.value < lengths.max()
    data["x"] /= np.sqrt(lengths)[:, None]
    found = batch_sharpness(squares, w, data, batch_size=1, key=key, max_batches=40)
    np.testing.assert_allclose(found.value, 1, rtol=1e-12)
    np.testing.assert_allclose(found.ratio_of_means, 1, rtol=1e-12)
    # The second is a difference of variances, each rounded to 2e-16 of itself.
    assert found.standard_error < 1e-14 and found.ratio_standard_error < 1e-7


def test_all_examples_are_one_batch_without_an_error(key, x64, strict):
    w, data = regression()
    found = batch_sharpness(squares, w, data, batch_size=7, key=key, relative_error=0.0)
    whole = directional_curvature(squares, w, data)
    np.testing.assert_allclose([found.value, found.ratio_of_means], whole.value, rtol=1e-14)
    assert int(found.num_batches) == 1 and int(found.status) == Status.OK
    assert float(found.standard_error) == float(found.ratio_standard_error) == 0


def test_no_example_comes_twice(key):
    data = {"i": jnp.arange(9)}
    drawn = np.asarray(jax.vmap(lambda k: batch.draw(k, data, 4)["i"])(jax.random.split(key, 900)))
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    # Each is in 4 of 9 batches: 400 with a standard deviation of 15.
    assert (np.abs(np.bincount(drawn.ravel(), minlength=9) - 400) < 5 * 15).all()


def test_microbatches_change_nothing(key, x64):
    w, data = regression()
    call = dict(batch_size=4, key=key, max_batches=5)
    whole = batch_sharpness(squares, w, data, **call)
    parts = batch_sharpness(squares, w, data, **call, microbatch_size=2)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_microbatches_of_a_mask_that_the_first_batch_does_not_hold(key):
    w, data = regression(np.float32, n=32)
    data["mask"] = np.array([1.0] * 16 + [0.0, 1.0] * 8, np.float32)

    def loss(w, data):
        squares = jnp.square(data["x"] @ w - data["y"])
        return jnp.sum(data["mask"] * squares) / jnp.sum(data["mask"])

    call = dict(batch_size=16, key=key, max_batches=1)
    assert batch_sharpness(loss, w, data, **call).status == Status.OK
    assert batch_sharpness(loss, w, data, **call, microbatch_size=16).status == Status.OK
    with pytest.raises(UserError, match="^batch_sharpness: the loss is not the mean of its parts"):
        batch_sharpness(loss, w, data, **call, microbatch_size=4)


@pytest.mark.parametrize("size", [1e-25, 1e15])
def test_gradients_whose_squares_leave_float32(size, key):
    data = {"c": np.array([1.0, 3.0], np.float32)}

    def loss(w, data):
        return jnp.mean(data["c"]) * (jnp.float32(size) * w + w**2 / 2)

    found = batch_sharpness(loss, jnp.float32(0), data, batch_size=1, key=key, max_batches=64)
    curvatures = found.value, found.ratio_of_means
    assert 1.5 < curvatures[0] < 2.5 and 2.5 < curvatures[1] < 3 and int(found.status) == Status.OK


@pytest.mark.parametrize("exponent", [-90, 90])
def test_curvatures_whose_squares_leave_float32(exponent, key):
    """A loss in other units, by a power of two, has the same numbers in these."""
    w, data = regression(np.float32)

    def run(scale, **options):
        loss = jax.tree_util.Partial(lambda s, w, data: s * squares(w, data), jnp.float32(scale))
        return batch_sharpness(loss, w, data, batch_size=3, key=key, max_batches=20, **options)

    for options in ({}, {"relative_error": 1e-3}):
        expected, found = run(1.0, **options), run(2.0**exponent, **options)
        for a, b in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_allclose(a, b * 2.0**exponent, rtol=1e-5)
        assert found[4:] == expected[4:] and found.standard_error > 0


def confident(scale, slopes, curvatures):
    """Examples of one weight, of which each has its own slope and its own curvature."""

    def loss(scale, w, data):
        return scale * jnp.mean(data["g"] * w + data["c"] * w**2 / 2)

    data = {"g": jnp.asarray(slopes, jnp.float32), "c": jnp.asarray(curvatures, jnp.float32)}
    return jax.tree_util.Partial(loss, jnp.float32(scale)), jnp.float32(0), data


def of_drawn(key, data, number):
    """Both values and both errors of batches of one that this key draws, in float64."""
    drawn = jax.vmap(lambda i: batch.draw(jax.random.fold_in(key, i), data, 1))(jnp.arange(number))
    g, c = (np.asarray(drawn[name], np.float64).ravel() for name in "gc")
    ratio = np.sum(c * g**2) / np.sum(g**2)
    errors = np.array([np.std(c), np.sqrt(np.mean(g**4 * (c - ratio) ** 2)) / np.mean(g**2)])
    return np.array([c.mean(), ratio]), errors / (number - 1) ** 0.5, c, g


# What one example has and all others have: slope and curvature, each far the smaller, or the larger
# where the other one is the smaller.
STREAMS = {
    "confident": ((1.0, 1.0), (1e-12, 1e-12)),
    "confident to the last digit": ((1.0, 1.0), (1e-30, 1e-30)),
    "flat where it is steep": ((1.0, 1e-12), (1e-12, 1.0)),
    "flat where it is very steep": ((1.0, 1e-15), (1e-25, 1.0)),
}


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("name", STREAMS)
def test_units_grow_with_the_batches(name, first):
    """Whatever batch comes first, the numbers are those of all that were drawn."""
    key, number, eps = jax.random.key(first), 200, float(np.finfo(np.float32).eps)
    one, others = STREAMS[name]
    slopes, curvatures = (np.r_[[b] * 9, a] for a, b in zip(one, others, strict=True))
    loss, w, data = confident(1.0, slopes, curvatures)
    found = batch_sharpness(loss, w, data, batch_size=1, key=key, max_batches=number)
    values, errors, c, g = of_drawn(key, data, number)
    assert found.status == Status.OK and found.num_batches == number
    # A mean of so many, each a product of three numbers, is rounded as often.
    rtol = (number + 8) * eps
    np.testing.assert_allclose([found.value, found.ratio_of_means], values, rtol=rtol)
    np.testing.assert_allclose(found.standard_error, errors[0], rtol=rtol)
    # The other variance is a difference: of the size of its terms it is known to rounding.
    terms = values[1] * np.sqrt(np.mean(g**4)) / np.mean(g**2) / number**0.5
    off = abs(found.ratio_standard_error - errors[1])
    assert off <= rtol * errors[1] + np.sqrt(rtol) * terms


def test_a_confident_net_and_one_example_that_it_gets_wrong():
    """Logistic regression: of `p = sigmoid(-w x)` slope `x p` and curvature `x^2 p (1 - p)`."""
    x = np.r_[np.full(30, 20.0), -1.0].astype(np.float32)
    loss = lambda w, data: jnp.mean(jax.nn.softplus(-data["x"] * w))  # noqa: E731
    keys, number = jax.random.split(jax.random.key(0), 10), 300
    found = jax.vmap(
        lambda key: batch_sharpness(
            loss, jnp.float32(1), {"x": x}, batch_size=1, key=key, max_batches=number
        )
    )(keys)
    p = 1 / (1 + np.exp(np.float64(x)))
    curvature = x**2 * p * (1 - p)
    assert (found.status == Status.OK).all()
    # Each is a mean over 31 examples, of which the last one counts; and rounded as often as added.
    assert abs(curvature.mean() - 0.00634) < 5e-6
    rtol = (number + 8) * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(found.ratio_of_means, curvature[-1], rtol=rtol)
    off = np.abs(np.asarray(found.value) - curvature.mean())
    assert (off < 5 * curvature.std() / number**0.5).all()


@pytest.mark.parametrize("exponent", [-80, -40, 60, 99])
def test_units_that_grow_scale_with_the_loss(exponent):
    """Powers of two are exact, so all digits are those of the loss of ordinary size."""
    rng = np.random.default_rng(0)
    slopes, curvatures = 10.0 ** rng.uniform(-13, 0, (2, 40))  # none is subnormal
    for seed in range(4):
        call = dict(batch_size=1, key=jax.random.key(seed), max_batches=60)
        expected = batch_sharpness(*confident(1.0, slopes, curvatures), **call)
        found = batch_sharpness(*confident(2.0**exponent, slopes, curvatures), **call)
        assert found.status == Status.OK and found.standard_error > 0
        for a, b in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(a, b * np.float32(2.0**exponent))


def test_batches_without_a_gradient(key, x64):
    """They have no direction: 0 among the ratios, nothing among the means."""
    data = {"c": np.array([0.0, 2.0])}

    def loss(w, data):
        return jnp.mean(data["c"]) * w**2 / 2

    found = batch_sharpness(loss, jnp.float64(1), data, batch_size=1, key=key, max_batches=50)
    assert 0 < found.value < 2 and int(found.status) == Status.OK
    np.testing.assert_allclose(found.ratio_of_means, 2, rtol=1e-12)


def test_no_gradient_at_all(key):
    w, data = regression(np.float32)
    found = batch_sharpness(
        lambda w, data: jnp.mean(data["x"]) * jnp.sum(w**2), 0 * w, data, batch_size=2, key=key
    )
    assert found.value == 0 and np.isnan(found.ratio_of_means)
    assert int(found.status) == Status.BREAKDOWN


def test_what_is_not_met_and_what_is_not_finite(key):
    w, data = regression(np.float32)
    found = batch_sharpness(
        squares, w, data, batch_size=2, key=key, max_batches=20, relative_error=1e-4
    )
    assert int(found.status) == Status.NOT_CONVERGED and int(found.num_batches) == 20
    one = batch_sharpness(squares, w, data, batch_size=2, key=key, max_batches=1)
    assert np.isnan(one.standard_error) and np.isnan(one.ratio_standard_error)
    data["y"][:] = np.nan
    found = batch_sharpness(squares, w, data, batch_size=2, key=key)
    assert np.isnan(found.value) and int(found.status) == Status.NON_FINITE
    assert int(found.num_batches) == 1
    for name, estimate in found.estimates().items():
        assert name.startswith("batch_sharpness") and np.isnan(estimate.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 8}, "batch_size=8 of 7 examples"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1"),
        ({"max_batches": 0}, "max_batches must be a whole number >= 1"),
        ({"relative_error": -1.0}, "relative_error must be a number >= 0"),
        ({"key": None}, "key must be one random key"),
        ({"microbatch_size": 2}, "chunks of 2 do not divide 3"),
    ],
)
def test_impossible_arguments(wrong, message, key):
    w, data = regression(np.float32)
    with pytest.raises(UserError, match=f"^batch_sharpness: {message}"):
        batch_sharpness(squares, w, data, **{"batch_size": 3, "key": key, **wrong})
