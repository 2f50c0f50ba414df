"""Traces by more than plain probes: deflated, sketched, exact; by leaf; over many keys."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.errors import UserError
from sharpjax.geometry import Operator, Status, composed, hessian, trace
from sharpjax.geometry.estimators import deflation, xtrace
from sharpjax.geometry.estimators import trace as probes
from sharpjax.geometry.estimators.request import check
from sharpjax.geometry.operators.gauss_newton import gauss_newton
from tests.problems import Diagonal, awkward_loss, awkward_net, dense, flat
from tests.traces import TRACES, traced

SPECTRA = {
    # That of a trained network: a few values above a bulk.
    "network": np.r_[40, 23, 18, 16, 16, 14, 10, 9, 6, 4, np.linspace(-0.5, 2, 190)],
    "dominated": np.r_[40, np.linspace(-0.5, 1, 199)],
    "flat": np.linspace(0.6, 1.4, 200),
    "fast": 0.9 ** np.arange(200.0),
    "indefinite": np.r_[30, 20, 10, -28, -18, -14, np.linspace(-1, 1, 194)],
}
NETWORK = SPECTRA["network"]


def _multiply(matrix, vector):
    x = jnp.concatenate([vector["a"], vector["b"].reshape(-1)])
    y = jnp.matmul(matrix, x, precision="highest")
    size = vector["a"].size
    return {"a": y[:size], "b": y[size:].reshape(vector["b"].shape)}


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix(Operator):
    """A matrix as an operator on two leaves, that it couples."""

    matrix: Any
    half: int = dataclasses.field(metadata={"static": True})

    @property
    def like(self):
        row = self.matrix[0]
        return {"a": row[: self.half], "b": jnp.expand_dims(row[self.half :], 1)}

    def linearize(self):
        return Partial(_multiply, self.matrix)


def rotated(values, seed=0, dtype: Any = np.float64):
    """A matrix with these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return jnp.asarray((q * values) @ q.T, dtype)


# What the errors are worth. Normal probes do not know a rotation, so diagonals will do.


@functools.partial(jax.jit, static_argnames=("count", "method", "max_products"))
def many(values, target, count, method, max_products):
    """Runs from many keys; with a target where it is positive."""
    solve = functools.partial(
        trace, Diagonal(values), absolute_error=target, method=method, max_products=max_products
    )
    return jax.vmap(lambda key: solve(key=key))(jax.random.split(jax.random.key(0), count))


def errors(name, probes_alone, method, count=1000, max_products=400):
    """Errors over figures of runs stopped where plain probes would be `probes_alone` many."""
    values = SPECTRA[name]
    target = np.sqrt(2 * np.sum(values**2) / probes_alone)
    found = many(jnp.asarray(values, "float32"), jnp.float32(target), count, method, max_products)
    return found, np.asarray(found.value) - values.sum()


@pytest.mark.parametrize(
    "name, probes_alone, most, rates",
    [
        ("network", 60, 26, (0.92, 0.96)),
        ("network", 300, 52, (0.93, 0.97)),
        ("dominated", 60, 18, (0.90, 0.95)),
        ("dominated", 300, 24, (0.93, 0.97)),
        ("flat", 60, 68, (0.93, 0.97)),
        ("indefinite", 60, 25, (0.93, 0.97)),
        ("indefinite", 300, 60, (0.93, 0.97)),
    ],
)
def test_deflated_errors_cover_at_their_nominal_rate(name, probes_alone, most, rates):
    """Where they decide how large the basis is and when to stop. The rate is off by .014 (2 sd)."""
    found, off = errors(name, probes_alone, "deflated")
    assert np.mean(found.num_products) < most
    assert rates[0] < np.mean(np.abs(off) < 1.96 * found.standard_error) < rates[1]
    assert (found.status == Status.OK).all()


@pytest.mark.parametrize("name", ["network", "dominated", "fast"])
def test_errors_of_xtrace_cover(name):
    """From the fewest columns on that it takes; by a factor that simulations gave."""
    found, off = errors(name, 60, "xtrace", max_products=80)
    assert (found.status == Status.OK).all() and np.min(found.num_products) >= 32
    assert 0.93 < np.mean(np.abs(off) < 1.96 * found.standard_error)


# Exact answers.


def test_a_basis_of_the_whole_space_is_exact_leaf_by_leaf(x64, strict, key):
    params, batch = awkward_net()
    matrix = dense(awkward_loss, params, batch)
    operator = hessian(awkward_loss, params, batch)
    found = trace(operator, key=key, max_products=200, basis_size=60)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value, np.trace(matrix), rtol=1e-10)
    assert found.standard_error < 1e-8
    names, ends = tree.path_names(params), np.cumsum([x.size for x in jax.tree.leaves(params)])
    assert list(found.by_leaf) == names
    for name, end, x in zip(names, ends, jax.tree.leaves(params), strict=True):
        block = np.diag(matrix)[end - x.size : end].sum()
        np.testing.assert_allclose(found.by_leaf[name].value, block, atol=1e-9)
    layer = found.block("layers/*")
    np.testing.assert_allclose(layer.value, np.diag(matrix)[1:29].sum(), rtol=1e-9)
    np.testing.assert_allclose(found.block("*").value, found.value, rtol=1e-12)
    assert layer.num_evaluations == found.num_products


