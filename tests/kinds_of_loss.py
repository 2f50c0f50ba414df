"""Tiny losses of every kind: what a model is made of, and what is done with its outputs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

EXAMPLES = 8
CLASSES = 3


class Case(NamedTuple):
    """`outer_loss(model_fn(params, batch), batch)` at a point.

    Attributes:
        weight: `example_weight(batch)`, declared for the composed loss; None for a plain mean.
        reference: the same model by plain operations, where `model_fn` has rules of its own.
    """

    model_fn: Any
    outer_loss: Any
    params: Any
    batch: Any
    weight: Callable | None = None
    reference: Any = None


# Outer losses. All but the last say that they are likelihoods; some are none.


def mean(each, batch):
    return jnp.mean(each)


def total(each, batch):
    return jnp.sum(each)


def log_mean_exp(each, batch):
    return jax.nn.logsumexp(3 * each) / 3


@dataclasses.dataclass(frozen=True)
class Weighted:
    """`sum_i w_i l_i / sum_i w_i`."""

    weight: Callable

    def __call__(self, each, batch):
        weight = self.weight(batch)
        return jnp.sum(weight * each) / jnp.sum(weight)


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """`-log p(label)` of all labels, made one number."""

    reduce: Callable = mean
    canonical = True

    def __call__(self, logits, batch):
        label = jnp.expand_dims(batch["label"], -1)
        each = -jnp.squeeze(jnp.take_along_axis(jax.nn.log_softmax(logits), label, -1), -1)
        return self.reduce(each, batch)

    def sample(self, key, logits, batch):
        return {**batch, "label": jax.random.categorical(key, logits, axis=-1)}


@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Half the squared error, a sum over the outputs and a mean over the examples."""

    canonical = True

    def __call__(self, outputs, batch):
        return jnp.sum(jnp.square(outputs - batch["target"])) / (2 * len(outputs))

    def sample(self, key, outputs, batch):
        noise = jax.random.normal(key, outputs.shape, outputs.dtype)
        return {**batch, "target": outputs + noise}


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Every other example of the batch is a negative one."""

    canonical = True

    def __call__(self, pairs, batch):
        scores = pairs["a"] @ pairs["b"].T
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores)))

    def sample(self, key, pairs, batch):
        return batch


def by_example(batch):
    return batch["weight"]


def by_class(batch):
    return jnp.asarray([0.3, 1.0, 4.0])[batch["label"]]


def by_token(batch):
    return batch["mask"]


def number_of_tokens(batch):
    return jnp.sum(batch["mask"], axis=1)


# Models. `p["w"]` and `p["v"]` are the first and the last layer of most of them.


def net(p, batch, activation=jnp.tanh):
    return activation(batch["x"] @ p["w"]) @ p["v"]


def normed(statistics, p, batch):
    mean, variance = (jnp.expand_dims(s, 0) for s in statistics)
    hidden = (batch["x"] @ p["w"] - mean) / jnp.sqrt(variance + 0.1)
    return jnp.tanh(hidden * jnp.expand_dims(p["gain"], 0)) @ p["v"]


def batch_normed(p, batch):
    hidden = batch["x"] @ p["w"]
    return normed((jnp.mean(hidden, 0), jnp.var(hidden, 0)), p, batch)


def two_views(p, batch):
    return {"a": batch["x"] @ p["w"], "b": jnp.tanh(batch["x"] @ p["u"])}


def per_token(p, batch):
    return jnp.tanh(batch["tokens"] @ p["embed"] @ p["w"]) @ p["v"]


def tied(p, batch):
    return jnp.tanh(batch["tokens"] @ p["embed"] @ p["w"]) @ p["embed"].T


def attention(p, batch):
    x = batch["tokens"] @ p["embed"]
    scores = jnp.einsum("nsd,nte,de->nst", x, x, p["w"])
    return (x + jnp.einsum("nst,nte->nse", jax.nn.softmax(scores), x)) @ p["v"]


def lstm(p, batch):
    def cell(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    tokens = jnp.swapaxes(batch["tokens"], 0, 1)
    zeros = jnp.zeros((tokens.shape[1], len(p["u"])))
    return jax.lax.scan(cell, (zeros, zeros), tokens)[0][0] @ p["v"]


def scanned(p, batch):
    hidden = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), batch["x"], p["w"])[0]
    return hidden @ p["v"]


def mixed_types(p, batch):
    hidden = jnp.tanh(batch["x"].astype(jnp.float32) @ p["w"])
    return hidden.astype(jnp.float64) @ p["v"]


# One activation, `tanh`, with rules of its own.


@jax.custom_jvp
def with_jvp(x):
    return jnp.tanh(x)


@with_jvp.defjvp
def _with_jvp(primals, tangents):
    return with_jvp(*primals), tangents[0] * (1 - jnp.square(with_jvp(*primals)))


@jax.custom_vjp
def with_vjp(x):
    return jnp.tanh(x)


with_vjp.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.square(jnp.tanh(x))),))


@jax.custom_vjp
def with_nested_vjp(x):
    return jnp.tanh(x)


with_nested_vjp.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.square(with_vjp(x))),)
)


def _on_host(function, *xs):
    like = jax.ShapeDtypeStruct(xs[0].shape, xs[0].dtype)
    return jax.pure_callback(function, like, *xs, vmap_method="broadcast_all")


@jax.custom_vjp
def with_callback(x):
    return _on_host(np.tanh, x)


with_callback.defvjp(
    lambda x: (_on_host(np.tanh, x), x),
    lambda x, g: (_on_host(lambda x, g: g * (1 - np.tanh(x) ** 2), x, g),),
)


# The table of losses.

_LAYERS = {"w": (2, 2), "v": (2, CLASSES)}
_TOKENS = {"embed": (CLASSES, 2), "w": (2, 2)}


def _ruled(activation):
    model_fn = functools.partial(net, activation=activation)
    return model_fn, CrossEntropy(), _LAYERS, None, net


def _lookup() -> dict[str, tuple]:
    """Model, outer loss, shapes of the parameters; then declared weights and a reference."""
    statistics = (jnp.asarray([0.1, -0.2]), jnp.asarray([0.5, 1.5]))
    gained = {**_LAYERS, "gain": (2,)}
    tokens = {**_TOKENS, "v": (2, CLASSES)}
    return {
        "mean": (net, CrossEntropy(), _LAYERS),
        "weighted": (net, CrossEntropy(Weighted(by_example)), _LAYERS, by_example),
        "masked": (per_token, CrossEntropy(Weighted(by_token)), tokens, number_of_tokens),
        "class_weighted": (net, CrossEntropy(Weighted(by_class)), _LAYERS, by_class),
        "sum": (net, CrossEntropy(total), _LAYERS),
        "contrastive": (two_views, Contrastive(), {"w": (2, 2), "u": (2, 2)}),
        "log_mean_exp": (net, CrossEntropy(log_mean_exp), _LAYERS),
        "norm_frozen": (Partial(normed, statistics), CrossEntropy(), gained),
        "norm_training": (batch_normed, CrossEntropy(), gained),
        "tied": (tied, CrossEntropy(), _TOKENS),
        "attention": (attention, CrossEntropy(), tokens),
        "lstm": (lstm, CrossEntropy(), {"w": (3, 8), "u": (2, 8), "v": (2, CLASSES)}),
        "scan": (scanned, CrossEntropy(), {"w": (3, 2, 2), "v": (2, CLASSES)}),
        "remat": (jax.checkpoint(net), CrossEntropy(), _LAYERS),
        "custom_jvp": _ruled(with_jvp),
        "custom_vjp": _ruled(with_vjp),
        "nested_custom_vjp": _ruled(with_nested_vjp),
        "callback": _ruled(with_callback),
        "mixed_types": (mixed_types, SquaredError(), _LAYERS, None, net),
    }


LOSSES = (
    *("mean", "weighted", "masked", "class_weighted", "sum", "contrastive", "log_mean_exp"),
    *("norm_frozen", "norm_training", "tied", "attention", "lstm", "scan", "remat"),
    *("custom_jvp", "custom_vjp", "nested_custom_vjp", "callback", "mixed_types"),
)


@functools.cache
def case(name: str) -> Case:
    """Call it in float64."""
    row: tuple[Any, ...] = (*_lookup()[name], None, None)
    model_fn, outer_loss, shapes, weight, reference = row[:5]
    rng = np.random.default_rng(LOSSES.index(name))
    params = {leaf: jnp.asarray(rng.normal(size=shape)) for leaf, shape in shapes.items()}
    if name == "mixed_types":
        params["w"] = params["w"].astype(jnp.float32)
    model_fn = model_fn if isinstance(model_fn, Partial) else Partial(model_fn)
    batch = {"x": jnp.asarray(rng.normal(size=(EXAMPLES, 2)))}
    if "embed" in shapes or name == "lstm":
        tokens = rng.integers(0, CLASSES, (EXAMPLES, 3))
        batch = {"tokens": jnp.asarray(np.eye(CLASSES)[tokens])}
    if name == "mixed_types":
        batch["target"] = jnp.asarray(rng.normal(size=(EXAMPLES, CLASSES)))
    elif name != "contrastive":
        shape = (EXAMPLES, 3) if "embed" in shapes else EXAMPLES
        batch["label"] = jnp.asarray(rng.integers(0, CLASSES, shape))
    if name == "weighted":
        batch["weight"] = jnp.asarray([0.5, 2.0, 0.0, 1.0, 3.0, 0.2, 0.0, 1.5])
    if name == "masked":  # as padding at the end, and one sequence with nothing in it
        lengths = np.array([3, 1, 2, 3, 0, 1, 2, 1])
        batch["mask"] = jnp.asarray((np.arange(3) < lengths[:, None]).astype(float))
    return Case(model_fn, outer_loss, params, batch, weight, reference or model_fn)
