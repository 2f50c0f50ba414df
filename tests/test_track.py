"""All eigenvalues above a threshold, as some come up and others go down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.errors import UserError
from sharpjax.geometry import Status, hessian, top_eigenpairs, track
from tests.problems import Diagonal
from tests.test_warm_start import Dense, bulk, matrix

N = 200
THRESHOLD = 1.5 / 0.75


def spectrum(t, seed=0):
    """At first one value above the threshold, then four, then none."""
    top = np.array([2.63 - 0.15 * t, 1.7 + 0.08 * t, 1.5 + 0.07 * t, 1.1 + 0.117 * t, 0.9])
    top -= 0.35 * max(0, t - 10)
    return np.r_[top, bulk(N - 5, seed)]


def above(values, threshold=THRESHOLD):
    return np.sort(values[values > threshold])[::-1]


def check(found, values, threshold=THRESHOLD, tol=1e-3):
    right = above(values, threshold)
    assert found.status == Status.OK and found.converged.all()
    assert found.values.shape == right.shape and found.carried is not None
    np.testing.assert_allclose(found.values, right, rtol=tol)
    assert (np.abs(found.values - right) <= found.value_errors + 1e-6 * np.abs(values).max()).all()


def test_the_set_grows_and_shrinks():
    """In a basis that turns; no value within 1e-3 of the threshold, so that the set is known."""
    counts, warm, cold, found = [], [], [], None
    for t in range(16):
        values = spectrum(t)
        assert np.abs(values - THRESHOLD).min() > 1e-3 * THRESHOLD
        operator = Dense(matrix(values, 0.01 * t))
        found = track(operator, found, threshold=THRESHOLD, key=jax.random.key(t))
        anew = track(operator, threshold=THRESHOLD, key=jax.random.key(t))
        for one in (found, anew):
            check(one, values)
        y = np.asarray(found.vectors)
        np.testing.assert_allclose(y @ y.T, np.eye(len(y)), atol=1e-5)
        counts.append(len(found.values))
        warm.append(int(found.num_products))
        cold.append(int(anew.num_products))
    assert counts[0] == 1 and max(counts) == 3 and counts[-1] == 0
    print(f"products {np.mean(warm[1:])} from the last result, {np.mean(cold[1:])} from nothing")
    assert np.mean(warm[1:]) < 0.92 * np.mean(cold[1:])


def test_a_second_path_compiles_nothing(compilations):
    for seed in range(2):
        found = None
        compilations.clear()
        for t in range(16):
            values = spectrum(t, seed)
            operator = Diagonal(jnp.asarray(values, jnp.float32))
            found = track(operator, found, threshold=THRESHOLD, key=jax.random.key(t))
            check(found, values)
    assert compilations == []


def test_more_than_there_was_room_for(x64, strict):
    """From none to twenty in one step, and to one; on a tree."""

    def operator(values):
        v = jnp.asarray(values)
        return Diagonal({"a": v[:20].reshape(4, 5), "b": (v[20:], None)})

    values = np.r_[np.linspace(1.0, 2.9, 20), bulk(80)]
    found = track(operator(values), threshold=3.0, key=jax.random.key(0))
    assert found.values.shape == (0,) and found.vectors["a"].shape == (0, 4, 5)
    assert found.status == Status.OK
    for factor, threshold in ((3.5, 3.0), (1.0, 0.95), (1.0, 2.85)):
        found = track(operator(factor * values), found, threshold=threshold, key=jax.random.key(1))
        check(found, factor * values, threshold)
    rows = np.concatenate([np.reshape(x, (1, -1)) for x in jax.tree.leaves(found.vectors)], 1)
    residual = np.linalg.norm(rows * values - rows * found.values[:, None])
    assert residual <= found.residuals[0] + 1e-10


def test_all_that_there_are(key):
    values = np.array([3.0, 2.0, 1.0, -1.0, -2.0], np.float32)
    found = None
    for count, threshold in ((0, 9.0), (5, -9.0), (3, 0.0)):
        found = track(Diagonal(jnp.asarray(values)), found, threshold=threshold, key=key)
        check(found, values, threshold)
        assert len(found.values) == count


def test_a_value_at_the_threshold_is_in_or_out():
    """What is nearer to it than the tolerance is not waited for."""
    values = np.r_[3.0, 2.0 * (1 + 1e-5), 1.2, bulk(N - 3)].astype(np.float32)
    found = track(Diagonal(jnp.asarray(values)), threshold=2.0, key=jax.random.key(0))
    assert found.status == Status.OK and len(found.values) in (1, 2)
    assert found.num_products < 24


def test_it_goes_on_from_top_eigenpairs(key):
    values = spectrum(4)
    operator = Diagonal(jnp.asarray(values, jnp.float32))
    first = top_eigenpairs(operator, key=key, k=2)
    found = track(operator, first, threshold=THRESHOLD, key=key)
    check(found, values)
    assert found.carried.age == 1 and found.num_products < first.num_products
    # Every twentieth is one from nothing.
    old = found._replace(carried=found.carried._replace(age=jnp.int32(19)))
    again = track(operator, old, threshold=THRESHOLD, key=key)
    check(again, values)
    assert again.carried.age == 0


def test_too_few_products_are_said(key):
    operator = Diagonal(jnp.asarray(spectrum(6), jnp.float32))
    for most in (1, 3, 5):
        found = track(operator, threshold=THRESHOLD, key=key, max_products=most)
        assert found.status == Status.NOT_CONVERGED and not found.converged.any()
        assert found.num_products == most
    # All of space has been seen, and there is no room for all values.
    found = track(Diagonal(jnp.linspace(1, 2, 100)), threshold=0.0, key=key, max_products=100)
    assert found.status == Status.NOT_CONVERGED
    broken = Diagonal(jnp.asarray(spectrum(6), jnp.float32).at[0].set(jnp.nan))
    assert track(broken, threshold=THRESHOLD, key=key).status == Status.NON_FINITE


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": jnp.inf}, "track: threshold must be a finite number"),
        ({"threshold": None}, "track: threshold must be a finite number, got None"),
        ({"threshold": jnp.ones(2)}, "track: threshold must be a finite number"),
        ({"tol": -1.0}, "track: tol must be a number >= 0"),
        ({"max_products": 0}, "track: max_products must be a whole number"),
        ({"start": 3}, "track: start= must be an earlier result"),
    ],
)
def test_what_is_refused(key, options, message):
    with pytest.raises(UserError, match=message):
        track(Diagonal(jnp.ones(5)), **({"threshold": 1.0, "key": key} | options))


def test_it_is_refused_inside_a_trace(key):
    def loss(w, batch):
        return jnp.mean(batch) * jnp.sum(w**2)

    def solve(w):
        return track(hessian(loss, w, jnp.ones(3)), threshold=1.0, key=key).values

    for transform in (jax.jit, jax.vmap):
        with pytest.raises(UserError, match="take top_eigenpairs with a fixed k"):
            transform(solve)(jnp.ones((2, 4)))
