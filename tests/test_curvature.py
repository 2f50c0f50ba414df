"""Curvature and sharpness along a training: of the right coordinates, one search from the last."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from sharpjax import data, nn
from sharpjax.nn.svd import Decomposition, merge
from sharpjax.nn.tokens import TokenMLP
from sharpjax.train import state
from sharpjax.train.curvature import Curvature
from sharpjax.train.plan import Subject, When

MEASURE = Curvature(
    When(),
    num_examples=24,
    tol=1e-4,
    max_products=80,
    trace_error=0.3,
    max_probes=8,
    adaptive_rho=0.1,
    adaptive_steps=2,
)


def a_subject(model, params, variables=()):
    return Subject(0, (), 0, model, state.fresh(params, dict(variables), (), ()), at=None)


def named(found):
    return {metric: estimate for (metric, of), estimate in found.rows.items() if not of}


@pytest.mark.parametrize("rank", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_curvature_is_that_of_the_coordinates(key, rank):
    """In W and in (U, s, V), against the whole Hessian; the second search starts from the first."""
    dense = TokenMLP(num_classes=9, width=6, features=4)
    model = dense.clone(decompose=rank and Decomposition(rank))
    measure = dataclasses.replace(MEASURE, continues=True, in_factors=bool(rank))
    splits = data.on_device(data.Modular("+", 7, 0.8).load(key))
    tokens, label = splits.train.input[:24], splits.train.label[:24]
    params = jax.jit(model.init)(key, tokens)["params"]
    subject = a_subject(model, params)
    carry, found = measure(measure.init(subject, splits), subject, splits, key)
    found, again = named(found), named(measure(carry, subject, splits, key)[1])
    coordinates = {"train[:24]": (dense, merge(params))}
    if rank:
        coordinates["train[:24]/factors"] = (model, params)
    for where, (net, point) in coordinates.items():
        flat, undo = jax.flatten_util.ravel_pytree(point)

        def loss(w, net=net, undo=undo):
            logits = net.apply({"params": undo(w)}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        hessian = np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64)
        top = np.linalg.eigvalsh(hessian)[-1]
        for one in (found, again):
            assert one[f"{where}/hessian/lambda_1"].value == pytest.approx(top, rel=1e-3)
        trace = found[f"{where}/hessian/trace"]
        assert abs(trace.value - np.trace(hessian)) < 4 * trace.standard_error + 1e-3 * top
        products = f"{where}/hessian/num_products"
        assert again[products].value < found[products].value
        assert found[f"{where}/adaptive_sharpness"].value > 0
    assert set(found) == set(measure.metrics)
    assert any("/factors/" in name for name in found) == bool(rank)


def test_one_that_does_not_continue_forgets(key):
    """Its carry is empty, and what it finds is the same each time; all it finds has been named."""
    model = nn.build("mlp", num_classes=10, width=4)
    measure = dataclasses.replace(MEASURE, first=8, num_eigenvalues=2, sam_rho=0.05, adaptive_m=6)
    splits = data.on_device(data.Images("digits", num_train=64).load())
    params = model.init(key, data.batch(splits.train, np.arange(2))["image"])["params"]
    subject = a_subject(model, params)
    assert measure.init(subject, splits) == {}
    carry, found = measure({}, subject, splits, key)
    assert carry == {} and set(named(found)) == set(measure.metrics)
    again = measure(carry, subject, splits, key)[1]
    for name, estimate in named(found).items():
        assert name.startswith("train[8:32]/")
        np.testing.assert_array_equal(estimate.value, named(again)[name].value)
