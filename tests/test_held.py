"""An operator that is kept while what its loss reads changes is checked again when it is used."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from sharpjax.geometry import averaged, composed, gauss_newton, hessian, restricted
from sharpjax.geometry.loss.assumptions import Assuming

HOW: Any = jnp.mean
FACTOR = 1.0
KEY = jax.random.key(0)
COUNT = 16
PARAMS = {"w": jax.random.normal(KEY, (3,)), "b": jnp.ones(())}
BATCH = {
    "x": jax.random.normal(jax.random.key(1), (COUNT, 3)),
    "y": jax.random.normal(jax.random.key(2), (COUNT,)),
}


class Outer:
    canonical = True

    def __call__(self, outputs, batch):
        return FACTOR * HOW(jnp.square(outputs - batch["y"])) / 2

    def sample(self, key, outputs, batch):
        return {**batch, "y": outputs + jax.random.normal(key, outputs.shape)}


def model(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) + params["b"]


LOSS = composed(model, Outer())
BATCHES = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], BATCH) for i in range(4)]

OPERATORS = {
    "gauss_newton": lambda: gauss_newton(LOSS, PARAMS, BATCH),
    "microbatches": lambda: gauss_newton(LOSS, PARAMS, BATCH, microbatch_size=4),
    "where": lambda: gauss_newton(LOSS, PARAMS, BATCH, where="w"),
    "fisher": lambda: geometry.fisher(LOSS, PARAMS, BATCH),
    "drawn": lambda: geometry.fisher(LOSS, PARAMS, BATCH, key=KEY),
    "observed": lambda: geometry.fisher(LOSS, PARAMS, BATCH, labels="observed"),
    "empirical_fisher": lambda: geometry.empirical_fisher(LOSS, PARAMS, BATCH),
    "hessian in microbatches": lambda: hessian(LOSS, PARAMS, BATCH, microbatch_size=4),
    "hessian over batches": lambda: averaged(functools.partial(hessian, LOSS, PARAMS), BATCHES),
    "hessian over parts": lambda: averaged(
        functools.partial(hessian, LOSS, PARAMS), BATCH, batch_size=4
    ),
    "hessian of a loader": lambda: averaged(
        functools.partial(hessian, LOSS, PARAMS), lambda: iter(BATCHES)
    ),
    "gauss_newton over batches": lambda: averaged(
        functools.partial(gauss_newton, LOSS, PARAMS), BATCHES
    ),
    "composed": lambda: 2 * hessian(LOSS, PARAMS, BATCH) + gauss_newton(LOSS, PARAMS, BATCH) + 0.1,
    "restricted": lambda: restricted(gauss_newton(LOSS, PARAMS, BATCH), "w"),
}

FUNCTIONS = {
    "linearize": lambda A: A.linearize(),
    "top_eigenpairs": lambda A: geometry.top_eigenpairs(A, key=KEY),
    "trace": lambda A: geometry.trace(A, key=KEY),
    "trace, exact": lambda A: geometry.trace(A, key=KEY, method="exact"),
    "diagonal, exact": lambda A: geometry.diagonal(A, key=KEY, method="exact"),
    "diagonal": lambda A: geometry.diagonal(A, key=KEY),
    "frobenius": lambda A: geometry.frobenius(A, key=KEY),
    "spectral_density": lambda A: geometry.spectral_density(A, key=KEY, num_steps=2, num_probes=1),
    "logdet": lambda A: geometry.logdet(A + 0.1, key=KEY),
    "curvature_report": lambda A: geometry.curvature_report(A, key=KEY, k=1),
    "operator @ v": lambda A: A @ A.like,
    "solve": lambda A: geometry.solve(A + 0.1, A.like),
    "to_dense": lambda A: A.to_dense(),
    "to_scipy": lambda A: A.to_scipy(),
    "subsample_start": lambda A: geometry.subsample_start(A, key=KEY, num_examples=4),
}


@pytest.fixture
def as_sum(monkeypatch):
    """Calling it turns the loss from a mean into a sum."""
    return lambda: monkeypatch.setitem(globals(), "HOW", jnp.sum)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_that_became_a_sum_is_refused(name, as_sum):
    operator = OPERATORS[name]()
    as_sum()
    for caller, ask in FUNCTIONS.items():
        with pytest.raises(UserError) as refused:
            ask(operator)
        said = str(refused.value)
        assert "outer_loss is a sum" in said or "the loss is not the mean of its parts" in said
        assert said.startswith(caller.split(",")[0])


@pytest.mark.parametrize("name", ["gauss_newton", "hessian over batches", "composed"])
def test_inside_a_trace_it_is_a_status(name, as_sum):
    operator = OPERATORS[name]()
    as_sum()
    found = jax.jit(lambda A: geometry.frobenius(A, key=KEY, max_products=16))(operator)
    assert found.status == geometry.Status.ASSUMPTION_FAILED
    assert jnp.isnan(found.value)
    product = jax.jit(lambda A, v: A.linearize()(v))(operator, operator.like)
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(product))


@pytest.mark.parametrize("name", ["gauss_newton", "hessian over batches", "restricted"])
def test_one_that_stayed_a_mean_is_as_a_new_one(name, monkeypatch, compilations):
    operator = OPERATORS[name]()
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    right = geometry.frobenius(OPERATORS[name](), key=KEY, max_products=16)
    compilations.clear()
    found = geometry.frobenius(operator, key=KEY, max_products=16)
    assert not compilations
    np.testing.assert_array_equal(found.value, right.value)


def test_nothing_is_checked_again_where_nothing_changed(monkeypatch):
    checks = []
    operators = [OPERATORS[name]() for name in OPERATORS]
    for kind in {type(node) for operator in operators for node in _checked_nodes(operator)}:

        def counted(self, caller, check=kind.check):
            checks.append(caller)
            return check(self, caller)

        monkeypatch.setattr(kind, "check", counted)
    for operator in operators:
        operator.linearize()
    assert not checks
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    operators[0].linearize()
    assert checks == ["linearize"]


def _checked_nodes(operator):
    def is_checked(node):
        return isinstance(node, Assuming)

    return filter(is_checked, jax.tree.leaves(operator, is_leaf=is_checked))


@pytest.mark.parametrize("name", ["hessian in microbatches", "hessian of a loader"])
def test_a_product_that_calls_the_loss_anew_is_of_the_loss_that_was_linearised(name, monkeypatch):
    make = OPERATORS[name]
    operator = (
        make()
        if "loader" not in name
        else averaged(
            functools.partial(hessian, LOSS, PARAMS), lambda: iter(BATCHES), cache_bytes=0
        )
    )
    product = operator.linearize()
    product(PARAMS)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    with pytest.raises(UserError, match="linearize"):
        product(PARAMS)
    operator.linearize()(PARAMS)


def test_a_product_that_is_kept_whole_stays(monkeypatch):
    for name in ("gauss_newton", "hessian over batches"):
        product = OPERATORS[name]().linearize()
        before = product(PARAMS)
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "FACTOR", 3.0)
            after = product(PARAMS)
        jax.tree.map(np.testing.assert_array_equal, before, after)
