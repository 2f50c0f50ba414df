"""Products in bfloat16, and what solvers make of them."""

import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax.geometry import composed, frobenius, hessian, top_eigenpairs
from sharpjax.geometry.operators import algebra
from sharpjax.geometry.operators.gauss_newton import empirical_fisher, fisher, gauss_newton
from tests import nets
from tests.problems import columns


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
    lost, whole = (frobenius(A, key=key).value for A in (low - exact, exact))
    assert 1e-3 < lost / whole < 3e-2
    if kind == "gauss_newton":
        pairs = top_eigenpairs(low, key=key, tol=0.05)
        truth = np.linalg.eigvalsh(columns(algebra.linearize(exact), net.params))[-1]
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.values, truth, rtol=0.05)


def plain_loss(model_fn, outer_loss, params, batch):
    return outer_loss(model_fn(params, batch), batch)
