"""Examples that checks look at: spread, in no regular order, of two kinds where there are two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from sharpjax.geometry.loss.scattered import groups, scattered

COUNTS = [4, 6, 24, 40, 640]


@pytest.mark.parametrize("most", [1, 7, 64])
@pytest.mark.parametrize("count", [64, 65, 1000, 2**31 - 1])
def test_one_place_in_each_stretch(count, most):
    places = scattered(count, most)
    edges = [i * count // most for i in range(most + 1)]
    assert all(edges[i] <= places[i] < edges[i + 1] for i in range(most))
    traced = jax.jit(lambda count: scattered(count, most))(count)
    np.testing.assert_array_equal(traced, places)


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize("count", range(2, 65))
def test_places_of_two_kinds_meet_in_a_group(count, size):
    """Groups that overlap, so that all places hang together, or eight that are drawn apart."""
    if size > count:
        return
    found = groups(count, size, 64)
    assert set(found.ravel()) == set(range(count)) and all(len(set(g)) == size for g in found)
    reached, more = set(found[0]), True
    while more:
        joined = reached.union(*(set(g) for g in found if reached & set(g)))
        more, reached = joined != reached, joined
    assert len(reached) == count or (size >= 4 and len(found) >= 8)


# Weights that come back with a period, of examples that differ: a loss that is no mean.


def loss(w, batch):
    """The weighted mean of squares; weights are not zero, so that none stands out."""
    return jnp.sum(batch["weight"] * (batch["x"] @ w) ** 2) / jnp.sum(batch["weight"])


def outer(outputs, batch):
    return jnp.sum(batch["weight"] * outputs**2) / jnp.sum(batch["weight"])


def periods(count):
    """Half of each period weighs four times as much as the other, or one of two to six does."""
    for period in [p for p in range(2, count // 2 + 1) if count % p == 0]:
        yield np.arange(count) % period < (period + 1) // 2
        if period <= 6 or count <= 64:
            yield np.arange(count) % period == period - 1


WAYS = {
    "two": functools.partial(geometry.hessian, microbatch_size=2),
    "half": lambda loss, w, b: geometry.hessian(loss, w, b, microbatch_size=len(b["x"]) // 2),
    "alone": geometry.empirical_fisher,
    "list": lambda loss, w, b: geometry.averaged(
        functools.partial(geometry.hessian, loss, w),
        [jax.tree.map(lambda x, i=i: jnp.split(x, 2)[i], b) for i in (0, 1)],
    ),
    "outer": lambda loss, w, b: geometry.gauss_newton(
        geometry.composed(lambda w, b: b["x"] @ w, outer), w, b
    ),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_weights_with_a_period_are_found(way, count):
    x = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    for heavy in periods(count):
        batch = {"x": jnp.asarray(x), "weight": jnp.asarray(np.where(heavy, 4, 1), jnp.float32)}
        with pytest.raises(UserError, match="is not the mean"):
            WAYS[way](loss, jnp.ones(2), batch)


@pytest.mark.parametrize("way", WAYS)
def test_equal_weights_are_none(way):
    batch = {"x": jnp.arange(80.0).reshape(40, 2) / 40, "weight": jnp.full(40, 3.0)}
    WAYS[way](loss, jnp.ones(2), batch)
