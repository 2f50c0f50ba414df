"""Diagonals and Frobenius norms: against dense ones, and what their errors are worth."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Operator, Status, composed, hessian
from sharpjax.geometry.estimators.diagonal import diagonal
from sharpjax.geometry.estimators.frobenius import frobenius
from sharpjax.geometry.operators.gauss_newton import gauss_newton
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat
from tests.traces import TRACES, traced

METHODS = ["deflated", "hutchinson"]
NETWORK = np.r_[40, 23, 18, 16, 16, 14, 10, 9, 6, 4, np.linspace(-0.5, 2, 90)]


def _multiply(matrix, vector):
    return jnp.matmul(matrix, vector, precision="highest")


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix(Operator):
    """A matrix as an operator on one leaf."""

    matrix: Any

    @property
    def like(self):
        return self.matrix[0]

    def linearize(self):
        return Partial(_multiply, self.matrix)


def rotated(values, seed=0):
    """A float32 matrix with these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return np.asarray((q * values) @ q.T, "float32")


@pytest.mark.parametrize("method", METHODS)
def test_it_converges_to_the_dense_diagonal(x64, strict, key, method):
    params, batch = awkward_net()
    truth = np.diag(dense(awkward_loss, params, batch))
    operator = hessian(awkward_loss, params, batch)
    found = diagonal(operator, key=key, method=method, relative_error=0.1, max_products=3000)
    assert found.status == Status.OK
    assert jax.tree.structure(found.value) == jax.tree.structure(params)
    assert found.error <= 0.1 * found.norm
    assert np.linalg.norm(flat(found.value) - truth) < 3 * found.error
    np.testing.assert_allclose(found.norm, np.linalg.norm(truth), rtol=0.1)
    squares = np.sum(np.square(flat(found.standard_error)))
    np.testing.assert_allclose(np.sqrt(squares), found.error, rtol=1e-9)
    assert found.estimates()["diagonal_norm"].value == found.norm


def test_a_basis_of_the_whole_space_is_exact(x64, key):
    matrix = jnp.asarray(rotated(5 * np.cos(np.arange(30)) * 0.6 ** np.arange(30)), "float64")
    matrix = (matrix + matrix.T) / 2
    found = diagonal(Matrix(matrix), key=key, max_products=90)
    np.testing.assert_allclose(found.value, np.diag(matrix), atol=1e-10)
    assert found.error < 1e-10


