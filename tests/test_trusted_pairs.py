"""`start=` and `verify=` of `top_eigenpairs`: how they meet, in and out of a trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import averaged, hessian, subsample_start
from sharpjax.geometry import top_eigenpairs as top
from tests.problems import Diagonal

N = 2000
VALUES = np.random.default_rng(0).uniform(-0.5, 0.5, N).astype(np.float32)
VALUES[[3, 700, 1300, 1999]] = (10, 10, 9, 8)


def diagonal(scale=1.0):
    return Diagonal(
        {"a": scale * jnp.asarray(VALUES[:900]), "b": scale * jnp.asarray(VALUES[900:])}
    )


@pytest.fixture(scope="module")
def skipping():
    """A key with which a search from one start skips the second copy."""
    keys = jax.random.split(jax.random.key(0), 8)
    found = jax.jit(jax.vmap(lambda key: top(diagonal(), key=key, k=2, max_products=48)))(keys)
    skipped = np.flatnonzero(np.abs(found.values[:, 1] - 9) < 0.01)
    assert len(skipped) >= 4 and found.verification is None
    return keys[skipped[0]]


def test_a_double_value_needs_verification(skipping):
    plain = top(diagonal(), key=skipping, k=2)
    np.testing.assert_allclose(plain.values, [10, 9], rtol=1e-3)
    found = top(diagonal(), key=skipping, k=2, verify=True)
    np.testing.assert_allclose(found.values, [10, 10], rtol=1e-3)
    assert found.converged.all() and found.verification.complete
    assert found.verification.num_passes == 2
    assert found.num_products == plain.num_products + found.verification.num_steps
    assert abs(tree.vdot(*(tree.index(found.vectors, i) for i in (0, 1)))) < 1e-3


def test_a_start_saves_products_and_is_carried_on(key):
    cold = top(diagonal(), key=key, k=2)
    first = top(diagonal(1.02), key=key, k=2, start=cold)
    second = top(diagonal(1.04), key=key, k=2, start=first)
    assert [found.carried.age for found in (cold, first, second)] == [0, 1, 2]
    assert max(first.num_products, second.num_products) < cold.num_products
    np.testing.assert_allclose(second.values, 1.04 * np.array([10, 9]), rtol=1e-3)


def test_a_verified_result_carries_what_was_merged(skipping):
    key = skipping
    verified = top(diagonal(), key=key, k=2, verify=True)
    carried = verified.carried
    # The value that was pushed out is what the gap of the others is measured to.
    np.testing.assert_allclose(carried.values, [10, 10, 9, 9], rtol=1e-3)
    for i in (0, 1):
        np.testing.assert_array_equal(carried.vectors["a"][i], verified.vectors["a"][i])
    warm = top(diagonal(), key=key, k=2, start=verified)
    np.testing.assert_allclose(warm.values[0], 10, rtol=1e-3)
    nothing_merged = top(diagonal(), key=key, k=1, verify=True)
    np.testing.assert_allclose(nothing_merged.carried.values, [10, 9, 8], rtol=1e-2)


def test_both_in_a_trace_and_in_a_population(key):
    start = top(diagonal(), key=key, k=2)
    solve = jax.jit(functools.partial(top, k=2, verify=True, max_products=48))
    found = solve(diagonal(1.02), key=key, start=start)
    np.testing.assert_allclose(found.values, [10.2, 10.2], rtol=1e-3)
    assert found.verification.complete and found.carried.age == 1

    def follow(scale, start, key):
        return top(diagonal(scale), key=key, k=2, start=start, max_products=48)

    # The second lane cannot use its start, and searches from nothing.
    starts = tree.stack(
        [start, start._replace(carried=jax.tree.map(jnp.zeros_like, start.carried))]
    )
    scales, keys = jnp.array([1.0, 1.1]), jax.random.split(key)
    found = jax.jit(jax.vmap(follow))(scales, starts, keys)
    np.testing.assert_allclose(found.values[:, 0], 10 * scales, rtol=1e-3)
    assert found.carried.age.tolist() == [1, 0]
    assert found.num_products[0] < found.num_products[1]


def test_vectors_may_be_left_out(key):
    found = top(diagonal(), key=key, k=2, verify=True, vectors=False)
    assert found.vectors is None and found.carried is None
    np.testing.assert_allclose(found.values, [10, 10], rtol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"start": 3}, "an earlier result"),
        ({"start": "k"}, "the same k"),
        ({"start": "bare"}, "carries no vectors"),
        ({"start": "structure"}, "each vector of start="),
        ({"verify": True, "basis_size": 0, "vectors": False, "k": 1}, "basis_size=0"),
    ],
)
def test_what_is_refused(key, options, message):
    starts = {
        "k": lambda: top(diagonal(), key=key, k=3),
        "bare": lambda: top(diagonal(), key=key, k=2, vectors=False),
        "structure": lambda: top(Diagonal(jnp.asarray(VALUES)), key=key, k=2),
    }
    if options.get("start") in starts:
        options = options | {"start": starts[options["start"]]()}
    with pytest.raises(UserError, match=message):
        top(diagonal(), **({"key": key, "k": 2} | options))


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"])
    return jnp.mean((hidden @ params["v"] - batch["y"]) ** 2)


def test_a_start_from_a_few_examples_of_many_batches(key):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"w": draw(20, 16) / 4, "v": draw(16) / 4}
    batches = [{"x": 1 + draw(256, 20), "y": draw(256)} for _ in range(8)]
    operator = averaged(functools.partial(hessian, loss, params), batches)
    cold = top(operator, key=key)
    rough = subsample_start(operator, key=key, num_examples=256)
    warm = top(operator, key=key, start=rough)
    assert warm.converged.all() and warm.num_products < cold.num_products
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-3)
