"""Sums, multiples and damping: against matrices, over odd trees, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import hessian
from sharpjax.geometry.operators.algebra import Damped, Scaled, Sum
from sharpjax.geometry.operators.blocks import Restricted, block_diagonal, masked, restricted
from sharpjax.geometry.operators.scaling import congruence
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat


@jax.jit
def matrices(operators):
    """All of them in one compilation; on the same space."""
    vector, unravel = ravel_pytree(operators[0].like)
    units = jax.vmap(unravel)(jnp.eye(len(vector), dtype=vector.dtype))
    products = [operator.linearize() for operator in operators]
    return [jax.vmap(lambda v, p=p: ravel_pytree(p(v))[0])(units).T for p in products]


def test_compositions_equal_those_of_matrices(x64, strict):
    params, batch = awkward_net()
    a = hessian(awkward_loss, params, batch)
    values = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), params)
    b: Any = Diagonal(values)
    truth, other = dense(awkward_loss, params, batch), np.diag(flat(b.values))
    one = np.eye(len(truth))
    found = {
        "sum": (a + b, truth + other),
        "difference": (a - b, truth - other),
        "reflected": (b - a, other - truth),
        "multiple": (2 * a * np.float32(0.5) * jnp.float64(3), 3 * truth),
        "minus": (-(a + b), -truth - other),
        "damped": (0.5 + 2 * (a + 1), 2 * truth + 2.5 * one),
        "less": (a - np.float64(0.5), truth - 0.5 * one),
        "numpy's": (np.float32(2) * a + np.int64(1), 2 * truth + one),
        "jax's": (jnp.float32(2) * a + jnp.int32(1), 2 * truth + one),
        "from a number": (1 - a, one - truth),
        "Python's sum": (sum([a, b, a]), 2 * truth + other),
    }
    assert isinstance(found["difference"][0], Sum) and isinstance(found["less"][0], Damped)
    together = matrices([operator for operator, _ in found.values()])
    for (name, (_, expected)), result in zip(found.items(), together, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-13, err_msg=name)


def test_sums_are_flat():
    a, b = Scaled(Diagonal(jnp.ones(2)), 1.0), Damped(Diagonal(jnp.ones(2)), 1.0)
    total = (b + a) + (a + b) - b
    assert isinstance(total, Sum) and total.operators == (b, a, a, b, Scaled(b, -1.0))
    assert sum([b]) is b


def test_numbers_may_be_traced_and_have_a_population_axis(x64, strict):
    a = hessian(lambda w, _: jnp.sum(w**4) / 12, jnp.arange(3.0), None)

    def product(factor, damping):
        return (factor * a + damping).linearize()(jnp.ones(3))

    factors, dampings = jnp.arange(1.0, 5.0), jnp.arange(4.0)
    found = jax.jit(jax.vmap(product))(factors, dampings)
    expected = np.outer(factors, np.arange(3.0) ** 2) + np.asarray(dampings)[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    gradient = jax.grad(lambda f: jnp.sum(product(f, 0.0)))(2.0)
    np.testing.assert_allclose(gradient, 0 + 1 + 4)


INTEGERS = [np.uint8(3), jnp.uint32(3), np.int8(-128), jnp.int32(-(2**31)), 10**12, True]


@pytest.mark.parametrize("number", INTEGERS, ids=repr)
def test_integers_of_any_type_are_numbers(number, strict):
    """Their negatives may be none of their type, and they may be too large for it."""
    a, value = Diagonal(jnp.ones(())), float(number)
    found = [a + number, a - number, number - a, number * a, a / number]
    expected = [1 + value, 1 - value, value - 1, value, 1 / value]
    np.testing.assert_allclose([o @ jnp.ones(()) for o in found], expected, rtol=1e-6)


@functools.partial(jax.jit, static_argnames="structure")
def apply(operator, vector, structure):
    COMPILED.append(structure)
    return operator.linearize()(vector)


COMPILED = []


def test_other_numbers_compile_nothing():
    a = Scaled(Diagonal(jnp.ones(2)), 1.0)
    for i in range(1, 4):
        found = apply(float(i) * a + 0.5 * i, jnp.ones(2), "one")
        np.testing.assert_allclose(found, 1.5 * i)
    assert COMPILED == ["one"]


def test_narrow_parameters():
    """Vectors are in float32 where the parameters are not, and so are products."""
    params, batch = awkward_net(dtype=np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    a = hessian(awkward_loss, narrow, batch)
    wide = hessian(awkward_loss, tree.widen(narrow), batch)
    v = tree.random_normal(jax.random.key(0), wide.params)
    found, expected = jax.jit(lambda *o: [x.linearize()(v) for x in o])(
        2 * (a + wide) - 3.0, 4 * wide - 3.0
    )
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-5)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"a": jnp.ones(4)}, r"'a' is float32\[3\] in the first and float32\[4\] in the second"),
        ({"b": jnp.ones(3)}, "'a' is float32.3. in the first and missing in the second"),
        ({"a": jnp.ones(3), "b": jnp.ones(())}, r"'b' is missing in the first and float32\[\] in"),
        (jnp.ones(3), "'a' is float32"),
    ],
)
def test_operators_on_other_spaces_are_refused(other, message):
    a = Scaled(Diagonal({"a": jnp.ones(3)}), 1.0)
    with pytest.raises(UserError, match=rf"^A \+ B: .*different vectors: {message}.*restricted"):
        _ = a + Diagonal(other)
    with pytest.raises(UserError, match="different vectors"):
        _ = Diagonal(other) - a
    lists = (Scaled(Diagonal(kind([jnp.ones(1), jnp.ones(1)])), 1.0) for kind in (list, tuple))
    with pytest.raises(UserError, match="their containers differ"):
        sum(lists)


@pytest.mark.parametrize("other", [None, "a", 1j, jnp.ones(3), np.ones(1), jax.random.key(0)])
def test_what_is_no_number_is_refused(other):
    a = Scaled(Diagonal(jnp.ones(3)), 1.0)
    for combine in (lambda: a + other, lambda: a - other, lambda: a * other, lambda: other * a):
        with pytest.raises(
            TypeError, match="unsupported operand|can't multiply|not support ufuncs"
        ):
            combine()


# Any pytree.

LEAVES = st.sampled_from(
    [
        ((), "float32"),
        ((3,), "float32"),
        ((2, 2), "bfloat16"),
        ((0, 4), "float32"),
        ((2,), "float64"),
        None,
    ]
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["a", "b/c", "w[0]"]), inner, min_size=1, max_size=2),
    ),
    max_leaves=4,
).filter(lambda t: any(kind and 0 not in kind[0] for kind in kinds(t)))


def is_kind(x):
    return x is None or isinstance(x, tuple) and isinstance(x[-1], str)


def kinds(structure):
    return jax.tree.leaves(structure, is_leaf=is_kind)


def make(structure, seed):
    rng = np.random.default_rng(seed)

    def leaf(kind):
        if kind is None:
            return None
        shape, dtype = kind
        return jnp.asarray(rng.normal(size=shape), dtype)

    return jax.tree.map(leaf, structure, is_leaf=is_kind)


def any_loss(params, batch):
    """Couples all numbers, and has curvature of its own in each."""
    wide = [x.astype(jnp.float64) for x in jax.tree.leaves(params)]
    total = sum(jnp.sum(x * (i + 1)) for i, x in enumerate(wide))
    return jnp.sin(total) + sum(jnp.sum(x**4) for x in wide)


@given(TREES, st.integers(0, 3))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_products_are_linear_symmetric_and_made_of_blocks(structure, seed):
    with jax.enable_x64(True):
        params = make(structure, seed)
        a = hessian(any_loss, params, None)
        u, v = (tree.random_normal(jax.random.key(i), tree.widen(params)) for i in (1, 2))
        where = tree.path_names(params)[0].replace("[", "[[]")
        mask = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 2, params)
        halves = jax.tree.map(lambda x: jnp.float32(0.5), params)
        operators = [
            2 * a - 0.5,
            masked(a, mask),
            congruence(a, halves),
            block_diagonal(a),
            restricted(a, where),
        ]

        @jax.jit
        def products(operators, u, v):
            """For each operator the vectors x, y and x + 2 y, and their products."""
            found = []
            for operator in operators:
                keep = tree.select(params, where if isinstance(operator, Restricted) else "*")
                x, y = (tree.partition(w, keep)[0] for w in (u, v))
                inputs = tree.stack([x, y, tree.add_scaled(x, 2.0, y)])
                found.append((inputs, jax.vmap(operator.linearize())(inputs)))
            return found

        results = products(operators, u, v)
        for inputs, outputs in results:
            assert jax.tree.structure(outputs) == jax.tree.structure(inputs)
            types = [[x.dtype for x in jax.tree.leaves(t)] for t in (outputs, inputs)]
            assert types[0] == types[1]
            x, y, _ = (tree.index(inputs, i) for i in range(3))
            ax, ay, mixed = (tree.index(outputs, i) for i in range(3))
            size = 1 + float(tree.norm(ax) * tree.norm(y) + tree.norm(ay) * tree.norm(x))
            assert abs(float(tree.vdot(y, ax) - tree.vdot(x, ay))) < 3e-6 * size
            error = tree.add_scaled(mixed, -1.0, tree.add_scaled(ax, 2.0, ay))
            assert float(tree.norm(error)) < 3e-6 * size
        # A block is the part of a product with zeros elsewhere.
        part = results[4][1]
        only = tree.partition(u, tree.select(params, where))[0]
        rest = tree.partition(tree.zeros_like(u), tree.select(params, where))[1]
        whole = jax.jit(lambda o, x: o.linearize()(x))(a, tree.combine(only, rest))
        cut = tree.partition(whole, tree.select(params, where))[0]
        np.testing.assert_allclose(flat(tree.index(part, 0)), flat(cut), rtol=1e-5, atol=1e-5)
