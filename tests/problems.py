"""Small problems of which the whole curvature is known, for the tests of geometry."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax import tree
from sharpjax.geometry import Operator


def _scale(diagonal, vector):
    return jax.tree.map(jnp.multiply, diagonal, vector)


@tree.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal(Operator):
    """An operator with a spectrum of one's own."""

    values: Any

    @property
    def like(self):
        return self.values

    def linearize(self):
        return Partial(_scale, self.values)


def awkward_net(seed=0, dtype=np.float64):
    """Parameters of every layout (34 numbers in all) and a batch of 12 examples."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / 2, dtype)

    params = {
        "layers": [(draw(3, 4), draw(4)), (draw(4, 3), None)],
        "gain": draw(),
        "unused": draw(2),
        "none": None,
        "empty": draw(0, 4),
        "shift": {"a/b": draw(3)},
    }
    batch = {"x": draw(12, 3), "y": draw(12, 3)}
    return params, batch


def awkward_loss(params, batch):
    """Smooth and not convex; `unused` has no curvature at all."""
    (kernel, bias), (head, _) = params["layers"]
    hidden = jnp.tanh(batch["x"] @ kernel + jnp.expand_dims(bias, 0))
    out = params["gain"] * (hidden @ head) + jnp.expand_dims(params["shift"]["a/b"], 0)
    return jnp.mean(jnp.sum(jnp.square(out - batch["y"]), axis=1)) + jnp.sum(params["unused"])


def flat(vector):
    """One numpy vector, in the order of the leaves."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vector)])


def dense(loss, params, batch):
    """The whole Hessian by `jax.hessian`, as a numpy matrix."""
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda v: loss(unravel(v), batch))(vector))


def columns(product, like):
    """The whole matrix of a product, column by column."""
    vector, unravel = ravel_pytree(like)
    units = jax.vmap(unravel)(jnp.eye(len(vector), dtype=vector.dtype))
    rows = jax.jit(jax.vmap(lambda v: ravel_pytree(product(v))[0]))(units)
    return np.asarray(rows).T


def trust_region(H, g, rho):
    """`max g'u + u'Hu / 2` over `|u| <= rho`, by the secular equation on the spectrum of H."""
    values, vectors = np.linalg.eigh(H)
    b = vectors.T @ g
    if values[-1] < 0 and np.linalg.norm(b / values) <= rho:
        return -(b**2 / values).sum() / 2
    low = max(values[-1], 0.0)
    rest = np.abs(values - low) > 1e-12
    inner = np.zeros_like(b)
    inner[rest] = b[rest] / (low - values[rest])
    if np.abs(b[~rest]).max(initial=0) < 1e-14 and np.linalg.norm(inner) <= rho:  # the hard case
        inner[-1] = math.sqrt(rho**2 - (inner**2).sum())
        return b @ inner + (values * inner**2).sum() / 2
    high = low + np.linalg.norm(b) / rho + 1
    for _ in range(200):
        middle = (low + high) / 2
        outside = np.linalg.norm(b / (middle - values)) > rho
        low, high = (middle, high) if outside else (low, middle)
    u = b / (high - values)
    return b @ u + (values * u**2).sum() / 2
