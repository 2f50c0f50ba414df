"""Losses against numpy, what they hand on, and how often they compile."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import nn, tree
from sharpjax.errors import UserError
from sharpjax.losses import (
    Classification,
    CrossEntropy,
    Logits,
    Objective,
    SquaredError,
)
from sharpjax.nn.resnet import ResNet


def residual_net(dtype=jnp.float32):
    return ResNet(num_classes=5, width=2, blocks=(1,), dtype=dtype)


def example_batch(seed=0, size=6, dtype: Any = np.float32, num_classes=5):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 8, 8, 1)), dtype),
        "label": jnp.asarray(rng.integers(0, num_classes, size), jnp.int32),
    }


def initial(model, seed=0):
    """(params, the other collections), the statistics away from their first values."""
    init = jax.jit(model.init)
    variables = dict(init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1))))
    params = variables.pop("params")
    return params, jax.tree.map(lambda s: s * 1.3 + 0.1 * (seed + 1), variables)


@jax.jit
def call(loss, params, batch):
    return loss(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(has_aux, loss, params, batch):
    return jax.value_and_grad(loss, has_aux=has_aux)(params, batch)


num_traces = 0


@jax.jit
def gradient(loss, params, batch):
    global num_traces
    num_traces += 1
    return jax.grad(loss)(params, batch)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# Against numpy.


def linear(seed=0):
    """Softmax regression, in float64: a model whose gradient is a formula."""
    model = nn.MLP(num_classes=5, depth=0, dtype=jnp.float64)
    rng = np.random.default_rng(seed)
    head = {"kernel": rng.normal(size=(64, 5)), "bias": rng.normal(size=5)}
    return model, {"head": jax.tree.map(jnp.asarray, head)}


def test_the_mean_cross_entropy_equals_numpy(x64, strict):
    model, params = linear()
    batch = example_batch(dtype=np.float64)
    x = np.asarray(batch["image"]).reshape(6, 64)
    z = x @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    loss = Classification(model)
    np.testing.assert_allclose(loss.logits(params, batch), z, rtol=1e-12)
    expected = -log_softmax(z)[np.arange(6), batch["label"]].mean()
    np.testing.assert_allclose(loss(params, batch), expected, rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_gradient_with_smoothed_labels_equals_numpy(smoothing, x64, strict):
    model, params = linear()
    batch = example_batch(dtype=np.float64)
    x = np.asarray(batch["image"]).reshape(6, 64)
    z = x @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    target = (1 - smoothing) * np.eye(5)[batch["label"]] + smoothing / 5
    loss = Objective(model, {}, smoothing)
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
    log_p = log_softmax(z)
    np.testing.assert_allclose(value, -(target * log_p).sum(-1).mean(), rtol=1e-13)
    residual = (np.exp(log_p) - target) / 6
    np.testing.assert_allclose(grads["head"]["kernel"], x.T @ residual, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(grads["head"]["bias"], residual.sum(0), rtol=1e-10, atol=1e-14)
    assert aux["accuracy"] == np.mean(z.argmax(-1) == np.asarray(batch["label"]))


def test_a_classification_has_two_parts(x64):
    model, params = linear()
    batch = example_batch(dtype=np.float64)
    loss = Classification(model)
    assert jax.tree.structure(loss.model_fn) == jax.tree.structure(Logits(model))
    logits = loss.model_fn(params, batch)
    np.testing.assert_array_equal(logits, loss.logits(params, batch))
    np.testing.assert_allclose(loss.outer_loss(logits, batch), loss(params, batch), rtol=1e-15)


@pytest.mark.parametrize("outer", [CrossEntropy(), SquaredError()])
def test_likelihoods_draw_what_they_say(x64, key, outer):
    """Of drawn labels the slope in the outputs has mean 0 and second moment the curvature."""
    outputs = jnp.asarray([[0.3, -1.0, 0.5]])
    like = {"label": jnp.zeros(1, jnp.int32), "target": outputs, "image": jnp.ones((1, 2))}

    def slope(key):
        batch = outer.sample(key, outputs, like)
        assert jax.tree.structure(batch) == jax.tree.structure(like)
        assert jax.tree.map(jnp.shape, batch) == jax.tree.map(jnp.shape, like)
        return jax.grad(outer)(outputs, batch)[0]

    slopes = np.asarray(jax.jit(jax.vmap(slope))(jax.random.split(key, 4000)))
    curvature = jax.hessian(outer)(outputs, like)[0, :, 0]
    error = slopes.std(0) / np.sqrt(len(slopes))
    assert (np.abs(slopes.mean(0)) < 4 * error).all()
    products = np.einsum("si,sj->sij", slopes, slopes)
    error = products.std(0) / np.sqrt(len(slopes))
    assert (np.abs(products.mean(0) - curvature) < 4 * error).all()
    assert outer.canonical is True


@pytest.mark.parametrize("outer", [CrossEntropy(), SquaredError()])
@pytest.mark.parametrize("rows", [1, 3])
def test_square_roots_give_the_hessian(outer, rows, x64, strict):
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(rows, 4)))
    batch = {"label": jnp.arange(rows), "target": jnp.zeros((rows, 4))}
    roots = outer.square_root(outputs, batch).reshape(-1, rows * 4)
    hessian = jax.hessian(outer)(outputs, batch).reshape(rows * 4, rows * 4)
    np.testing.assert_allclose(roots.T @ roots, hessian, atol=1e-14)


@pytest.mark.parametrize(
    "logits", [[0, -50, -50], [-50, 0, -50], [-50, -50, 0], [-60, 0, -30, -80], [-40, -40, 0, 0]]
)
def test_square_roots_of_confident_rows(logits):
    """In float32, where products of small probabilities underflow.

    Each entry of the root has a relative error of C eps, from one exp, a sum of at most K numbers
    and some ten operations: C = 32. By Cauchy-Schwarz the error of entry ij of the Hessian H is
    then at most 2 C eps sqrt(H_ii H_jj).
    """
    root = CrossEntropy().square_root(jnp.asarray([logits], jnp.float32), {})
    root = np.asarray(root, np.float64).reshape(-1, len(logits))
    p = np.exp(log_softmax(np.asarray(logits, np.float64)))
    rest = np.array([np.delete(p, k).sum() for k in range(len(p))])  # 1 - p, without cancellation
    hessian = np.where(np.eye(len(p)), p * rest, -np.outer(p, p))
    scale = np.sqrt(np.outer(np.diag(hessian), np.diag(hessian)))
    assert (np.abs(root.T @ root - hessian) < 64 * np.finfo(np.float32).eps * scale).all()


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int16, jnp.int32])
def test_drawn_labels_are_classes_whatever_the_type_of_the_labels(dtype, key):
    logits = jnp.zeros((2, 1000)).at[:, 700].set(1e3)  # certain
    drawn = CrossEntropy().sample(key, logits, {"label": jnp.zeros(2, dtype)})
    assert drawn["label"].tolist() == [700, 700]


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float32])
def test_drawn_targets_have_unit_variance_whatever_the_type_of_the_targets(dtype, key):
    """The variance of 4,000 normal numbers has a standard error of sqrt(2 / 4000)."""
    outputs = jnp.full((4000, 1), 300.0)
    drawn = SquaredError().sample(key, outputs, {"target": jnp.zeros((4000, 1), dtype)})["target"]
    assert drawn.dtype == outputs.dtype
    assert abs(np.var(np.asarray(drawn, np.float64)) - 1) < 5 * (2 / 4000) ** 0.5


def test_labels_of_sequences():
    batch = {"label": jnp.array([[0, 1, 2], [2, 1, 0]])}
    logits = jnp.eye(6)[:, :3]
    rows = CrossEntropy()(logits, {"label": batch["label"].reshape(-1)})
    assert CrossEntropy()(logits, batch) == rows
    assert CrossEntropy().sample(jax.random.key(0), logits, batch)["label"].shape == (2, 3)
    with pytest.raises(UserError, match=r"logits must be \[N, K\], got \(2, 3, 3\).*reshape"):
        CrossEntropy()(logits.reshape(2, 3, 3), batch)


def test_smoothed_labels_have_a_floor():
    # At p = the smoothed label the loss is its entropy, not 0.
    loss = Objective(nn.MLP(num_classes=5, depth=0), {}, 0.5)
    target = np.full(5, 0.1)
    target[2] += 0.5
    params = {"head": {"kernel": jnp.zeros((64, 5)), "bias": jnp.log(jnp.asarray(target))}}
    batch = {"image": jnp.ones((3, 8, 8, 1)), "label": jnp.full(3, 2)}
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
    np.testing.assert_allclose(value, -(target * np.log(target)).sum(), rtol=1e-6)
    assert aux["accuracy"] == 1.0 and tree.norm(grads) < 1e-6


def test_confident_logits_stay_finite():
    model = nn.MLP(num_classes=5, depth=0)
    params = {"head": {"kernel": jnp.zeros((64, 5)), "bias": jnp.zeros(5).at[1].set(1e4)}}
    image = jnp.ones((2, 8, 8, 1))
    right, wrong = ({"image": image, "label": jnp.full(2, k)} for k in (1, 0))
    assert Classification(model)(params, right) == 0.0
    assert Classification(model)(params, wrong) == 1e4
    grads = jax.grad(Classification(model))(params, wrong)
    np.testing.assert_allclose(grads["head"]["bias"], [-1, 1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("label", [-100, -1, 5])
def test_a_label_that_is_no_class_is_not_silently_something(label):
    """Neither in the loss nor in what is made of its derivatives."""
    model, batch = nn.MLP(num_classes=5, width=2), example_batch()
    params, _ = initial(model)
    batch["label"] = batch["label"].at[0].set(label)
    classification, outer = Classification(model), CrossEntropy()
    logits = classification.logits(params, batch)
    for value, gradient in (
        jax.value_and_grad(classification)(params, batch),
        jax.value_and_grad(lambda p: Objective(model)(p, batch)[0])(params),
        jax.value_and_grad(outer)(logits, batch),
    ):
        assert jnp.isnan(value) and jnp.isnan(tree.norm(gradient))


def test_one_logit_is_no_distribution():
    batch = {"label": jnp.zeros(3, jnp.int32)}
    with pytest.raises(UserError, match=r"logits of shape \(3, 1\) are of one class"):
        CrossEntropy()(jnp.zeros((3, 1)), batch)


@pytest.mark.parametrize("make", [residual_net, lambda dtype: nn.SmallConv(5, 4, dtype)])
def test_a_bfloat16_model_has_a_float32_loss(make):
    model, batch = make(jnp.bfloat16), example_batch()
    params, variables = initial(model)
    loss = Classification(model, variables)
    assert jax.eval_shape(loss.logits, params, batch).dtype == jnp.float32
    value, grads = value_and_grad(False, loss, params, batch)
    exact = call(Classification(model.clone(dtype=jnp.float32), variables), params, batch)
    assert value.dtype == jnp.float32 and 0 < abs(value - exact) < 0.05
    trained = value_and_grad(True, Objective(model, variables), params, batch)
    for leaf in jax.tree.leaves((value, grads, trained)):
        assert leaf.dtype == jnp.float32 and jnp.all(jnp.isfinite(leaf))


# Statistics.


def test_training_hands_new_statistics_on_and_eval_uses_the_old():
    model, batch = residual_net(), example_batch()
    params, variables = initial(model)
    _, aux = call(Objective(model, variables), params, batch)
    new = aux["variables"]
    tree.check_same_structure("test", "new", new, variables)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    # The stem's, by hand: its input is known.
    kernel = params["Conv_0"]["kernel"]
    x = jax.lax.conv_general_dilated(
        batch["image"], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    old = variables["batch_stats"]["BatchNorm_0"]
    expected = 0.9 * old["mean"] + 0.1 * x.mean((0, 1, 2))
    np.testing.assert_allclose(
        new["batch_stats"]["BatchNorm_0"]["mean"], expected, rtol=1e-5, atol=1e-6
    )
    # Every one of them moves, and the eval loss depends on them.
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(variables), strict=True):
        assert jnp.all(a != b)
    before = call(Classification(model, variables), params, batch)
    after = call(Classification(model, new), params, batch)
    assert abs(before - after) > 1e-4


def test_the_eval_loss_can_be_cut_into_microbatches():
    model, batch = residual_net(), example_batch()
    params, variables = initial(model)
    loss = Classification(model, variables)
    parts = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(3)]
    whole = gradient(loss, params, batch)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *(gradient(loss, params, p) for p in parts))
    assert tree.norm(tree.add_scaled(whole, -1.0, mean)) < 1e-5 * tree.norm(whole)


def test_a_model_without_statistics_hands_on_none():
    model, batch = nn.MLP(num_classes=5, width=3), example_batch()
    params, _ = initial(model)
    value, aux = call(Objective(model), params, batch)
    assert aux["variables"] == {}
    assert value == call(Classification(model), params, batch)


# Compilation and populations.


def test_five_checkpoints_are_one_compilation():
    start, batch = num_traces, example_batch(size=7)  # a shape of its own
    grads = []
    for seed in range(5):
        model = residual_net()  # made anew, as a resumed run would
        params, variables = initial(model, seed)
        grads.append(gradient(Classification(model, variables), params, batch))
    assert num_traces == start + 1
    assert len({tree.digest(g) for g in grads}) == 5
    wide = ResNet(num_classes=5, width=4, blocks=(1,))
    params, variables = initial(wide)
    gradient(Classification(wide, variables), params, batch)
    assert num_traces == start + 2


def test_statistics_alone_change_the_result_of_a_compiled_loss():
    model, batch = residual_net(), example_batch()
    params, variables = initial(model)
    one = gradient(Classification(model, variables), params, batch)
    other = tree.scale(2.0, variables)
    two = gradient(Classification(model, other), params, batch)
    _, expected = value_and_grad(False, Classification(model, other), params, batch)
    assert tree.norm(tree.add_scaled(one, -1.0, two)) > 1e-3 * tree.norm(one)
    assert tree.norm(tree.add_scaled(two, -1.0, expected)) < 1e-5 * tree.norm(two)


@pytest.mark.parametrize("kind", [Classification, Objective])
def test_vmap_over_three_seeds_equals_three_calls(kind):
    model, batch = residual_net(), example_batch()
    members = [initial(model, seed) for seed in range(3)]
    each = [call(kind(model, variables), params, batch) for params, variables in members]
    loss = tree.stack([kind(model, variables) for _, variables in members])
    params = tree.stack([params for params, _ in members])
    together = jax.vmap(call, in_axes=(0, 0, None))(loss, params, batch)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(tree.stack(each)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_smoothing_and_model_are_structure():
    variables = {"batch_stats": {"mean": jnp.ones(2)}}
    loss = Objective(residual_net(), variables, 0.1)
    assert len(jax.tree.leaves(loss)) == 1
    again = Objective(residual_net(), variables, 0.1)
    assert jax.tree.structure(loss) == jax.tree.structure(again)
    other = Objective(residual_net(), variables, 0.2)
    assert jax.tree.structure(loss) != jax.tree.structure(other)


# What is refused.


@pytest.mark.parametrize("kind", [Classification, Objective])
def test_missing_statistics_are_named(kind):
    model = residual_net()
    params, _ = initial(model)
    with pytest.raises(UserError, match=rf"losses.{kind.__name__}: ResNet .*none.*batch_stats"):
        kind(model)(params, example_batch())


@pytest.mark.parametrize(("rows", "labels"), [(8, 1), (1, 8), (6, 3)])
def test_each_row_of_logits_has_one_label(rows, labels):
    """Also where they would be broadcast."""
    model = nn.MLP(num_classes=5, depth=0)
    params = {"head": {"kernel": jnp.zeros((64, 5)), "bias": jnp.zeros(5)}}
    batch = example_batch(size=rows) | {"label": jnp.zeros(labels, jnp.int32)}
    said = rf"labels must be one for each of the {rows} rows of logits; got .*\({labels},\)"
    for call_it in (
        lambda: CrossEntropy()(jnp.zeros((rows, 5)), batch),
        lambda: CrossEntropy().newton_step(jnp.zeros((rows, 5)), batch),
        lambda: Classification(model)(params, batch),
        lambda: jax.eval_shape(Objective(model), params, batch),
    ):
        with pytest.raises(UserError, match=said):
            call_it()


def test_targets_of_another_shape_are_refused():
    """Also those that would be broadcast: [3, 1] less [3] is [3, 3]."""
    y = jnp.arange(3.0)
    for outputs, target in ((y[:, None], y), (y, y[:, None]), (jnp.ones((3, 2)), jnp.ones((1, 2)))):
        with pytest.raises(UserError, match="losses.SquaredError: targets are .*outputs' shape"):
            SquaredError()(outputs, {"target": target})


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_impossible_smoothing_is_refused(smoothing):
    with pytest.raises(UserError, match="label_smoothing=.*less than 1"):
        Objective(nn.MLP(num_classes=5), {}, smoothing)
