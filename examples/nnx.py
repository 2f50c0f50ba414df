"""Curvature of a Flax NNX model with BatchNorm and dropout: largest eigenvalues, vectors, trace.

    python examples/nnx.py

`nnx.split` gives the trained arrays, which are `params`. The rest, such as BatchNorm statistics,
goes with the loss as leaves, so that other statistics compile nothing anew. `eval()` comes first:
it freezes the statistics and turns dropout off. A loss that draws at random is refused.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.tree_util import Partial

from sharpjax import geometry


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.second = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(nnx.tanh(self.norm(self.first(x)))))


def loss(graph, rest, params, batch):
    logits = nnx.merge(graph, params, rest)(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def problem():
    """A net that has seen its data once, in training mode, and the data."""
    x = jax.random.normal(jax.random.key(0), (256, 8)) * jnp.arange(1.0, 9.0)
    model = Net(nnx.Rngs(0))
    model(x)  # fills the statistics of BatchNorm
    model.eval()
    return model, {"x": x, "label": jnp.argmax(x[:, :3], axis=1)}


def main():
    model, batch = problem()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    hessian = geometry.hessian(Partial(loss, graph, rest), params, batch)

    pairs = geometry.check(geometry.top_eigenpairs(hessian, key=jax.random.key(1), k=3))
    print("eigenvalues:", *(f"{value:.4f}" for value in pairs.values))
    trace = geometry.trace(hessian, key=jax.random.key(2), relative_error=0.05)
    print(f"trace: {trace.value:.3f} ± {trace.standard_error:.3f}")

    # An eigenvector is a tree like `params`, of norm 1: how much of it lies in which array?
    for path, vectors in jax.tree.leaves_with_path(pairs.vectors):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        print(f"share of the first vector in {name}: {jnp.sum(vectors[0] ** 2):.4f}")


if __name__ == "__main__":
    main()
