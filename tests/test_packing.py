"""The small leaves of a vector in one array: the same vector, and the same answers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax import geometry, tree
from sharpjax.geometry.lanczos import packing

LIKE = {"a": jnp.ones((2, 3)), "b": [jnp.ones(()), jnp.ones((2**16 + 1,)), jnp.ones(4)]}


def _packing() -> packing.Packing:
    found = packing.of(LIKE, ())
    assert found is not None
    return found


def test_a_vector_comes_back(key):
    packed = _packing()
    assert [x.shape for x in packed.like] == [(11,), (2**16 + 1,)]
    vector = tree.random_normal(key, LIKE)
    lanes = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), vector)
    for given in (vector, lanes):
        for found in (packed.unpack(packed.pack(given)), packed.read(packed.store(given))):
            jax.tree.map(np.testing.assert_array_equal, found, given)


def test_random_numbers_are_those_of_the_leaves(key):
    packed = _packing()
    drawn = tree.random_normal(key, packed.like)
    expected = packed.pack(tree.random_normal(key, LIKE))
    jax.tree.map(np.testing.assert_array_equal, tuple(drawn), expected)


def _times(values, vector):
    return jax.tree.map(jnp.multiply, values, vector)


def test_numbers_are_those_of_leaves_by_themselves(key, x64, monkeypatch):
    """But for the order of sums: n eps of the largest, n = 30."""
    values = {"a": jnp.linspace(1.0, 2.0, 20), "b": jnp.linspace(-1.0, 3.0, 9), "c": jnp.ones(())}

    def solutions():
        operator = geometry.operator(Partial(_times, values), like=values)
        pairs = geometry.top_eigenpairs(operator, key=key, k=2, tol=1e-12)
        return pairs.values, pairs.vectors

    together = solutions()
    monkeypatch.setattr(packing, "of", lambda *_: None)
    apart = solutions()
    assert jax.tree.structure(together) == jax.tree.structure(apart)
    for a, b in zip(*map(jax.tree.leaves, (together, apart)), strict=True):
        np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=0, atol=1e-9)


def test_where_leaves_stay_as_they_are():
    assert packing.of({"a": jnp.ones(3)}, ()) is None
    other = jax.device_put(LIKE, jax.devices()[1])
    assert packing.of(other, ()) is None
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put({"a": jnp.ones(4), "b": jnp.ones(2)}, jax.NamedSharding(mesh, jax.P()))
    assert packing.of(spread, ()) is None
    jax.vmap(lambda x: np.testing.assert_(packing.of(LIKE, x) is None))(jnp.ones(2))
    jax.jit(lambda: np.testing.assert_(packing.of(LIKE, ()) is None))()
