"""Inner products between the gradients of examples, against the whole Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from sharpjax.errors import UserError
from sharpjax.geometry import composed, information_sharpness
from sharpjax.geometry.exact import gram as module
from sharpjax.losses import CrossEntropy
from tests import nets


def scaled_outputs(params, batch):
    """A scale and a table that are no products, kernels at three positions, used twice, turned."""
    x = batch["image"] * params["scale"] + params["table"][batch["label"]]
    x = x + jnp.sum(jnp.tanh(jnp.expand_dims(x, 2) @ params["each"]), 2)
    x = jnp.tanh(x @ params["twice"]) @ params["twice"]
    return x @ params["turned"].T + params["unused"] * 0


def scaled():
    net = nets.mlp()
    rng = np.random.default_rng(1)
    shapes = {"scale": (3,), "table": (4, 3), "each": (1, 2), "twice": (3, 3), "turned": (4, 3)}
    shapes["unused"] = ()
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return nets.Net(Partial(scaled_outputs), CrossEntropy(), params, net.batch)


def truth(net, vectors):
    flat, unravel = ravel_pytree(net.params)
    jacobian = jax.jacobian(lambda w: net.model_fn(unravel(w), net.batch))(flat)
    rows = jnp.einsum("nc...,n...p->ncp", vectors, jacobian).reshape(-1, flat.size)
    return rows @ rows.T


@pytest.mark.parametrize(
    "make, examples",
    [(nets.mlp, 4), (nets.mlp, 2), (nets.conv_net, 2), (scaled, 4), (scaled, 1)],
)
def test_it_is_the_product_of_jacobians(x64, make, examples, monkeypatch):
    """In one block, in blocks that divide the examples, and in such that do not."""
    net = make()
    net = net._replace(batch=jax.tree.map(lambda x: x[: 4 if examples > 2 else 5], net.batch))
    outputs = jax.eval_shape(net.model_fn, net.params, net.batch)
    vectors = jax.random.normal(jax.random.key(0), (len(outputs), 2, *outputs.shape[1:]))
    one = jax.tree.map(lambda x: x[:1], net.batch)
    traced = module.trace_model("diagonal", net.model_fn, net.params, one, 2)
    pair = 2 * examples * 8 * module._numbers(traced, 2)
    monkeypatch.setattr(module, "_BYTES", pair)
    plan, _, _ = module._begin(pair, net.model_fn, net.params, net.batch, vectors)
    assert (plan.examples, plan.blocks) == {4: (4, 1), 2: (2, 3), 1: (1, 5)}[examples]
    found = module.gram(net.model_fn, net.params, net.batch, vectors)
    expected = truth(net, vectors)
    size = float(np.linalg.norm(expected, 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * size)


def test_examples_that_see_each_other_are_refused():
    def model_fn(params, batch):
        outputs = batch["image"] @ params
        return outputs - jnp.mean(outputs, 0)

    net = nets.mlp(dtype=np.float32)
    loss, params = composed(model_fn, CrossEntropy()), jnp.ones((3, 4))
    with pytest.raises(UserError, match="information_sharpness: the outputs of one example depend"):
        information_sharpness(loss, params, net.batch)