@pytest.mark.parametrize("method", ["deflated", "xtrace"])
@pytest.mark.parametrize("values", [[3.0, -2.0, 1.0], [5.0], []], ids=["three", "one", "zero"])
def test_low_rank_is_exact(x64, key, method, values):
    operator = Diagonal(jnp.asarray(np.r_[values, np.zeros(60 - len(values))]))
    found = trace(operator, key=key, method=method, absolute_error=1e-10, max_products=60)
    assert found.status == Status.OK and found.num_products <= 12
    np.testing.assert_allclose(found.value, sum(values), atol=1e-12)


def test_what_ends_a_sketch_may_have_a_trace(key):
    """Next to 1, ten thousand values of 3e-8 pass for rounding; their sum, 3e-4, does not.

    They are equal: the worst case of the bound. The norm of a normal vector of n entries, which the
    bound takes, is off by 1 / sqrt(2 n) of itself (1 sd).
    """
    operator = Diagonal(jnp.asarray(np.r_[1.0, np.full(9999, 3e-8)], "float32"))
    solve = functools.partial(trace, operator, key=key, method="xtrace")
    found = solve()
    assert found.num_products < 10 and found.status == Status.OK
    assert abs(found.value - 1 - 9999 * 3e-8) < (1 + 5 / np.sqrt(2e4)) * found.standard_error
    assert found.standard_error < 5e-4
    assert solve(absolute_error=1e-3).status == Status.OK
    assert solve(absolute_error=1e-4).status == Status.NOT_CONVERGED


def test_the_identity_is_exact_only_where_it_is_spanned(x64, key):
    """Each copy of an eigenvalue takes a vector of its own."""
    found = trace(Diagonal(jnp.ones(30)), key=key, method="xtrace", max_products=100)
    assert found.num_products == 60 and found.value == pytest.approx(30, abs=1e-12)
    found = trace(Diagonal(jnp.ones(30)), key=key, max_products=100)
    assert found.num_products == 34 and found.value == pytest.approx(30, abs=1e-12)


def test_xtrace_is_the_mean_over_spaces_without_one_column(x64, key):
    """By its definition, each space by a QR decomposition of its own."""
    matrix = np.asarray(rotated(NETWORK[:40]))
    operator = Matrix(jnp.asarray(matrix), 13)
    asked = check("trace", operator, key, "xtrace", ("xtrace",), None, None, 20, None, least=2)
    columns = xtrace.run(asked)
    omega = np.stack([flat(tree.index(columns.tests, i)) for i in range(10)], axis=1)
    values = []
    for i in range(10):
        q, _ = np.linalg.qr(matrix @ np.delete(omega, i, axis=1))
        z = omega[:, i] - q @ (q.T @ omega[:, i])
        z *= np.sqrt((40 - 9) / (z @ z))
        values.append(np.trace(q.T @ matrix @ q) + z @ matrix @ z)
    value, error, remainder = xtrace.estimate(columns)
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-9)
    np.testing.assert_allclose(error, 2 * np.std(values, ddof=1) / np.sqrt(10), rtol=1e-8)
    q, _ = np.linalg.qr(matrix @ omega)
    np.testing.assert_allclose(value - remainder, np.trace(q.T @ matrix @ q), rtol=1e-9)


# Leaves.


def test_errors_by_leaf_are_bounds_that_add_up():
    """On a matrix whose leaves are coupled: never below nominal, and at most sqrt 2 above."""
    matrix = rotated(NETWORK[:100], dtype=np.float32)
    operator = Matrix(matrix, 30)

    @jax.jit
    @jax.vmap
    def solve(key):
        return trace(operator, key=key, method="hutchinson", max_products=32)

    found = solve(jax.random.split(jax.random.key(1), 2000))
    blocks = {"a": np.trace(matrix[:30, :30]), "b": np.trace(matrix[30:, 30:])}
    for name, truth in blocks.items():
        leaf = found.by_leaf[name]
        off = np.abs(leaf.value - truth)
        assert 0.94 < np.mean(off < 1.96 * leaf.standard_error) < 0.995
        assert np.mean(leaf.standard_error**2) < 2.1 * np.mean(off**2)
    total = sum(np.square(leaf.standard_error) for leaf in found.by_leaf.values())
    np.testing.assert_allclose(np.sqrt(total), found.standard_error, rtol=1e-5)


