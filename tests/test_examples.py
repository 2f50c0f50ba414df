"""The examples of geometry run as they stand, and what they print is what dense matrices say."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def ran(name, capsys):
    """The module of an example, and what its `main` printed."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    return module, capsys.readouterr().out


def numbers(text, line):
    """Those on the line that begins so."""
    (found,) = re.findall(rf"^{line}:(.*)$", text, re.MULTILINE)
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", found)]


def dense(loss, params, batch):
    """The Hessian as a matrix."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: loss(unravel(x), batch)))(flat), np.float64)


def dense_gauss_newton(model_fn, outer_loss, params, batch):
    """`J' H J` from the Jacobian of the model and the Hessian in its outputs."""
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def parts(x):
        outputs = model_fn(unravel(x), batch)
        inner = jax.hessian(lambda z: outer_loss(z.reshape(outputs.shape), batch))
        return jax.jacobian(lambda x: model_fn(unravel(x), batch).ravel())(x), inner(
            outputs.ravel()
        )

    jacobian, inner = (np.asarray(part, np.float64) for part in parts(flat))
    return jacobian.T @ inner @ jacobian


def top(matrix, k):
    return np.linalg.eigvalsh(matrix)[::-1][:k]


def test_nnx(capsys):
    from flax import nnx

    example, text = ran("nnx", capsys)
    model, batch = example.problem()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    matrix = dense(Partial(example.loss, graph, rest), params, batch)
    # `converged` promises a relative error of 1e-3.
    np.testing.assert_allclose(numbers(text, "eigenvalues"), top(matrix, 3), rtol=1e-3)
    value, error = numbers(text, "trace")
    assert error <= 0.05 * value and abs(value - np.trace(matrix)) < 6 * error + 1e-3
    shares = [numbers(text, line)[0] for line in re.findall("share of .*(?=:)", text)]
    assert len(shares) == len(jax.tree.leaves(params)) and abs(sum(shares) - 1) < 1e-3


def test_equinox(capsys):
    eqx = pytest.importorskip("equinox")
    example, text = ran("equinox_model", capsys)
    model, batch = example.problem()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def model_fn(params, batch):
        return example.apply(static, params, batch)

    matrix = dense(lambda p, b: example.cross_entropy(model_fn(p, b), b), params, batch)
    np.testing.assert_allclose(numbers(text, "eigenvalues"), top(matrix, 3), rtol=1e-3)
    last = sum(x.size for x in jax.tree.leaves(params.layers[-1]))
    (of_last,) = numbers(text, "largest eigenvalue of the last layer alone")
    np.testing.assert_allclose(of_last, top(matrix[-last:, -last:], 1)[0], rtol=1e-3)
    gauss_newton = dense_gauss_newton(model_fn, example.cross_entropy, params, batch)
    (trace,) = numbers(text, "trace of the Gauss-Newton matrix")
    np.testing.assert_allclose(trace, np.trace(gauss_newton), rtol=1e-4)


def test_masked_transformer(capsys):
    example, text = ran("masked_transformer", capsys)
    params, batch = example.problem()

    def loss(params, batch):
        return example.outer_loss(example.model_fn(params, batch), batch)

    value, error = numbers(text, "largest eigenvalue")
    truth = top(dense(loss, params, batch), 1)[0]
    assert abs(value - truth) <= 1e-3 * truth
    gauss_newton = dense_gauss_newton(example.model_fn, example.outer_loss, params, batch)
    (trace,) = numbers(text, "trace of the Gauss-Newton matrix")
    np.testing.assert_allclose(trace, np.trace(gauss_newton), rtol=1e-4)
    assert "without the weights: gauss_newton:" in text and "example_weight" in text


def test_larger_than_memory(capsys, tmp_path):
    example, text = ran("larger_than_memory", capsys)
    example.write(tmp_path)
    files = example.Files(tmp_path)
    assert len(list(files)) == len(list(files)) == example.FILES
    batch = jax.tree.map(lambda *xs: np.concatenate(xs), *files)
    truth = top(dense(example.loss, example.weights(), batch), 2)
    passes = {}
    for name in ("warm", "cold"):
        *values, passes[name], examples = numbers(text, name)
        np.testing.assert_allclose(values, truth, rtol=1e-3)
        assert examples == len(batch["y"])
    assert passes["warm"] < passes["cold"]


def test_edge_of_stability(capsys):
    """It starts far below the edge, and ends on it, up to the oscillation that keeps it there."""
    _, text = ran("edge_of_stability", capsys)
    (first,), (_, middle, _) = (
        numbers(text, f"share of the edge, {when}") for when in ("at first", "second half")
    )
    assert first < 0.3 and 0.8 < middle < 1.2
