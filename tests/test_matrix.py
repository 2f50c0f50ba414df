"""Operators by hand: products, dense matrices, scipy, and what is said of wrong vectors."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.sparse.linalg import eigsh

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Operator, averaged, hessian, restricted, top_eigenpairs
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat
from tests.traces import TRACES, traced


def quartic(params, batch):
    traced("quartic")
    return jnp.mean(batch) * jnp.sum(params["w"] ** 4) + jnp.sum(params["w"]) * params["b"]


def problem(i=1.0):
    return {"w": jnp.full(3, i), "b": jnp.float32(i)}, jnp.full(4, i)


def test_products_equal_the_dense_hessian(x64, strict):
    params, batch = awkward_net()
    truth = dense(awkward_loss, params, batch)
    v = tree.random_normal(jax.random.key(1), params)
    full = hessian(awkward_loss, params, batch)
    parts = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), batch)
    batches = [tree.index(parts, i) for i in range(3)]
    mean = averaged(functools.partial(hessian, awkward_loss, params), batches)
    for operator in (full, mean, jax.tree.map(jnp.asarray, full)):
        product = operator @ v
        assert jax.tree.structure(product) == jax.tree.structure(params)
        np.testing.assert_allclose(flat(product), truth @ flat(v), atol=1e-13)
    half = restricted(full / 2, ("gain", "layers/0/*"))
    only = tree.partition(v, tree.select(params, half.where))[0]
    inside = jax.jit(lambda o, x: o @ x)(half, only)
    np.testing.assert_allclose(flat(inside), flat(half @ only), atol=1e-13)
    many = tree.stack([v, tree.scale(2.0, v)])
    together = jax.vmap(lambda v: full @ v)(many)
    np.testing.assert_allclose(flat(tree.index(together, 1)), 2 * truth @ flat(v), atol=1e-13)


def test_products_are_compiled_once_and_of_the_loss_as_it_is(compilations):
    params, batch = problem()
    first = hessian(quartic, params, batch) @ params
    before = TRACES["quartic"]
    compilations.clear()
    other, batch = problem(2.0)
    second = hessian(quartic, other, batch) @ other
    assert TRACES["quartic"] == before and compilations == []
    # 12 w^2 mean(batch) w + b, at 1 and at 2
    assert first["w"].tolist() == [13] * 3 and second["w"].tolist() == [194] * 3

    loss = Scaled()
    operator = hessian(loss, jnp.ones(2), None)
    assert (operator @ jnp.ones(2)).tolist() == [2, 2]
    loss.factor = 3.0
    assert (operator @ jnp.ones(2)).tolist() == [6, 6]


class Scaled:
    factor = 1.0

    def __call__(self, params, batch):
        return self.factor * jnp.sum(params**2)


def test_a_product_has_a_derivative():
    def along(w, v):
        return jnp.vdot(v, hessian(lambda w, _: jnp.sum(w**3), w, None) @ v)

    found = jax.grad(along, argnums=(0, 1))(jnp.arange(3.0), jnp.ones(3))
    np.testing.assert_allclose(found, [[6, 6, 6], [0, 12, 24]])


# Dense matrices.


def test_a_dense_matrix_has_the_order_of_ravel_pytree(x64, strict):
    params, batch = awkward_net()
    truth = dense(awkward_loss, params, batch)
    operator = hessian(awkward_loss, params, batch)  # of 34 numbers, so in two parts
    np.testing.assert_allclose(operator.to_dense(), truth, atol=1e-13)
    inside = jax.jit(lambda o: o.to_dense())(operator)
    np.testing.assert_allclose(inside, truth, atol=1e-13)
    halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    mean = averaged(functools.partial(hessian, awkward_loss, params), halves, cache_bytes=0)
    np.testing.assert_allclose((2 * mean - 1.0).to_dense(), 2 * truth - np.eye(34), atol=1e-13)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn(Operator):
    """Not symmetric, to see which index is which; its structure is a field."""

    matrix: Any
    like: Any

    def linearize(self):
        return Partial(jnp.matmul, self.matrix)


def test_columns_are_columns():
    numbers = jnp.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(Turn(numbers, jnp.ones(3)).to_dense(), numbers)


def test_types_of_dense_matrices(x64):
    mixed = Diagonal({"a": jnp.ones(1, jnp.bfloat16), "b": jnp.ones(1, jnp.float32)})
    assert mixed.to_dense().dtype == mixed.to_scipy().dtype == np.float32
    wide = Diagonal({"a": jnp.ones(1, jnp.float32), "b": jnp.ones(1, jnp.float64)})
    assert wide.to_dense().dtype == wide.to_scipy().dtype == np.float64


def test_a_large_matrix_is_refused():
    with pytest.raises(UserError, match="^to_dense: 40000 x 40000 numbers take 5.96 GiB.*@ v"):
        Diagonal(jnp.ones(40000)).to_dense()
    with pytest.raises(UserError, match="max_bytes=35 allows"):
        Diagonal(jnp.ones(3)).to_dense(max_bytes=35)
    assert Diagonal(jnp.ones(3)).to_dense(max_bytes=36).shape == (3, 3)


# scipy.


def test_arpack_finds_the_same(x64, key):
    params, batch = awkward_net()
    operator = hessian(awkward_loss, params, batch)
    view = operator.to_scipy()
    assert view.shape == (34, 34)
    v = ravel_pytree(tree.random_normal(key, params))[0]
    truth = dense(awkward_loss, params, batch)
    np.testing.assert_allclose(view @ v, truth @ v, atol=1e-13)
    np.testing.assert_allclose(view.H @ np.eye(34), truth, atol=1e-13)
    turned = np.asarray(v) * (1 + 2j)  # as GMRES with complex iterates asks
    np.testing.assert_allclose(view @ turned, truth @ turned, atol=1e-13)
    values = eigsh(view, k=3, which="LA", return_eigenvectors=False)
    ours = top_eigenpairs(operator, key=key, k=3, tol=1e-9).values
    np.testing.assert_allclose(np.sort(values), np.sort(ours), rtol=1e-8)
    halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    mean = averaged(functools.partial(hessian, awkward_loss, params), halves)
    np.testing.assert_allclose(mean.to_scipy() @ v, truth @ v, atol=1e-13)
    with pytest.raises(UserError, match="^to_scipy: call it outside of jit"):
        jax.jit(lambda o: o.to_scipy())(operator)


# What a user can get wrong.


@pytest.mark.parametrize(
    "vector, message",
    [
        ({"w": jnp.ones(3)}, "structure of operator.like; 'b' is missing"),
        ({"w": jnp.ones(4), "b": jnp.ones(())}, r"'w' is float32\[4\] where operator.like has"),
        ({"w": jnp.arange(3), "b": jnp.ones(())}, "'w' is int32"),
        (jnp.ones(4), r"v is one flat array. .*ravel_pytree\(operator.like\)\[1\]\(v\)"),
        ({"w": jnp.ones((5, 3)), "b": jnp.ones(5)}, r"leading axis of 5. .*jax.vmap.*jax.lax.map"),
        (None, "structure of operator.like"),
        ("w", "structure of operator.like"),
    ],
)
def test_wrong_vectors(vector, message):
    with pytest.raises(UserError, match=f"^operator @ v: .*{message}"):
        hessian(quartic, *problem()) @ vector


def test_operators_are_not_multiplied_with_each_other_or_from_the_right():
    a = Diagonal(jnp.ones(2))
    for wrong in (lambda: a @ a, lambda: np.ones(2) @ a, lambda: jnp.ones(2) @ a):
        with pytest.raises(TypeError):
            wrong()


def test_what_is_no_operator(key):
    class Duck:
        like = jnp.ones(2)

        def linearize(self):
            return lambda v: v

    with pytest.raises(UserError, match=r"got Duck.*operator\(matvec, like=params\).*subclass"):
        top_eigenpairs(Duck(), key=key)  # pyright: ignore[reportArgumentType]

    class Unregistered(Operator):
        like = jnp.ones(2)

        def linearize(self):
            return Partial(jnp.multiply, 2.0)

    with pytest.raises(UserError, match="Unregistered, is not registered.*register_dataclass"):
        top_eigenpairs(Unregistered(), key=key)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Blind(Operator):
        like: jax.Array

        def linearize(self):
            return Partial(jnp.multiply, 2.0)

    if tree.names_its_class(Blind(jnp.ones(2))):
        return  # jax tells classes apart by now
    for blind in (Blind(jnp.ones(2)), 2 * Blind(jnp.ones(2)) + 1):
        with pytest.raises(UserError, match="Blind, is registered.*sharpjax.tree.register_data"):
            top_eigenpairs(blind, key=key)
