"""Curvature of an Equinox model: largest eigenvalues, an exact Gauss-Newton trace, one layer alone.

    pip install equinox
    python examples/equinox_model.py

`eqx.partition` gives the trained arrays, which are `params`. What is left holds functions, and is
static as a whole. A loss made by `composed` knows its parts, so the Gauss-Newton matrix is there,
too, and its trace is exact.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from sharpjax import geometry


def problem():
    x = jax.random.normal(jax.random.key(0), (256, 8)) * jnp.arange(1.0, 9.0)
    model = eqx.nn.MLP(8, 3, 32, 2, jax.nn.tanh, key=jax.random.key(1))
    return model, {"x": x, "label": jnp.argmax(x[:, :3], axis=1)}


def apply(static, params, batch):
    return jax.vmap(eqx.combine(params, static))(batch["x"])


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def main():
    model, batch = problem()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss = geometry.composed(functools.partial(apply, static), cross_entropy)

    hessian = geometry.hessian(loss, params, batch)
    pairs = geometry.check(geometry.top_eigenpairs(hessian, key=jax.random.key(2), k=3))
    print("eigenvalues:", *(f"{value:.4f}" for value in pairs.values))

    # An eigenvector is a tree like `params`, and so a model with the static part.
    direction = eqx.combine(jax.tree.map(lambda v: v[0], pairs.vectors), static)
    norm = jnp.linalg.norm(direction.layers[-1].weight)
    print(f"norm of the first vector in the last layer: {norm:.4f}")

    gauss_newton = geometry.gauss_newton(loss, params, batch)
    trace = geometry.trace(gauss_newton, key=jax.random.key(3), method="exact")
    print(f"trace of the Gauss-Newton matrix: {trace.value:.4f}, exact")

    last = geometry.hessian(loss, params, batch, where="layers/2/*")
    of_last = geometry.check(geometry.top_eigenpairs(last, key=jax.random.key(2)))
    print(f"largest eigenvalue of the last layer alone: {of_last.values[0]:.4f}")


if __name__ == "__main__":
    main()
