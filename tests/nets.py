"""Small nets in two parts, `outer_loss(model_fn(params, batch), batch)`, and their Jacobians."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax.losses import CrossEntropy, Logits, SquaredError


class Net(NamedTuple):
    """A classifier or a regression in float64, with fewer than 400 parameters."""

    model_fn: Any
    outer_loss: Any
    params: Any
    batch: Any

    def loss(self, params, batch):
        return self.outer_loss(self.model_fn(params, batch), batch)


def mlp_outputs(params, batch):
    x = batch["image"]
    for kernel, bias in params[:-1]:
        x = jnp.tanh(x @ kernel + jnp.expand_dims(bias, 0))
    kernel, bias = params[-1]
    return x @ kernel + jnp.expand_dims(bias, 0)


def mlp(seed=0, outer_loss: Any = None, dtype: Any = np.float64):
    """Two hidden layers with biases, 67 parameters, 8 examples of 4 classes."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / 1.5, dtype)

    sizes = (3, 4, 5, 4)
    params = [(draw(a, b), draw(b)) for a, b in zip(sizes, sizes[1:], strict=False)]
    batch = {"image": draw(8, 3), "label": jnp.asarray(rng.integers(0, 4, 8), jnp.int32)}
    if isinstance(outer_loss, SquaredError):
        batch = {"image": batch["image"], "target": draw(8, 4)}
    return Net(Partial(mlp_outputs), outer_loss or CrossEntropy(), params, batch)


class ConvNet(nn.Module):
    """A residual block with BatchNorm, as in a ResNet."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = nn.Conv(3, (3, 3), use_bias=False, param_dtype=image.dtype)(image)
        y = nn.BatchNorm(use_running_average=not train, param_dtype=image.dtype)(x)
        y = nn.Conv(3, (3, 3), use_bias=False, param_dtype=image.dtype)(nn.relu(y))
        x = nn.relu(x + nn.BatchNorm(use_running_average=not train, param_dtype=image.dtype)(y))
        return nn.Dense(3, param_dtype=image.dtype)(x.mean((1, 2)))


def conv_net(seed=0):
    """Two convolutions with frozen BatchNorm statistics, 6 examples of 3 classes."""
    rng = np.random.default_rng(seed)
    batch = {
        "image": jnp.asarray(rng.normal(size=(6, 5, 5, 2))),
        "label": jnp.asarray(rng.integers(0, 3, 6), jnp.int32),
    }
    # In float32 at first: under strict promotion, Flax's first statistics meet no float64.
    image = batch["image"].astype(jnp.float32)
    variables = dict(jax.jit(ConvNet().init)(jax.random.key(seed), image))
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
    params = variables.pop("params")
    moved = jax.tree.map(lambda s: s * 1.3 + 0.2, variables)
    return Net(Logits(ConvNet(), moved), CrossEntropy(), params, batch)


def attention_outputs(params, batch):
    x = batch["tokens"] @ params["embed"]
    q, k, v = (jnp.einsum("nsd,de->nse", x, params[name]) for name in ("q", "k", "v"))
    scores = jnp.einsum("nse,nte->nst", q, k) / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
    x = x + jnp.einsum("nst,nte->nse", jax.nn.softmax(scores), v)
    return jnp.einsum("nsd,kd->nsk", x, params["embed"]).reshape(-1, len(params["embed"]))


def attention(seed=0):
    """One head with tied embeddings; a row of logits for each of 4 tokens of 3 sequences."""
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.normal(size=(4, 4)) / 1.5) for name in ("q", "k", "v")}
    params["embed"] = jnp.asarray(rng.normal(size=(5, 4)) / 1.5)
    batch = {
        "tokens": jnp.asarray(np.eye(5)[rng.integers(0, 5, (3, 4))]),
        "label": jnp.asarray(rng.integers(0, 5, (3, 4)), jnp.int32),
    }
    return Net(Partial(attention_outputs), CrossEntropy(), params, batch)


NETS = {"mlp": mlp, "conv_net": conv_net, "attention": attention}


def jacobian(net):
    """The Jacobian of the outputs, [rows, K, parameters], and the outputs, [rows, K]."""
    vector, unravel = ravel_pytree(net.params)

    @jax.jit
    def both(vector):
        def outputs(v):
            return net.model_fn(unravel(v), net.batch)

        return jax.jacrev(outputs)(vector), outputs(vector)

    return jax.tree.map(np.asarray, both(vector))


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
