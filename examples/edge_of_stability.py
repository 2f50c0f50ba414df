"""Adam at the edge of stability: the preconditioned sharpness of a small net rises to it and stays.

    python examples/edge_of_stability.py [edge.png]

Gradient descent with momentum b1, in coordinates scaled by a preconditioner P, is stable on a
quadratic while the largest eigenvalue of `P^-1/2 H P^-1/2` is below `(2 + 2 b1) / ((1 - b1) lr)`.
Full-batch Adam drives it there and hovers (Cohen et al., 2022, arXiv 2207.14484). Each measurement
starts from the vectors of the one before and comes with a bound on its error.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from sharpjax import geometry
from sharpjax.data import digits

EXAMPLES, WIDTH, STEPS, EVERY = 200, 32, 800, 20
RATE, B1, B2, EPS = 1e-2, 0.9, 0.99, 1e-7
EDGE = (2 + 2 * B1) / ((1 - B1) * RATE)
OPTIMIZER = optax.adam(RATE, b1=B1, b2=B2, eps=EPS)


class Measured(NamedTuple):
    step: int
    loss: float
    sharpness: float
    error: float
    num_products: int


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
    return jnp.mean(jnp.square(hidden @ params["v"] - batch["y"]))


def data():
    train = digits.load().train
    x = np.asarray(train.input[:EXAMPLES], np.float32).reshape(EXAMPLES, -1)
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    return {"x": jnp.asarray(x), "y": jax.nn.one_hot(train.label[:EXAMPLES], 10)}


def initial(key, batch):
    first, second = jax.random.split(key)
    inputs = batch["x"].shape[1]
    return {
        "w": jax.random.normal(first, (inputs, WIDTH)) / inputs**0.5,
        "b": jnp.zeros(WIDTH),
        "v": jax.random.normal(second, (WIDTH, 10)) / WIDTH**0.5,
    }


@jax.jit
def train(params, state, batch):
    """`EVERY` steps."""

    def step(_, carry):
        params, state = carry
        updates, state = OPTIMIZER.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, EVERY, step, (params, state))


def follow(steps=STEPS):
    """The loss and the preconditioned sharpness along training."""
    batch, key = data(), jax.random.key(0)
    params = initial(key, batch)
    state, pairs, found = OPTIMIZER.init(params), None, []
    for step in range(EVERY, steps + 1, EVERY):
        params, state = train(params, state, batch)
        P = geometry.preconditioner(state, b2=B2, eps=EPS)
        operator = geometry.preconditioned(geometry.hessian(loss, params, batch), P)
        pairs = geometry.check(geometry.top_eigenpairs(operator, key=key, start=pairs))
        numbers = loss(params, batch), pairs.values[0], pairs.value_errors[0]
        found.append(Measured(step, *map(float, numbers), int(pairs.num_products)))
    return found


def picture(found, path):
    figure = Figure(figsize=(6, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = [each.step for each in found]
    above.plot(steps, [each.loss for each in found])
    above.set(ylabel="loss", yscale="log")
    below.plot(steps, [each.sharpness for each in found], marker=".")
    below.axhline(EDGE, color="black", linestyle="--", label="edge of stability")
    below.set(ylabel="preconditioned sharpness", xlabel="step", ylim=(0, None))
    below.legend()
    figure.savefig(path, dpi=150)


def main():
    found = follow()
    late = [each.sharpness / EDGE for each in found[len(found) // 2 :]]
    products = np.mean([each.num_products for each in found[1:]])
    print(f"share of the edge, at first: {found[0].sharpness / EDGE:.2f}")
    print(f"share of the edge, second half: {min(late):.2f} {np.median(late):.2f} {max(late):.2f}")
    print(f"products a measurement: {products:.1f}")
    if len(sys.argv) == 2:
        picture(found, sys.argv[1])


if __name__ == "__main__":
    main()
