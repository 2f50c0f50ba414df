"""One network in Linen, NNX, Equinox, Haiku and plain functions has one curvature."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from sharpjax import geometry, tree

PATH = pathlib.Path(__file__).resolve().parent.parent / "examples" / "frameworks.py"
SPEC = importlib.util.spec_from_file_location("frameworks", PATH)
frameworks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(frameworks)


@pytest.fixture(scope="module")
def expected():
    weights, batch = frameworks.problem()
    hessian = jax.hessian(frameworks.plain_loss)(weights, batch)
    blocks = [
        [hessian[a][b].reshape(weights[a].size, weights[b].size) for b in weights] for a in weights
    ]
    return np.linalg.eigvalsh(np.block([[np.asarray(x) for x in row] for row in blocks]))[::-1]


@pytest.mark.parametrize("name", frameworks.OPERATORS)
def test_the_same_eigenvalues(expected, name, key):
    weights, batch = frameworks.problem()
    operator = frameworks.OPERATORS[name](weights, batch)
    assert tree.size(operator.like) == tree.size(weights)
    pairs = geometry.top_eigenpairs(operator, key=key, k=3)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, expected[:3], rtol=2e-3)
    assert jax.tree.structure(pairs.vectors) == jax.tree.structure(operator.like)


@pytest.mark.parametrize("name", frameworks.OPERATORS)
def test_another_checkpoint_compiles_nothing(name, key, compilations):
    make = frameworks.OPERATORS[name]
    weights, batch = frameworks.problem()
    geometry.top_eigenpairs(make(weights, batch), key=key)
    others = jax.tree.map(lambda x: x * 1.5, weights)
    operator = make(others, batch)
    compilations.clear()
    geometry.top_eigenpairs(operator, key=key)
    assert compilations == []
