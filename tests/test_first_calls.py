"""How many programs the first call of a solver compiles: each costs tens of milliseconds at least,
and eager arithmetic on the host compiles one for each operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - batch["y"]) ** 2)


def top(operator, key):
    return geometry.top_eigenpairs(operator, key=key)


def density(operator, key):
    found = geometry.spectral_density(operator, key=key, num_steps=4)
    return found.evaluate(found.grid()), found.estimates()


def trace(operator, key):
    return geometry.trace(operator, key=key, max_products=30)


# What they share is counted for the first. The other estimators take the way of `trace`.
MOST = {top: 7, density: 7, trace: 9}


@pytest.mark.parametrize("solver", MOST, ids=lambda solver: solver.__name__)
def test_a_first_call_compiles_few_programs(solver, key, compilations):
    size = 5 + list(MOST).index(solver)  # shapes that no other test here has compiled
    values = [np.sin(np.arange(n, dtype=np.float32)) for n in (3 * size, size, size)]
    params = {"w": values[0].reshape(3, size), "b": values[1], "v": values[2]}
    batch = {"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    operator = geometry.hessian(loss, params, batch)
    compilations.clear()
    solver(operator, key)
    assert len(compilations) <= MOST[solver], compilations
