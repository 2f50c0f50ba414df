"""ResNet-50 and MobileNet as in Keras: blocks against numpy, how they start, what they give."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from sharpjax import geometry, losses, nn, tree
from sharpjax.nn import bottleneck, keras, mobilenet

NETS = {
    "mobilenet": nn.MobileNetNarrow(num_classes=3, width=4, blocks=(1, 1), hidden=20),
    "resnet50": nn.ResNet50Narrow(num_classes=3, width=4, blocks=(1, 1), hidden=20),
}
EPSILON = {"mobilenet": 1e-3, "resnet50": 1.001e-5}


def shapes_of(model, *shape, **options):
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(functools.partial(model.init, **options), jax.random.key(0), image)


def drawn(shapes, seed=0):
    """Of any sign, statistics and scales positive."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        positive = name.endswith(("var", "scale"))
        return rng.uniform(0.5, 1.5, shape) if positive else rng.normal(size=shape) / 2

    leaves, structure = jax.tree.flatten(shapes)
    pairs = zip(tree.path_names(shapes), leaves, strict=True)
    return jax.tree.unflatten(structure, [draw(name, leaf.shape) for name, leaf in pairs])


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, x, train=None):
    return model.apply(variables, x, **({} if train is None else {"train": train}))


def as_jax(tree_of_numpy):
    return jax.tree.map(jnp.asarray, tree_of_numpy)


@pytest.fixture(scope="module")
def nets():
    """Of each net the variables, and images of two batches."""
    images = jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 2))
    init = jax.jit(lambda model, key: model.init(key, images[0]), static_argnums=0)
    return {name: init(model, jax.random.key(0)) for name, model in NETS.items()}, images


# Sizes: what Keras prints of its nets without their heads, and a head.


@pytest.mark.parametrize(
    ("name", "trained", "statistics", "features"),
    [("resnet50", 23_534_592, 53_120, 2048), ("mobilenet", 3_206_976, 21_888, 1024)],
)
def test_counts_are_those_of_keras(name, trained, statistics, features):
    found = shapes_of(nn.build(name, num_classes=10), 1, 32, 32, 3)
    head = (features + 1) * 512 + (512 + 1) * 10
    assert tree.size(found["params"]) == trained + head
    assert tree.size(found["batch_stats"]) == statistics
    # One pixel is left, and its features meet the hidden layer.
    assert found["params"]["Dense_0"]["kernel"].shape == (features, 512)


# Layers and blocks.