def _sweep(solve, count):
    return jax.device_get(jax.jit(jax.vmap(solve))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_errors_of_a_diagonal(method):
    """Where they decide when to stop: of each entry, and of the whole."""
    matrix = rotated(NETWORK)
    options = {"method": method, "absolute_error": 8.0, "max_products": 400}
    found = _sweep(lambda key: diagonal(Matrix(jnp.asarray(matrix)), key=key, **options), 300)
    off = found.value - np.diag(matrix)
    assert (found.status == Status.OK).all()
    rate = np.mean(np.abs(off) < 1.96 * found.standard_error)  # over entries and keys
    assert 0.92 < rate < 0.96
    ratio = np.sqrt(np.mean(np.sum(off**2, 1)) / np.mean(found.error**2))
    assert 0.95 < ratio < 1.1


@pytest.mark.parametrize(
    "method, most, least_rate", [("deflated", 60, 0.87), ("hutchinson", 100, 0.90)]
)
def test_errors_of_a_frobenius_norm(method, most, least_rate):
    """Not quite nominal: what is left by a basis may be one value, of which it has a part."""
    values = jnp.asarray(NETWORK, "float32")
    options = {"method": method, "relative_error": 0.04, "max_products": 400}
    found = _sweep(lambda key: frobenius(Diagonal(values), key=key, **options), 1000)
    assert (found.status == Status.OK).all() and np.mean(found.num_products) < most
    off = np.abs(found.value - np.linalg.norm(NETWORK))
    assert least_rate < np.mean(off < 1.96 * found.standard_error) < 0.97
    ratio = np.sqrt(np.mean(off**2) / np.mean(found.standard_error**2))
    assert 0.95 < ratio < 1.2


def test_a_frobenius_norm_against_a_dense_one(x64, strict, key):
    params, batch = awkward_net()
    truth = np.linalg.norm(dense(awkward_loss, params, batch))
    operator = hessian(awkward_loss, params, batch)
    found = frobenius(operator, key=key, max_products=90, basis_size=34)
    np.testing.assert_allclose(found.value, truth, rtol=1e-5)
    assert found.standard_error < 1e-4
    assert found.estimates()["frobenius"].num_evaluations == found.num_products
    zero = frobenius(Diagonal(jnp.zeros(9)), key=key, relative_error=0.0)
    assert zero.value == zero.standard_error == 0 and zero.status == Status.OK


def _counted(params, batch):
    traced("loss")
    return jnp.mean(jnp.cos(batch @ params))


@pytest.mark.parametrize("solve", [diagonal, frobenius])
def test_new_numbers_compile_nothing(key, solve):
    batch = jax.random.normal(key, (16, 40))

    def run(i):
        operator = hessian(_counted, jnp.full(40, 0.1 * i), batch + i)
        return solve(operator, key=jax.random.key(i), max_products=40 + i)

    run(1)
    traced = TRACES["loss"]
    assert run(2).num_products > 30
    assert TRACES["loss"] == traced


def _not_finite(params, batch):
    return jnp.mean(batch) * jnp.sum(jnp.sqrt(params))


@pytest.mark.parametrize("method", METHODS)
def test_how_a_diagonal_ends(key, method):
    operator = hessian(_not_finite, jnp.zeros(30), jnp.ones(3))
    found = diagonal(operator, key=key, method=method)
    assert found.status == Status.NON_FINITE and found.num_products <= 2
    matrix = jnp.asarray(rotated(np.r_[np.ones(40), -np.ones(40)]))
    found = diagonal(Matrix(matrix), key=key, method=method, relative_error=1e-4, max_products=40)
    assert found.status == Status.NOT_CONVERGED and found.num_products == 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_parameters(key, kind):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    values = {"a": jnp.arange(1.0, 33.0).reshape(8, 4), "b": jnp.ones(3)}
    lies = {"a": jax.NamedSharding(mesh, jax.P("model")), "b": jax.NamedSharding(mesh, jax.P())}
    with jax.set_mesh(mesh):
        found = diagonal(Diagonal(jax.device_put(values, lies)), key=key, max_products=72)
    for leaf, place in zip(jax.tree.leaves(found.value), jax.tree.leaves(lies), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    np.testing.assert_allclose(flat(found.value), flat(values), atol=1e-3)


@pytest.mark.parametrize(
    "solve, options, message",
    [
        (diagonal, {"max_products": 15}, "diagonal: max_products must be a whole number >= 16"),
        (diagonal, {"method": "xtrace"}, "unknown method 'xtrace'"),
        (diagonal, {"relative_error": -1.0}, "diagonal: relative_error must be a number >= 0"),
        (frobenius, {"method": "exact"}, "unknown method 'exact'"),
        (frobenius, {"absolute_error": -1.0}, "frobenius: absolute_error must be a number >= 0"),
        (diagonal, {"basis_size": 8, "method": "exact"}, "method='exact' has no basis"),
        (diagonal, {"key": None}, "diagonal: method='deflated' draws probes at random"),
        (frobenius, {"basis_size": 8, "method": "hutchinson"}, "'hutchinson' has no basis"),
        (frobenius, {"key": None}, "frobenius: method='deflated' draws probes at random"),
        (frobenius, {"basis_size": 0}, "frobenius: basis_size must be a whole number >= 1"),
    ],
)
def test_wrong_arguments(key, solve, options, message):
    with pytest.raises(UserError, match=message):
        solve(Diagonal(jnp.ones(5)), **({"key": key} | options))
    with pytest.raises(UserError, match="the first argument must be an operator"):
        solve(tree.zeros_like(jnp.ones(5)), key=key)


def _relu_model(params, batch):
    return jax.nn.relu(batch["x"] @ params["w"]) @ params["v"]


def _outer(outputs, batch):
    return jnp.mean(jnp.sum(jnp.square(outputs - batch["y"]), axis=1))


def _loss(params, batch):
    return _outer(_relu_model(params, batch), batch)


def test_exact_of_a_hessian_and_of_its_gauss_newton_part(x64):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=(4, 2)))}
    batch = {"x": jnp.asarray(rng.normal(size=(8, 3))), "y": jnp.asarray(rng.normal(size=(8, 2)))}
    expected = np.diag(dense(_loss, params, batch))
    loss = composed(_relu_model, _outer)
    for operator in (hessian(loss, params, batch), gauss_newton(loss, params, batch)):
        result = diagonal(operator, method="exact")
        assert result.status == Status.OK and result.error == 0
        np.testing.assert_allclose(flat(result.value), expected, rtol=1e-10)
        np.testing.assert_allclose(result.norm, np.linalg.norm(expected), rtol=1e-10)
