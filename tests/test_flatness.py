"""Relative flatness and the Fisher-Rao norm, against dense matrices and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sharpjax.errors import UserError
from sharpjax.geometry import Status, composed, fisher, fisher_rao, relative_flatness
from sharpjax.geometry.sharpness import flatness as module
from sharpjax.losses import CrossEntropy, SquaredError, cross_entropy, tempered_logits
from tests import nets


def relu_net(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def problem(outer=None):
    rng = np.random.default_rng(0)
    params = {
        "in": {"kernel": rng.normal(size=(5, 6)), "bias": rng.normal(size=6) + 2},
        "out": {"kernel": rng.normal(size=(6, 4)) / 2, "bias": rng.normal(size=4)},
    }
    batch = {"x": rng.normal(size=(12, 5)), "label": rng.integers(0, 4, 12).astype(np.int32)}
    if isinstance(outer, SquaredError):
        batch["target"] = rng.normal(size=(12, 4))
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    return composed(relu_net, outer or CrossEntropy()), params, batch


def by_the_whole_hessian(loss, params, batch):
    kernel = params["out"]["kernel"]

    def of_head(kernel):
        return loss({**params, "out": {**params["out"], "kernel": kernel}}, batch)

    hessian = np.asarray(jax.hessian(of_head)(kernel))
    return np.einsum("js,jt,isit->", kernel, kernel, hessian)


@pytest.mark.parametrize("outer", [CrossEntropy(), SquaredError()], ids=["ce", "mse"])
def test_it_is_the_weighed_trace_of_the_hessian_of_the_head(x64, outer):
    loss, params, batch = problem(outer)
    found = relative_flatness(loss, params, batch, head="out/kernel")
    truth = by_the_whole_hessian(loss, params, batch)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value, truth, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(found.pairs), truth, rtol=1e-12)
    cut = relative_flatness(loss, params, batch, head="out/kernel", microbatch_size=4)
    for one, other in zip(found, cut, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    inside = jax.jit(lambda p: relative_flatness(loss, p, batch, head="out/kernel"))(params)
    np.testing.assert_allclose(inside.value, truth, rtol=1e-12)
    other = composed(by_a_factor, loss.outer_loss)
    found = relative_flatness(other, params, batch, head="out/kernel")
    np.testing.assert_allclose(found.value, truth, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_logits_over_a_temperature(x64, temperature):
    """They are those of a linear layer with features over the temperature."""
    _, params, batch = problem()
    loss = composed(tempered_logits(relu_net, temperature), CrossEntropy())
    found = relative_flatness(loss, params, batch, head="out/kernel")
    hidden = jax.nn.relu(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"])
    net = params["out"] | {"bias": params["out"]["bias"] / temperature}

    def linear(params, batch):
        return batch["x"] @ params["kernel"] + params["bias"]

    plain = batch | {"x": hidden / temperature}
    same = relative_flatness(composed(linear, CrossEntropy()), net, plain, head="kernel")
    np.testing.assert_allclose(found.value, same.value, rtol=1e-12)
    np.testing.assert_allclose(found.normalised, same.normalised, rtol=1e-12)


def by_a_factor(params, batch):
    """The same net, whose kernel is no operand of the product."""
    out = params["out"]
    return relu_net({**params, "out": {**out, "kernel": out["kernel"] * 1.0}}, batch)


def test_features_are_read_where_they_can_be(x64):
    _, params, batch = problem()
    hidden = jax.nn.relu(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"])
    kernel = params["out"]["kernel"]

    def of(model):
        return lambda kernel, batch: model(
            {**params, "out": {**params["out"], "kernel": kernel}}, batch
        )

    read = module._read(of(relu_net), kernel, batch)
    assert read is not None
    np.testing.assert_allclose(read, hidden, rtol=1e-14)
    assert module._read(of(by_a_factor), kernel, batch) is None
    found = module._differentiate(of(by_a_factor), kernel, batch)
    np.testing.assert_allclose(found, hidden, rtol=1e-14)


def rescaled(params, factor):
    """The same function: what comes out of the hidden units is multiplied, and divided again."""
    into, out = params["in"], params["out"]
    return {
        "in": {"kernel": into["kernel"] * factor, "bias": into["bias"] * factor},
        "out": {**out, "kernel": out["kernel"] / jnp.reshape(factor, (-1, 1))},
    }


def test_what_it_is_invariant_to(x64):
    loss, params, batch = problem()
    nodes = jnp.exp(jnp.linspace(-3, 3, 6))
    before = relative_flatness(loss, params, batch, head="out/kernel")
    layer = relative_flatness(loss, rescaled(params, jnp.full(6, 7.0)), batch, head="out/kernel")
    node = relative_flatness(loss, rescaled(params, nodes), batch, head="out/kernel")
    np.testing.assert_allclose(layer[:2], before[:2], rtol=1e-10)
    np.testing.assert_allclose(node.normalised, before.normalised, rtol=1e-10)
    assert abs(node.value / before.value - 1) > 0.1
    # By hand: features of unit deviation.
    hidden = jax.nn.relu(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"])
    unit = rescaled(params, 1 / jnp.std(hidden, 0))
    np.testing.assert_allclose(
        before.normalised, by_the_whole_hessian(loss, unit, batch), rtol=1e-10
    )


def test_declared_weights_and_examples_without_a_number(x64):
    loss, params, batch = problem()
    kept = jnp.arange(12) % 3 > 0

    def weight(batch):
        return batch["kept"]

    def masked(logits, batch):
        labels = batch["label"]
        each = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
        w = batch["kept"]
        return jnp.sum(jnp.where(w, each, 0)) / jnp.sum(w)

    weighted = composed(relu_net, masked, example_weight=weight)
    some = jax.tree.map(lambda x: x[kept], batch)
    truth = relative_flatness(loss, params, some, head="out/kernel")
    marked = {**batch, "kept": kept, "x": jnp.where(kept[:, None], batch["x"], jnp.nan)}
    found = relative_flatness(weighted, params, marked, head="out/kernel")
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_weights_that_are_all_zero(key):
    def masked(logits, batch):
        each = cross_entropy(logits, batch["label"])
        return jnp.sum(batch["weight"] * each) / jnp.sum(batch["weight"])

    loss = composed(
        lambda w, batch: batch["x"] @ w, masked, example_weight=lambda batch: batch["weight"]
    )
    batch = {"x": jnp.eye(4), "label": jnp.array([0, 1, 2, 0]), "weight": jnp.zeros(4)}
    found = relative_flatness(loss, jnp.ones((4, 3)), batch, head="*")
    assert found.status == Status.NON_FINITE
    assert jnp.isnan(found.value) and jnp.isnan(found.normalised)


def test_a_feature_that_is_constant_has_no_part(x64):
    loss, params, batch = problem()
    into = params["in"]
    params["in"] = {
        "kernel": into["kernel"].at[:, 2].set(0),
        "bias": into["bias"].at[2].set(0.3),
    }
    found = relative_flatness(loss, params, batch, head="out/kernel")
    without = {**params, "out": {**params["out"]}}
    without["out"]["kernel"] = params["out"]["kernel"].at[2].set(0)
    without["out"]["bias"] = params["out"]["bias"] + 0.3 * params["out"]["kernel"][2]
    other = relative_flatness(loss, without, batch, head="out/kernel")
    np.testing.assert_allclose(found.normalised, other.normalised, rtol=1e-10)


def test_of_flax_models_and_zero_heads(key):
    net = nets.mlp(dtype=np.float32)
    loss = composed(net.model_fn, net.outer_loss)
    assert relative_flatness(loss, net.params, net.batch, head="2/0").status == Status.OK
    kernel, bias = net.params[-1]
    zero = [*net.params[:-1], (0 * kernel, bias)]
    found = relative_flatness(loss, zero, net.batch, head="2/0")
    assert found.value == found.normalised == 0 and found.status == Status.OK


@pytest.mark.parametrize(
    "head, message",
    [
        ("out/*", "one kernel"),
        ("out/bias", "one kernel"),
        ("in/kernel", "one kernel"),
        ("tail/kernel", "no leaf is named"),
    ],
)
def test_another_leaf_is_refused(head, message):
    loss, params, batch = problem()
    with pytest.raises(UserError, match=message):
        relative_flatness(loss, params, batch, head=head)


def squashed(params, batch):
    return jnp.tanh(relu_net(params, batch))


def tied(params, batch):
    """The kernel is read by the layer before, too."""
    hidden = jax.nn.relu(batch["x"] @ params["out"]["kernel"][:5, :4])
    return hidden @ params["out"]["kernel"][:4]


def between_classes(params, batch):
    return jnp.flip(relu_net(params, batch), 1)


@pytest.mark.parametrize("model", [squashed, tied, between_classes])
def test_what_is_no_linear_head_is_refused(model):
    _, params, batch = problem()
    loss = composed(model, CrossEntropy())
    with pytest.raises(UserError, match="relative_flatness: the outputs of the model are not"):
        relative_flatness(loss, params, batch, head="out/kernel")
    inside = jax.jit(lambda p: relative_flatness(loss, p, batch, head="out/kernel"))(params)
    assert inside.status == Status.ASSUMPTION_FAILED and jnp.isnan(inside.value)


@pytest.mark.parametrize("labels", ["model", "observed"])
def test_the_norm_is_that_of_the_dense_matrix(x64, labels):
    loss, params, batch = problem()
    found = fisher_rao(loss, params, batch, labels=labels)
    matrix = fisher(loss, params, batch, labels=labels).to_dense()
    vector, _ = ravel_pytree(params)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value**2, vector @ matrix @ vector, rtol=1e-12)
    nodes = fisher_rao(loss, rescaled(params, jnp.linspace(0.1, 5, 6)), batch, labels=labels)
    np.testing.assert_allclose(nodes.value, found.value, rtol=1e-10)


def test_the_formula_of_homogeneous_nets(x64):
    """`L^2 E <z, dl/dz>^2`: exact for ReLU without biases, and not with them."""

    def formula(loss, params, batch):
        slope = jax.nn.softmax(loss.model_fn(params, batch)) - jax.nn.one_hot(batch["label"], 4)
        along = jnp.sum(loss.model_fn(params, batch) * slope, 1)
        return 4 * jnp.mean(along**2)

    loss, params, batch = problem()
    found = fisher_rao(loss, params, batch, labels="observed").value ** 2
    assert abs(found / formula(loss, params, batch) - 1) > 0.05
    bare = {name: {**layer, "bias": 0 * layer["bias"]} for name, layer in params.items()}
    found = fisher_rao(loss, bare, batch, labels="observed").value ** 2
    np.testing.assert_allclose(found, formula(loss, bare, batch), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-25, 1e15])
def test_parameters_of_any_size(size):
    """Of half the squared error F does not depend on them; squares of the small ones read 0."""
    loss = composed(lambda w, batch: batch["x"] @ w, SquaredError())
    batch = {"x": jnp.array([[1.0, 2.0], [0.0, 1.0]]), "target": jnp.zeros(2)}
    w = jnp.array([3.0, -1.0])
    truth = np.sqrt(np.mean(np.square(batch["x"] @ w)))
    found = fisher_rao(loss, size * w, batch)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value, size * truth, rtol=16 * float(np.finfo(np.float32).eps))