def numpy_conv(x, kernel, stride=1):
    """As `SAME` has it: ceil(n / stride) pixels, of an odd padding the larger half at the end."""
    size, out = kernel.shape[0], [-(-n // stride) for n in x.shape[1:3]]
    pads = [max((m - 1) * stride + size - n, 0) for m, n in zip(out, x.shape[1:3], strict=True)]
    x = np.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    y = np.zeros((len(x), *out, kernel.shape[3]))
    for i in range(out[0]):
        for j in range(out[1]):
            patch = x[:, i * stride :, j * stride :][:, :size, :size]
            y[:, i, j] = np.einsum("buvc,uvcf->bf", patch, kernel)
    return y


def numpy_norm(variables, name, y, epsilon):
    p, s = variables["params"][name], variables["batch_stats"][name]
    return (y - s["mean"]) / np.sqrt(s["var"] + epsilon) * p["scale"] + p["bias"]


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 5, 1, 3), 1), ((2, 6, 4, 3), 2), ((2, 5, 1, 3), 2)]
)
def test_a_depthwise_convolution_is_a_grouped_one_and_so_are_its_derivatives(
    shape, stride, key, x64, strict
):
    ours = mobilenet.Depthwise(stride, jnp.float64)
    grouped = linen.Conv(
        shape[-1],
        (3, 3),
        strides=stride,
        feature_group_count=shape[-1],
        use_bias=False,
        dtype=jnp.float64,
    )
    keys = jax.random.split(key, 4)
    x, dx = (jax.random.normal(k, shape, jnp.float64) for k in keys[:2])
    w, dw = (jax.random.normal(k, (3, 3, 1, shape[-1]), jnp.float64) for k in keys[2:])

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(layer):
        def loss(x, w):
            return jnp.sum(jnp.sin(layer.apply({"params": {"kernel": w}}, x)))

        gradient = jax.grad(loss, (0, 1))
        out = layer.apply({"params": {"kernel": w}}, x)
        return out, *jax.jvp(gradient, (x, w), (dx, dw))

    for a, b in zip(*(jax.tree.leaves(derivatives(m)) for m in (ours, grouped)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    inits = [jax.eval_shape(m.init, key, x)["params"]["kernel"].shape for m in (ours, grouped)]
    assert inits[0] == inits[1] == w.shape


def test_a_depthwise_convolution_sums_in_float32(key):
    """In bfloat16 the result alone is rounded: to eight bits, 2^-8 of its size at most."""
    x, w = jax.random.normal(key, (2, 6, 6, 4)), jax.random.normal(key, (3, 3, 1, 4))
    x, w = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, w))
    params = {"params": {"kernel": w}}
    low = apply(mobilenet.Depthwise(1, jnp.bfloat16), params, x)
    high = apply(mobilenet.Depthwise(1, jnp.float32), params, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_separable_block_equals_numpy(stride, x64):
    block = mobilenet.Separable(5, stride, jnp.float64)
    x = 4 * np.random.default_rng(0).normal(size=(3, 6, 6, 4))
    v = drawn(shapes_of(block, *x.shape, train=False))
    params = v["params"]
    kernel = params["Depthwise_0"]["kernel"][:, :, 0]
    y = numpy_conv(x, kernel[:, :, :, None] * np.eye(4), stride)
    if stride == 2:  # pads are at the end: the first pixel meets the first weight
        corner = np.einsum("buvc,uvc->bc", x[:, :3, :3], kernel)
        np.testing.assert_allclose(y[:, 0, 0], corner, rtol=1e-12)
    y = np.clip(numpy_norm(v, "BatchNorm_0", y, 1e-3), 0, 6)
    y = numpy_conv(y, params["Conv_0"]["kernel"])
    y = np.clip(numpy_norm(v, "BatchNorm_1", y, 1e-3), 0, 6)
    assert 0.1 < np.mean(y > 0) < 0.9 and np.any(y == 6)
    with jax.numpy_dtype_promotion("strict"):
        out = apply(block, as_jax(v), jnp.asarray(x), False)
    np.testing.assert_allclose(out, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("stride", "inputs"), [(2, 3), (1, 8)])
def test_a_bottleneck_equals_numpy(stride, inputs, x64):
    block = bottleneck.Bottleneck(2, stride, jnp.float64)
    x = np.random.default_rng(0).normal(size=(3, 6, 6, inputs))
    v = drawn(shapes_of(block, *x.shape, train=False))

    def layer(i, y, stride=1):
        p = v["params"][f"Conv_{i}"]
        y = numpy_conv(y, p["kernel"], stride) + p["bias"]
        return numpy_norm(v, f"BatchNorm_{i}", y, 1.001e-5)

    y = np.maximum(layer(0, x, stride), 0)
    y = layer(2, np.maximum(layer(1, y), 0))
    assert ("Conv_3" in v["params"]) == (inputs != 8)
    y = np.maximum(y + (layer(3, x, stride) if inputs != 8 else x), 0)
    assert 0.1 < np.mean(y > 0) < 0.95
    with jax.numpy_dtype_promotion("strict"):
        out = apply(block, as_jax(v), jnp.asarray(x), False)
    np.testing.assert_allclose(out, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(6, 5), (1, 2)])
