"""Multiplicity comes out right, and nothing beyond the k is left: as rates over many keys."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import tree
from sharpjax.geometry import Eigenpairs, Status, hessian, top_eigenpairs
from sharpjax.geometry.eigenpairs import completeness
from sharpjax.geometry.eigenpairs.convergence import SearchStep
from sharpjax.geometry.operators import algebra
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat

KEYS = 32


def bulk(n):
    return np.random.default_rng(0).uniform(-0.5, 0.5, n)


def solve(operator, key, k=4, which: Any = "LA", tol=1e-3, most=36, **options):
    """A search, and the search verified."""
    one, two = jax.random.split(key)
    found = top_eigenpairs(operator, key=one, k=k, which=which, tol=tol, max_products=most)
    verified = completeness.verify(
        SearchStep(k, which, 2),
        algebra.linearize(operator),
        found,
        key=two,
        like=operator.like,
        tol=tol,
        **({"max_products": most} | options),
    )
    return found, *verified


def expected(values, k, which):
    down = np.sort(values)[::-1]
    return {
        "LA": down[:k],
        "SA": down[::-1][:k],
        "LM": values[np.argsort(-np.abs(values))][:k],
        "BE": np.concatenate([down[: -(-k // 2)], down[len(down) - k // 2 :]]),
    }[which]


@functools.partial(jax.jit, static_argnames=("k", "which", "most"))
def lanes(values, k=4, which="LA", most=36):
    """As many starts as `KEYS` at once, without the vectors."""

    def one(key):
        before, after, verified = solve(Diagonal(values), key, k, which, most=most)
        y = after.vectors
        orthonormal = jnp.max(jnp.abs(y @ y.T - jnp.eye(k)))
        true = jnp.sqrt(jnp.sum(jnp.square(y * values - y * after.values[:, None]), axis=1))
        excess = jnp.max(true - after.residuals)
        small = (before._replace(vectors=None), after._replace(vectors=None))
        return *small, verified, orthonormal, excess

    return jax.vmap(one)(jax.random.split(jax.random.key(2), KEYS))


def skipped(found, values, which="LA", tol=1e-3):
    """In how many lanes all is said to be well, and is not."""
    right = expected(values, found.values.shape[1], which)
    given = np.asarray(found.values)
    if which == "LM":
        given, right = np.abs(given), np.abs(right)
    off = np.abs(given - right) > tol * np.abs(right) + 1e-6 * np.abs(values).max()
    return int((off.any(1) & (found.status == Status.OK)).sum())


N = 2_000
SPECTRA = {
    "identity": np.ones(N),
    "Kronecker": np.kron(np.r_[3.0, 2, 1.5, 1, bulk(36)], np.r_[2.0, 2, 1.5, 1.5, 1, bulk(45)]),
    "double at the top": np.r_[10.0, 10, 9, 8, 7, 6, bulk(N - 6)],
    "double at place 4": np.r_[10.0, 9, 8, 7, 7, 6, bulk(N - 6)],
    "three times at the end": np.r_[5.0, 4, 4, 4, 3, 2, bulk(N - 6)],
    "negative": -np.r_[1.0, 1, 1, 1.5, 2, 2.5, np.linspace(4, 9, N - 6)],
    "rank 3": np.r_[2.0, 2, 1, np.zeros(N - 3)],
    "simple": np.r_[5.0, 4, 3, 2, 1.9, 1.5, bulk(N - 6)],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_none_is_skipped(x64, name):
    values = SPECTRA[name]
    before, after, verified, orthonormal, excess = jax.device_get(lanes(jnp.asarray(values)))
    assert (after.status == Status.OK).all() and verified.complete.all()
    assert after.converged.all()
    assert skipped(after, values) == 0
    if name in ("double at the top", "three times at the end", "Kronecker"):
        assert skipped(before, values) > KEYS // 2  # there was something to find
        assert (verified.num_passes >= 2).sum() > KEYS // 2
    if name == "simple":
        assert (verified.num_passes == 1).all()
        # 1.648 sqrt(n) exp(-sqrt(delta) (2 q - 1)), with n the dimension that was left.
        power = np.sqrt(verified.distance) * (2 * verified.num_steps - 1)
        np.testing.assert_allclose(1.648 * np.sqrt(N - 4) * np.exp(-power), 1e-3, rtol=1e-10)
    assert orthonormal.max() < 1e-12 and excess.max() < 1e-9
    np.testing.assert_array_equal(after.num_products, before.num_products + verified.num_steps)
    assert ((0 < verified.distance) & (verified.distance < 3)).all()


ENDS = {
    "SA": -np.r_[5.0, 5, 4, 4, 3, 2.5, 2, bulk(53)],
    "LM": np.r_[5.0, 5, -5, 4, -3.5, 3, -2.5, 2, bulk(52)],
    "BE": np.r_[5.0, 5, 4, 3, -6, -6, -4, -3, bulk(52)],
}


def as_if_found(values, places):
    """The result of a search that found the unit vectors at these places, and nothing else."""
    places = np.array(places)
    rows = np.eye(len(values))[places]
    zero = jnp.zeros(len(places))
    return Eigenpairs(
        values=jnp.asarray(values[places]),
        vectors=jnp.asarray(rows),
        residuals=zero + 1e-12,
        value_errors=zero + 1e-12,
        vector_errors=zero + 1e-12,
        converged=zero == 0,
        num_products=jnp.int32(20),
        status=jnp.int32(Status.OK),
    )


@pytest.mark.parametrize(
    "which, places",
    [("SA", [0, 2, 4]), ("LM", [2, 3, 4]), ("BE", [0, 2, 4]), ("BE", [0, 1, 6])],
)
def test_every_end(x64, strict, which, places):
    """Outside of a trace; one of two equal values, or two of three, have been skipped."""
    values = ENDS[which]
    lost = as_if_found(values, places)

    def split(x):
        return {"a": x[..., :20].reshape(*x.shape[:-1], 4, 5), "b": (x[..., 20:], None)}

    operator = Diagonal(split(jnp.asarray(values)))
    after, verified = completeness.verify(
        *(SearchStep(3, which, 2), algebra.linearize(operator)),
        lost._replace(vectors=split(lost.vectors)),
        **{"key": jax.random.key(1), "like": operator.like, "max_products": 50},
    )
    assert after.status == Status.OK and verified.complete and verified.num_passes >= 2
    right = expected(values, 3, which)
    shown = np.abs if which == "LM" else np.asarray
    np.testing.assert_allclose(shown(after.values), shown(right), rtol=1e-3)
    assert after.num_products == 20 + verified.num_steps
    rows = np.stack([flat(tree.index(after.vectors, i)) for i in range(3)])
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
    true = np.linalg.norm(rows * values - rows * np.expand_dims(after.values, 1), axis=1)
    assert (true <= after.residuals + 1e-10).all()


@pytest.mark.slow
@pytest.mark.parametrize("which", ENDS)
def test_every_end_in_lanes(x64, which):
    values = np.r_[ENDS[which], bulk(340)]
    before, after, verified, *_ = jax.device_get(lanes(jnp.asarray(values), which=which))
    assert (after.status == Status.OK).all() and verified.complete.all()
    assert skipped(after, values, which) == 0 and skipped(before, values, which) > KEYS // 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "k, which, values, most",
    [
        (10, "LA", np.r_[10, 9, 8, 7, 7, 6, 5, 4, 3.5, 3, 2.5, 2, 1.5, bulk(1987)], 100),
        (5, "SA", 0.9 ** np.arange(40), 40),
        (2, "LA", np.r_[10.0, 10, 9, bulk(1997)], 60),
        (10, "LA", np.kron(np.r_[3.0, 2, 2, 1, bulk(16)], np.r_[2.0, 2, 1.5, 1, bulk(16)]), 100),
    ],
)
def test_none_is_skipped_of_more(x64, k, which, values, most):
    _, after, verified, *_ = jax.device_get(lanes(jnp.asarray(values), k, which, most))
    assert skipped(after, values, which) == 0
    assert verified.complete.all() and (after.status == Status.OK).all()


@pytest.mark.parametrize("k", [7, 8])
def test_nothing_or_next_to_nothing_is_left(x64, strict, k):
    values = np.r_[4.0, 3, 3, 2, 2, 2, 1, -1]
    _, after, verified = solve(Diagonal(jnp.asarray(values)), jax.random.key(0), k, most=8)
    assert after.status == Status.OK and verified.complete and verified.distance == 0
    np.testing.assert_allclose(after.values, values[:k], atol=1e-12)
    assert verified.num_passes == verified.num_steps == 8 - k


def test_float32_does_not_bring_back_what_was_found(key):
    """All that is left is below 0, and near it: the found vectors would be the largest again."""
    values = np.r_[10.0, 9.0, 8.0, -1e-3 * np.linspace(1, 2, 97)].astype(np.float32)
    _, after, verified = solve(Diagonal(jnp.asarray(values)), key, 3)
    assert after.status == Status.OK and verified.num_passes == 1
    np.testing.assert_allclose(after.values, values[:3], rtol=1e-6)


@pytest.mark.slow
def test_a_hessian(x64, strict, key):
    params, batch = awkward_net()
    matrix = np.linalg.eigvalsh(dense(awkward_loss, params, batch))[::-1]
    _, after, verified = solve(hessian(awkward_loss, params, batch), key, 3, tol=1e-8, most=34)
    assert after.status == Status.OK and verified.complete
    np.testing.assert_allclose(after.values, matrix[:3], atol=1e-8)
    assert jax.tree.structure(after.vectors) == jax.tree.structure(params)


def mirrored(*values):
    """An operator on 100 parameters: one structure, compiled once."""
    return Diagonal(jnp.asarray(np.r_[values, bulk(100 - len(values))]))


def test_what_is_merged_keeps_what_was_known(x64, key):
    """Values that stay keep their errors, and the new one has bounds of its own."""
    before, after, verified = solve(mirrored(10.0, 10, 9, 8, 7, 6), key, 3, tol=1e-6)
    assert not np.allclose(before.values, after.values) and verified.num_passes == 2
    np.testing.assert_allclose(after.values, [10, 10, 9], rtol=1e-6)
    distance = np.abs(np.asarray(after.values) - [10, 10, 9])
    assert (distance <= after.value_errors).all()
    assert (after.value_errors <= 1e-6 * after.values).all() and after.converged.all()


def test_a_search_that_went_wrong_is_corrected(x64, key):
    """As if the largest had been skipped altogether."""
    operator = mirrored(10.0, 9, 8, 7, 6, 5)
    found = top_eigenpairs(operator, key=key, k=3)
    lost = top_eigenpairs(mirrored(0.0, 9, 8, 7, 6, 5), key=key, k=3)
    product = algebra.linearize(operator)

    def verify(pairs, **options):
        step = SearchStep(3, "LA", 2)
        return completeness.verify(step, product, pairs, key=key, like=operator.like, **options)

    after, verified = verify(lost, max_products=60)
    np.testing.assert_allclose(after.values, found.values, rtol=1e-3)
    assert after.status == Status.OK and verified.num_passes >= 2
    # Not enough room to be sure: what was found stands, and is not said to be complete.
    after, verified = verify(found, max_products=3)
    assert after.status == Status.NOT_CONVERGED and not verified.complete
    np.testing.assert_array_equal(after.values, found.values)
    assert verified.num_passes == 1 and verified.num_steps == 3 and verified.distance > 1
    # Too few passes.
    after, verified = verify(lost, max_products=60, max_passes=1)
    assert after.status == Status.NOT_CONVERGED and not verified.complete
    # Nothing to begin with.
    after, verified = verify(lost._replace(values=lost.values.at[1].set(jnp.nan)), max_products=60)
    assert after.status == Status.NOT_CONVERGED and not verified.complete
    assert verified.num_passes == 0


@pytest.mark.slow
def test_the_same_inside_a_trace(x64, key):
    operator = mirrored(10.0, 10, 9, 8, 7, 6)
    outside = solve(operator, key, 3)
    inside = jax.jit(lambda operator: solve(operator, key, 3))(operator)
    for one, other in zip(outside[1:], inside[1:], strict=True):
        for name in set(one._fields) - {"vectors", "verification", "carried"}:
            np.testing.assert_allclose(
                *(getattr(one, name), getattr(other, name)), rtol=1e-7, atol=1e-9, err_msg=name
            )


def test_a_second_call_compiles_nothing(x64, compilations):
    for seed in range(2):
        operator, key = mirrored(10.0, 10, 9, 8 + seed, 7, 6), jax.random.key(seed)
        compilations.clear()
        _, _, verified = solve(operator, key, 3)
        assert verified.num_passes == 2
    assert compilations == []
