"""The curvature of one network written in five ways: Linen, NNX, Equinox, Haiku, plain functions.

    python examples/frameworks.py

What changes from one to the next is how a model's arrays are split: trained ones are `params`, the
others (BatchNorm statistics, masks) are leaves of the loss, and structure is static.
"""

import dataclasses
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.tree_util import Partial

from sharpjax import geometry

WIDTH, CLASSES, FEATURES = 16, 3, 5


def cross_entropy(logits, label):
    return -jnp.mean(jnp.sum(jax.nn.one_hot(label, CLASSES) * jax.nn.log_softmax(logits), axis=1))


# Plain functions: parameters are any pytree, and the loss is a function.


def plain_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    return cross_entropy(hidden @ params["w2"] + params["b2"], batch["label"])


def plain(weights, batch):
    return geometry.hessian(plain_loss, weights, batch)


# Flax Linen: the module is static, its variables other than the parameters are leaves.


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(WIDTH)(x))
        return linen.Dense(CLASSES)(hidden)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinenLoss:
    model: linen.Module = dataclasses.field(metadata={"static": True})
    variables: Any  # such as {"batch_stats": ...}, frozen

    def __call__(self, params, batch):
        logits = self.model.apply({"params": params, **self.variables}, batch["x"])
        return cross_entropy(logits, batch["label"])


def in_linen(weights, batch):
    params = {
        "Dense_0": {"kernel": weights["w1"], "bias": weights["b1"]},
        "Dense_1": {"kernel": weights["w2"], "bias": weights["b2"]},
    }
    return geometry.hessian(LinenLoss(LinenNet(), {}), params, batch)


# Flax NNX: split off the parameters; what is left goes with the loss. `eval()` freezes BatchNorm
# and turns dropout off.


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(jnp.tanh(self.first(x))))


def nnx_loss(graph, rest, params, batch):
    return cross_entropy(nnx.merge(graph, params, rest)(batch["x"]), batch["label"])


def in_nnx(weights, batch):
    model = NnxNet(nnx.Rngs(0))
    model.first.kernel[...], model.first.bias[...] = weights["w1"], weights["b1"]
    model.second.kernel[...], model.second.bias[...] = weights["w2"], weights["b2"]
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return geometry.hessian(Partial(nnx_loss, graph, rest), params, batch)


# Equinox: functions are leaves of a module, so the rest is static as a whole.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EquinoxLoss:
    static: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, params, batch):
        model = eqx.combine(params, self.static)
        return cross_entropy(jax.vmap(model)(batch["x"]), batch["label"])


def in_equinox(weights, batch):
    model = eqx.nn.MLP(FEATURES, CLASSES, WIDTH, 1, jnp.tanh, key=jax.random.key(0))
    first, second = model.layers
    model = eqx.tree_at(
        lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)],
        model,
        [weights["w1"].T, weights["b1"], weights["w2"].T, weights["b2"]],
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return geometry.hessian(EquinoxLoss(static), params, batch)


# Haiku: the pure function that `transform` gives.


def haiku_forward(x):
    hidden = jnp.tanh(hk.Linear(WIDTH)(x))
    return hk.Linear(CLASSES)(hidden)


HAIKU = hk.without_apply_rng(hk.transform(haiku_forward))


def haiku_loss(params, batch):
    return cross_entropy(HAIKU.apply(params, batch["x"]), batch["label"])


def in_haiku(weights, batch):
    params = {
        "linear": {"w": weights["w1"], "b": weights["b1"]},
        "linear_1": {"w": weights["w2"], "b": weights["b2"]},
    }
    return geometry.hessian(haiku_loss, params, batch)


OPERATORS = {
    "plain": plain,
    "linen": in_linen,
    "nnx": in_nnx,
    "equinox": in_equinox,
    "haiku": in_haiku,
}


def problem():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    weights = {
        "w1": draw(FEATURES, WIDTH),
        "b1": draw(WIDTH),
        "w2": draw(WIDTH, CLASSES),
        "b2": draw(CLASSES),
    }
    return weights, {"x": 3 * draw(40, FEATURES), "label": jnp.arange(40) % CLASSES}


def main():
    for name, make in OPERATORS.items():
        pairs = geometry.top_eigenpairs(make(*problem()), key=jax.random.key(0), k=3)
        print(f"{name:8}", *(f"{value:.5f}" for value in pairs.values))


if __name__ == "__main__":
    main()
