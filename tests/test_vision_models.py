"""VGG and ViT against numpy: layers, shifts, patches, sizes, and what parameters there are."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import nn, tree
from sharpjax.nn import layers, vit


def count(model, size=32):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return tree.size(variables["params"])


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("vgg9", [64] * 2 + [128] * 2 + [256] * 3),
        ("vgg16", [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6),
        ("vgg19", [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8),
        ("vgg_narrow", [16, 32, 64, 64, 64, 64]),
    ],
)
def test_counts_of_vgg_are_sums(name, stages):
    total, inputs = 0, 3
    for filters in stages:
        total += 9 * inputs * filters + filters + 2 * filters
        inputs = filters
    pixels = 16 if name == "vgg9" else 1  # after three pools of 32 x 32, or five
    total += pixels * inputs * inputs + inputs + 2 * inputs + 10 * (inputs + 1)
    assert count(nn.build(name, num_classes=10)) == total


@pytest.mark.parametrize("name", ["vit", "vit_small", "vit_narrow"])
def test_counts_of_vit_are_sums(name):
    model = nn.build(name, num_classes=10)
    d, inner, hidden = model.width, model.num_heads * model.head_width, model.hidden
    numbers = 3 * 5**model.shifted * model.patch**2
    tokens = 1 + (32 // model.stem_stride // model.patch) ** 2
    embed = numbers * d + d + 2 * numbers * model.shifted + (tokens + 1) * d
    attention = 2 * d + 3 * d * inner + inner * d + d + model.learn_temperature
    units = 2 * d + d * hidden + hidden + hidden * d + d
    assert count(model) == embed + model.depth * (attention + units) + 2 * d + 10 * (d + 1)
    assert tokens == (17 if name == "vit_narrow" else 65)


def test_patches_and_shifts():
    image = np.arange(2 * 4 * 6 * 2, dtype=np.float32).reshape(2, 4, 6, 2)
    cut = np.asarray(vit.patches(jnp.asarray(image), 2))
    assert cut.shape == (2, 6, 8)
    for i, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        patch = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(cut[:, i], patch.reshape(2, -1))
    shifted = np.asarray(vit.with_shifts(jnp.asarray(image)))
    same, right, left, down, up = np.split(shifted, 5, axis=-1)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(right[:, :, 1:], image[:, :, :-1])
    np.testing.assert_array_equal(left[:, :, :-1], image[:, :, 1:])
    np.testing.assert_array_equal(down[:, 1:], image[:, :-1])
    np.testing.assert_array_equal(up[:, :-1], image[:, 1:])
    edges = right[:, :, 0], left[:, :, -1], down[:, 0], up[:, -1]
    assert not any(edge.any() for edge in edges)


def test_images_are_filled_to_whole_patches():
    image = np.random.default_rng(0).normal(size=(2, 6, 9, 1)).astype(np.float32)
    whole = np.pad(image, ((0, 0), (0, 2), (0, 3), (0, 0)))
    np.testing.assert_array_equal(vit.filled(image, 4), whole)
    np.testing.assert_array_equal(vit.filled(whole, 4), whole)
    shapes = jax.eval_shape(nn.ViT(num_classes=3, width=8).init, jax.random.key(0), image)
    assert shapes["params"]["positions"].shape == (1, 1 + 2 * 3, 8)


def test_a_stem_of_stride_2_averages_squares():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    want = image.reshape(1, 2, 2, 2, 2, 1).mean((2, 4))
    np.testing.assert_array_equal(vit.averaged(jnp.asarray(image), 2), want)


def layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


@pytest.mark.parametrize("local", [False, True], ids=["plain", "local"])
def test_a_block_equals_numpy(local, x64):
    rng = np.random.default_rng(0)
    block = vit.Block(2, 3, 7, mask_self=local, learn_temperature=local, dtype=jnp.float64)
    x = rng.normal(size=(2, 5, 4))
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.asarray(x), train=False))
    p = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes["params"])
    assert ("temperature" in p) == local
    # Heads of queries, keys and values lie side by side, in this order.
    joint = layer_norm(x, p["LayerNorm_0"]) @ p["Dense_0"]["kernel"]
    q, k, v = joint.reshape(2, 5, 3, 2, 3).transpose(2, 0, 3, 1, 4)
    scale = np.exp(p["temperature"]) if local else 1 / np.sqrt(3)
    scores = q @ k.swapaxes(-1, -2) * scale
    if local:
        scores[..., np.eye(5, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 6)
    y = x + out @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    hidden = gelu(layer_norm(y, p["LayerNorm_1"]) @ p["Dense_2"]["kernel"] + p["Dense_2"]["bias"])
    y = y + hidden @ p["Dense_3"]["kernel"] + p["Dense_3"]["bias"]
    apply = jax.jit(functools.partial(block.apply, train=False))
    got = apply({"params": jax.tree.map(jnp.asarray, p)}, jnp.asarray(x))
    np.testing.assert_allclose(got, y, rtol=1e-11, atol=1e-11)


def test_masked_attention_with_a_temperature(key):
    """It starts at the usual scale, and a Hessian product is finite."""
    block = vit.Block(2, 4, 8, mask_self=True, learn_temperature=True, dtype=jnp.float32)
    x = jax.random.normal(key, (2, 5, 8))

    @jax.jit
    def found(key, x):
        params = block.init(key, x, train=False)["params"]

        def loss(params):
            return jnp.mean(block.apply({"params": params}, x, train=False) ** 2)

        return params, jax.jvp(jax.grad(loss), (params,), (params,))[1]

    params, product = found(key, x)
    assert math.isclose(math.exp(params["temperature"]), 0.5, rel_tol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(product))
    assert product["temperature"] != 0


@pytest.mark.parametrize(
    ("name", "glob", "count"),
    [
        ("resnet_narrow", "*BatchNorm*", 9),
        ("vgg_narrow", "*BatchNorm*", 7),
        ("vit", "*LayerNorm*", 13),
    ],
)
def test_normalisation_layers_are_found_by_name(name, glob, count):
    """As SAM on them alone needs it: a scale and a bias each."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(nn.build(name, num_classes=10).init, jax.random.key(0), image)
    assert sum(jax.tree.leaves(tree.select(variables["params"], glob))) == 2 * count


def test_pools_with_a_window_for_what_is_left(key):
    x = jax.random.normal(key, (2, 5, 7, 3))
    want = np.full((2, 6, 8, 3), -np.inf)
    want[:, :5, :7] = x
    want = want.reshape(2, 3, 2, 4, 2, 3).max((2, 4))
    np.testing.assert_array_equal(layers.max_pool(x, ceil=True), want.astype(np.float32))
    even = x[:, :4, :6]
    np.testing.assert_array_equal(layers.max_pool(even, ceil=True), layers.max_pool(even))
    # The derivative is that of the largest, also where it was there twice.
    one = jax.jit(jax.grad(lambda x: jnp.sum(layers.max_pool(x, ceil=True))))(x)
    assert float(one.sum()) == 2 * 3 * 4 * 3
    assert set(np.unique(one)) == {0.0, 1.0}