def test_maxima_of_three_by_three_equal_those_of_flax(size, key, x64, strict):
    keys = jax.random.split(key, 2)
    x, v = (jax.random.normal(k, (2, *size, 3), jnp.float64) for k in keys)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(pool):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))
        return pool(x), *jax.jvp(gradient, (x,), (v,))

    pads: Any = ((1, 1), (1, 1))  # typed as text alone

    def theirs(x):
        return linen.max_pool(x, (3, 3), (2, 2), pads)

    for a, b in zip(derivatives(bottleneck.max_pool), derivatives(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


# How they start.


def test_all_kernels_start_glorot_uniform(nets):
    """Mean squares are within five of their deviations of 2 / (fan_in + fan_out); x^2 of a uniform
    x on [-a, a] has mean a^2 / 3 and variance 4 a^4 / 45."""
    for variables in nets[0].values():
        params = variables["params"]
        for name, leaf in zip(tree.path_names(params), jax.tree.leaves(params), strict=True):
            if not name.endswith("kernel"):
                assert jnp.all(leaf == (1.0 if name.endswith("scale") else 0.0)), name
                continue
            pixels = leaf.size // (leaf.shape[-2] * leaf.shape[-1])
            square = 6 / (pixels * (leaf.shape[-2] + leaf.shape[-1]))
            assert jnp.max(jnp.abs(leaf)) <= np.sqrt(square) * (1 + 1e-6), name
            bound = 5 * np.sqrt(4 / 45 / leaf.size)
            assert abs(jnp.mean(leaf**2) / square - 1 / 3) < bound, name


def test_a_depthwise_kernel_of_512_channels_starts_within_the_stated_bound(key):
    kernel = keras.glorot(key, (3, 3, 1, 512), jnp.float32)
    assert 0.035 < np.sqrt(6 / (9 * 513)) < 0.0365
    assert jnp.max(jnp.abs(kernel)) <= np.sqrt(6 / (9 * 513))


# What they give.


@pytest.mark.parametrize("name", NETS)
def test_they_give_logits(name, nets):
    """Logits double with the last layer, whose bias starts at 0; probabilities would not."""
    variables, images = nets[0][name], nets[1]
    logits = apply(NETS[name], variables, images[0])
    assert logits.shape == (6, 3) and logits.dtype == jnp.float32
    params = variables["params"]
    head = {"kernel": 2 * params["head"]["kernel"], "bias": params["head"]["bias"] + 1}
    twice = apply(NETS[name], {**variables, "params": {**params, "head": head}}, images[0])
    np.testing.assert_allclose(twice, 2 * logits + 1, rtol=1e-5, atol=1e-6)
    assert jnp.max(jnp.abs(logits)) > 1e-3


@pytest.mark.parametrize("name", NETS)
def test_statistics_move_by_a_hundredth_and_in_training_alone(name, nets):
    variables, images = nets[0][name], nets[1]
    model = NETS[name]

    @jax.jit
    def trained(variables, image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])

    out, moved = trained(variables, images[0])
    # Of the stem, by hand: its convolution is linear in the image.
    kernel = variables["params"]["Conv_0"]["kernel"]
    pads = 3 if name == "resnet50" else "SAME"
    stem = linen.Conv(kernel.shape[-1], kernel.shape[:2], 2, pads, use_bias=False)
    y = np.asarray(apply(stem, {"params": {"kernel": kernel}}, images[0]), np.float64)
    found = moved["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.01 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found["var"], 0.99 + 0.01 * y.var((0, 1, 2)), rtol=1e-5)
    # Examples see each other in training; in evaluation they do not, and nothing moves.
    other, _ = trained(variables, images[0].at[1:].set(images[1, 1:]))
    assert jnp.max(jnp.abs(other[0] - out[0])) > 1e-4
    one = apply(model, variables, images[0])
    again = apply(model, variables, images[0].at[1:].set(images[1, 1:]))
    np.testing.assert_allclose(one[0], again[0], rtol=1e-5, atol=1e-6)
    assert jnp.max(jnp.abs(one - out)) > 1e-4


@pytest.mark.parametrize("name", NETS)
def test_epsilons_are_those_of_keras(name):
    """With a running variance of 0, BatchNorm divides by the root of epsilon."""
    norm = {"mobilenet": mobilenet, "resnet50": bottleneck}[name].batch_norm(False, jnp.float32)
    one = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}
    statistics = {"batch_stats": {"mean": jnp.zeros(1), "var": jnp.zeros(1)}}
    out = norm.apply({**one, **statistics}, jnp.ones((1, 1)))
    np.testing.assert_allclose(out, 1 / np.sqrt(EPSILON[name]), rtol=1e-5)
    assert norm.momentum == 0.99


@pytest.mark.parametrize("name", NETS)
def test_curvature_of_a_classification_loss_is_symmetric(name, x64):
    """u'Hv = v'Hu, to the rounding of float64, at moved statistics."""
    model = NETS[name].clone(dtype=jnp.float64, blocks=(1,))
    shapes = shapes_of(model, 1, 8, 8, 2)
    variables = as_jax(drawn(shapes))
    params = variables.pop("params")
    rng = np.random.default_rng(1)
    image, label = rng.normal(size=(5, 8, 8, 2)), rng.integers(0, 3, 5)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    loss = losses.Classification(model, variables)
    logits = apply(model, {"params": params, **variables}, batch["image"])
    wanted = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(5), label])
    np.testing.assert_allclose(jax.jit(loss)(params, batch), wanted, rtol=1e-12)
    u, v = (jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params) for _ in "uv")
    operator = geometry.hessian(loss, params, batch)
    hu, hv = operator @ u, operator @ v
    size = np.sqrt(float(tree.vdot(hu, hu)) * float(tree.vdot(v, v)))
    assert np.isfinite(size) and size > 0
    assert abs(float(tree.vdot(v, hu)) - float(tree.vdot(u, hv))) < 1e-11 * size