def test_blocks_that_are_not_there(key):
    operator = Diagonal({"a": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(UserError, match="no leaf is named 'c'"):
        trace(operator, key=key, max_products=4).block("c")
    with pytest.raises(UserError, match="method='xtrace' gives no values by leaf"):
        trace(operator, key=key, method="xtrace").block("a")


# Exact by the structure of the model.


def _model(params, batch):
    return jax.nn.relu(batch["x"] @ params["w"]) @ params["v"]


def _outer(outputs, batch):
    return jnp.mean(jnp.sum(jnp.square(outputs - batch["y"]), axis=1))


def _loss(params, batch):
    return _outer(_model(params, batch), batch)


def test_exact_of_a_hessian_and_of_its_gauss_newton_part(x64):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=(4, 2)))}
    batch = {"x": jnp.asarray(rng.normal(size=(8, 3))), "y": jnp.asarray(rng.normal(size=(8, 2)))}
    matrix = dense(_loss, params, batch)
    loss = composed(_model, _outer)
    for operator in (hessian(loss, params, batch), gauss_newton(loss, params, batch)):
        result = trace(operator, method="exact")
        assert result.status == Status.OK
        np.testing.assert_allclose(result.value, np.trace(matrix), rtol=1e-12)
        assert result.remainder == result.standard_error == 0
        np.testing.assert_allclose(result.block("v").value, np.diag(matrix)[:8].sum(), rtol=1e-12)


# What must not change a number, and how it ends.

ITERATIVE = ["deflated", "xtrace"]


@pytest.mark.parametrize("method", ITERATIVE)
def test_lanes_equal_single_calls(x64, strict, key, method):
    """Lanes of their own pace. A Krylov space magnifies rounding once values have converged."""
    spectra = jnp.stack([jnp.asarray(NETWORK[:60]), jnp.linspace(1.0, 2.0, 60)])
    solve = functools.partial(trace, key=key, method=method, relative_error=0.06, max_products=120)
    together = jax.vmap(lambda d: solve(Diagonal(d)))(spectra)
    for i in range(2):
        alone = solve(Diagonal(spectra[i]))
        assert together.num_products[i] == alone.num_products
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-7)
        np.testing.assert_allclose(together.standard_error[i], alone.standard_error, rtol=1e-6)


def _counted(params, batch):
    traced("loss")
    return jnp.mean(jnp.cos(batch @ params))


@pytest.mark.parametrize("method", ITERATIVE)
def test_new_numbers_compile_nothing(key, method):
    batch = jax.random.normal(key, (16, 40))

    def solve(i):
        operator = hessian(_counted, jnp.full(40, 0.1 * i), batch + i)
        error = jnp.float32(0.01 / i)
        return trace(operator, key=jax.random.key(i), method=method, absolute_error=error)

    solve(1)
    before = TRACES["loss"]
    assert solve(2).num_products > 4 and solve(3).num_products > 4
    assert TRACES["loss"] == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("method", ITERATIVE)
def test_sharded_parameters(key, kind, method):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    values = {"a": jnp.arange(32.0).reshape(8, 4), "b": jnp.ones(3)}
    size = {"basis_size": 8} if method == "deflated" else {}
    solve = functools.partial(trace, method=method, max_products=32, **size)
    expected = solve(Diagonal(values), key=key)
    lies = {"a": jax.NamedSharding(mesh, jax.P("model")), "b": jax.NamedSharding(mesh, jax.P())}
    with jax.set_mesh(mesh):
        found = solve(Diagonal(jax.device_put(values, lies)), key=key)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-3)


def _not_finite(params, batch):
    return jnp.mean(batch) * jnp.sum(jnp.sqrt(params))


@pytest.mark.parametrize("method", ITERATIVE)
def test_how_it_ends(key, method):
    found = trace(hessian(_not_finite, jnp.zeros(30), jnp.ones(3)), key=key, method=method)
    assert found.status == Status.NON_FINITE and found.num_products <= 2
    balanced = Diagonal(jnp.asarray(np.r_[np.ones(200), -np.ones(200)], "float32"))
    found = trace(balanced, key=key, method=method, relative_error=1e-4, max_products=40)
    assert found.status == Status.NOT_CONVERGED and found.num_products == 40


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "hutch"}, "unknown method 'hutch'"),
        ({"method": "exact", "max_products": 15}, "max_products must be a whole number >= 16"),
        ({"method": "exact"}, "exact' is for Gauss-Newton and Fisher.*composed.*got Diagonal"),
        ({"basis_size": 0}, "basis_size must be a whole number >= 1"),
        ({"basis_size": 8, "method": "hutchinson"}, "method='hutchinson' has no basis"),
        ({"basis_size": 8, "method": "xtrace"}, "method='xtrace' has no basis"),
        ({"basis_size": 8, "method": "exact"}, "method='exact' has no basis"),
        ({"method": "xtrace", "max_products": 31}, "max_products must be a whole number >= 32"),
        ({"key": None}, "trace: method='deflated' draws probes at random. Give a key"),
        ({"key": None, "method": "xtrace"}, "method='xtrace' draws probes at random"),
    ],
)
def test_wrong_arguments(key, options, message):
    with pytest.raises(UserError, match=message):
        trace(Diagonal(jnp.ones(5)), **({"key": key} | options))


def test_statistics_are_equal_by_value():
    assert probes.TraceStatistic() == probes.TraceStatistic()
    assert hash(deflation.GrowStep(probes.TraceStatistic())) == hash(
        deflation.GrowStep(probes.TraceStatistic())
    )
