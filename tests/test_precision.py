"""The error of products, where it is known, and what solvers make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax.errors import UserError
from sharpjax.geometry import Status, algebra, composed, hessian, top_eigenpairs
from sharpjax.geometry.jacobian import empirical_fisher, fisher, gauss_newton
from sharpjax.geometry.precision import product_error
from tests import nets
from tests.problems import Diagonal, columns


def test_the_error_is_that_of_the_frobenius_norms(x64, key):
    """Of diagonal matrices; and its standard error is that over keys."""
    rng = np.random.default_rng(0)
    values, errors = rng.normal(size=(2, 60))
    exact = Diagonal({"a": jnp.asarray(values[:30]), "b": jnp.asarray(values[30:])})
    other = Diagonal(jax.tree.map(jnp.add, exact.values, {"a": errors[:30], "b": errors[30:]}))
    truth = np.linalg.norm(errors) / np.linalg.norm(values)

    def one(key):
        return product_error(other, exact, key=key, num_probes=32)

    found = jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(key, 400)))
    assert (found.status == Status.OK).all() and (found.num_evaluations == 32).all()
    assert (found.largest >= found.value).all()
    np.testing.assert_allclose(found.value.mean(), truth, rtol=0.01)
    covered = np.mean(np.abs(found.value - truth) < 2 * found.standard_error)
    assert 0.9 < covered < 0.98
    assert one(key).estimates()["product_error"].num_evaluations == 32


def test_no_error_and_no_number(key):
    ones = Diagonal(jnp.ones(3))
    found = product_error(ones, ones, key=key)
    assert found.value == 0 and found.standard_error == 0 and found.status == Status.OK
    bad = product_error(Diagonal(jnp.array([1.0, jnp.nan, 1.0])), ones, key=key)
    assert bad.status == Status.NON_FINITE


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "fisher", "empirical_fisher"])
def test_bfloat16_products_are_a_hundredth_off(key, kind):
    net = nets.mlp(dtype=np.float32)

    def make(precision):
        if kind in ("hessian", "empirical_fisher"):
            arguments = (Partial(plain_loss, *net[:2]), *net[2:])
            constructor = {"hessian": hessian, "empirical_fisher": empirical_fisher}[kind]
        else:
            arguments = (composed(*net[:2]), *net[2:])
            constructor = {"gauss_newton": gauss_newton, "fisher": fisher}[kind]
        return constructor(*arguments, precision=precision)

    low, exact = make("bfloat16"), make("highest")
    found = product_error(low, exact, key=key)
    assert found.status == Status.OK and 1e-3 < found.value < 3e-2
    assert product_error(make("highest"), exact, key=key).value < 1e-6
    if kind == "gauss_newton":
        pairs = top_eigenpairs(low, key=key, tol=0.05)
        truth = np.linalg.eigvalsh(columns(algebra.linearize(exact), net.params))[-1]
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.values, truth, rtol=0.05)


def plain_loss(model_fn, outer_loss, params, batch):
    return outer_loss(model_fn(params, batch), batch)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a, key: product_error(a, Diagonal(jnp.ones(2)), key=key), "different vectors"),
        (lambda a, key: product_error(a, a, key=key, num_probes=1), "whole number >= 2"),
        (lambda a, key: product_error(a, a, key=0), "one random key"),
        (lambda a, key: product_error(a, jnp.ones(3), key=key), "must be an operator"),
    ],
)
def test_wrong_arguments(key, call, message):
    with pytest.raises(UserError, match=f"^product_error.*{message}"):
        call(Diagonal(jnp.ones(3)), key)
