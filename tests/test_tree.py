"""Pytree algebra against numpy, selection by name, and what is said about wrong arguments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import tree
from sharpjax.errors import UserError


def params():
    return {
        "Conv_0": {"kernel": jnp.arange(12.0).reshape(2, 2, 3), "bias": jnp.ones(3)},
        "head": [jnp.float32(2.0), jnp.zeros((0, 4))],
        "none": None,
    }


def test_path_names_follow_the_leaves():
    assert tree.path_names(params()) == ["Conv_0/bias", "Conv_0/kernel", "head/0", "head/1"]
    assert tree.path_names(jnp.ones(3)) == [""]


def test_no_two_names_are_the_same():
    """One key is itself the full key path of a leaf that shares its short name with another."""
    awkward = {"a/b": 1.0, "a": {"b": 2.0}, "['a/b']": 3.0}
    assert tree.path_names(awkward) == ["[\"['a/b']\"]", "['a']['b']", "['a/b']"]


def test_select_takes_any_of_several_globs():
    mask = tree.select(params(), ["*/kernel", "head/*"])
    assert jax.tree.leaves(mask) == [False, True, True, True]
    assert jax.tree.structure(mask) == jax.tree.structure(params())


def test_select_names_each_glob_that_matches_nothing():
    with pytest.raises(UserError) as error:
        tree.select(params(), ["*/kernel", "Conv_0/kernal", "tail*"])
    message = str(error.value)
    assert "'Conv_0/kernal' (nearest: 'Conv_0/kernel'" in message
    assert "'tail*'" in message and "path_names" in message and "*/kernel'" not in message
    with pytest.raises(UserError, match="empty"):
        tree.select(params(), [])


def test_partition_and_combine_are_inverse():
    mask = tree.select(params(), "*kernel")
    selected, rest = tree.partition(params(), mask)
    assert tree.path_names(selected) == ["Conv_0/kernel"]
    assert tree.path_names(rest) == ["Conv_0/bias", "head/0", "head/1"]
    joined = tree.combine(selected, rest)
    assert jax.tree.structure(joined) == jax.tree.structure(params())
    assert tree.digest(joined) == tree.digest(params())


def test_vdot_and_norm_equal_numpy(x64, strict):
    rng = np.random.default_rng(0)
    a = {"x": rng.normal(size=(3, 4)), "y": [rng.normal(size=()), rng.normal(size=(5,))]}
    b = {"x": rng.normal(size=(3, 4)), "y": [rng.normal(size=()), rng.normal(size=(5,))]}
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b)]
    np.testing.assert_allclose(tree.vdot(_device(a), _device(b)), flat[0] @ flat[1], rtol=1e-14)
    np.testing.assert_allclose(tree.norm(_device(a)), np.linalg.norm(flat[0]), rtol=1e-14)


def _device(t):
    return jax.tree.map(jnp.asarray, t)


def test_vdot_accumulates_in_float32(strict):
    # 4096 ones: bfloat16 sums stop growing at 256.
    ones = {"a": jnp.ones(4096, jnp.bfloat16), "b": jnp.ones(3)}
    assert tree.vdot(ones, ones) == 4099.0
    assert tree.vdot(ones, ones).dtype == jnp.float32
    assert tree.norm({}) == 0.0


def test_vdot_refuses_trees_of_different_length():
    with pytest.raises(ValueError):
        tree.vdot([jnp.ones(2)], [jnp.ones(2), jnp.ones(2)])


def test_vdot_of_leaves_on_an_explicit_mesh():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, jax.P("data")))
        assert jax.jit(tree.vdot)({"x": x}, {"x": x}) == 140.0


def test_algebra_keeps_the_types_of_its_first_argument(strict):
    a = {"x": jnp.ones(3, jnp.bfloat16), "y": jnp.ones(2)}
    b = {"x": jnp.full(3, 2.0), "y": jnp.full(2, 3.0, jnp.bfloat16)}
    c = tree.add_scaled(a, 0.5, b)
    assert [x.dtype for x in jax.tree.leaves(c)] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_array_equal(c["x"].astype(jnp.float32), 2.0)
    np.testing.assert_array_equal(c["y"], 2.5)
    d = jax.jit(tree.scale)(jnp.float32(3.0), a)
    assert d["x"].dtype == jnp.bfloat16 and d["y"][0] == 3.0
    assert tree.norm(tree.zeros_like(a)) == 0.0


def test_add_scaled_adds_before_it_rounds():
    # 1 + 0.00390625 in bfloat16 rounds to 1; two of them together do not.
    a, b = jnp.ones(1, jnp.bfloat16), jnp.full(1, 2**-8)
    assert tree.add_scaled([a], 2.0, [b])[0][0] == 1 + 2**-7


def test_size_counts_arrays_and_structs():
    assert tree.size(params()) == 16
    assert tree.size(jax.eval_shape(params)) == 16


def test_random_trees_have_the_right_moments(key):
    like = {"a": jnp.zeros((100, 100)), "b": jnp.zeros(10_000, jnp.bfloat16)}
    normal = tree.random_normal(key, like)
    signs = tree.random_rademacher(key, like)
    for drawn in (normal, signs):
        assert [x.dtype for x in jax.tree.leaves(drawn)] == [jnp.float32, jnp.bfloat16]
        for leaf in jax.tree.leaves(drawn):
            leaf = leaf.astype(jnp.float32)
            assert abs(leaf.mean()) < 4 / 100 and abs((leaf**2).mean() - 1) < 4 * 2**0.5 / 100
    assert set(np.unique(signs["a"])) == {-1.0, 1.0}
    # Leaves are independent: two leaves of one shape differ.
    pair = tree.random_normal(key, [jnp.zeros(50), jnp.zeros(50)])
    assert abs(np.corrcoef(pair[0], pair[1])[0, 1]) < 0.6
    assert tree.random_normal(key, {}) == {}


def test_stack_and_index():
    members = [tree.scale(float(i), params()) for i in range(3)]
    population = tree.stack(members)
    assert population["Conv_0"]["kernel"].shape == (3, 2, 2, 3)
    assert tree.digest(tree.index(population, 2)) == tree.digest(members[2])


def test_check_floating_names_leaves_and_remedy():
    tree.check_floating("hvp", params())
    with pytest.raises(UserError) as error:
        tree.check_floating("hvp", {"w": jnp.ones(2), "n": jnp.arange(3), "f": 1.0})
    message = str(error.value)
    assert "hvp" in message and "'n' is int32[3]" in message and "'f' is a float" in message
    assert "'w'" not in message and "Partial" in message
    with pytest.raises(UserError, match="no array"):
        tree.check_floating("hvp", {})


def test_check_same_structure_names_leaves():
    like = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    tree.check_same_structure("hvp", "vector", like, like)
    with pytest.raises(UserError, match="hvp: vector .*'b' is missing, 'c' is not in params"):
        tree.check_same_structure("hvp", "vector", {"a": jnp.ones(3), "c": jnp.ones(1)}, like)
    wrong = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 1))}
    with pytest.raises(UserError, match=r"'a' is bfloat16\[3\] where params has float32\[3\]"):
        tree.check_same_structure("hvp", "vector", wrong, like)
    with pytest.raises(UserError, match="containers differ"):
        tree.check_same_structure("hvp", "vector", [jnp.ones(3)], (jnp.ones(3),))


def test_digest_sees_every_difference():
    base = {"a": jnp.ones((2, 3)), "k": jax.random.key(0)}
    variants = [
        base,
        {"a": jnp.ones((3, 2)), "k": jax.random.key(0)},
        {"a": jnp.ones((2, 3), jnp.int32), "k": jax.random.key(0)},
        {"b": jnp.ones((2, 3)), "k": jax.random.key(0)},
        {"a": jnp.ones((2, 3)).at[0, 0].set(1 + 1e-7), "k": jax.random.key(0)},
        {"a": jnp.ones((2, 3)), "k": jax.random.key(1)},
    ]
    assert len({tree.digest(v) for v in variants}) == len(variants)
    assert tree.digest(base) == tree.digest(jax.tree.map(lambda x: x, base))
    assert len(tree.digest(base)) == 64


def pair(register):
    """Two classes with equal fields."""

    class First:
        value: Any
        name: str = dataclasses.field(default="a", metadata={"static": True})

    class Second:
        value: Any
        name: str = dataclasses.field(default="a", metadata={"static": True})

    return [register(dataclasses.dataclass(frozen=True)(cls)) for cls in (First, Second)]


def test_the_structure_of_a_dataclass_names_its_class():
    """By jax's own registration it does not: `jit` then returned a Gauss-Newton product for one
    with an empirical Fisher matrix, in one process of many."""
    first, second = pair(tree.register_dataclass)
    nodes = [first(1.0), second(1.0), first(1.0, "b"), first((1.0, 2.0))]
    structures = [jax.tree.structure(node) for node in nodes]
    assert len(set(structures)) == 4
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])
    assert jax.tree.structure(first(2.0)) == structures[0]
    assert tree.path_names(nodes[3]) == ["value/0", "value/1"]
    assert jax.tree.map(lambda x: 2 * x, nodes[2]) == first(2.0, "b")
    assert jax.tree.unflatten(structures[1], [3.0]) == second(3.0)


def test_which_classes_are_named():
    blind, other = pair(jax.tree_util.register_dataclass)
    seeing, _ = pair(tree.register_dataclass)
    are_told_apart = jax.tree.structure(blind(1.0)) != jax.tree.structure(other(1.0))
    named = [tree.names_its_class(cls(1.0)) for cls in (blind, seeing)]
    assert named == [are_told_apart, True]
    others = ((1.0,), {"a": 1.0}, jax.tree_util.Partial(abs, 1.0), 1.0)
    assert all(map(tree.names_its_class, others))
