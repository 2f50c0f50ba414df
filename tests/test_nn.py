"""Parameter counts, layers against numpy, types, and what a model refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from sharpjax import catalog, nn, tree
from sharpjax.errors import UserError
from sharpjax.nn import layers, resnet

NORMALISED = ("resnet", "vgg", "mobilenet")
SHAPES = {name: known.shape for name, known in catalog.DATA_SETS.items()}


@functools.partial(jax.jit, static_argnums=0)
def init(model, key, image):
    return model.init(key, image)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model, variables, image):
    return model.apply(variables, image)


def shapes_of(model, shape):
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("model", "data", "count"),
    [
        (nn.build("resnet18", num_classes=10, width=64), "cifar10", 11_173_962),
        (nn.build("resnet18", num_classes=100), "cifar100", 11_220_132),
        (nn.build("resnet18", num_classes=10, width=16), "cifar10", 701_466),
        (nn.build("resnet20", num_classes=10), "cifar10", 272_474),
        (nn.build("resnet_narrow", num_classes=10), "cifar10", 78_042),
        (nn.build("resnet_narrow", num_classes=100), "cifar100", 83_892),
        (nn.build("resnet50", num_classes=10), "cifar10", 24_588_810),
        (nn.build("resnet50", num_classes=100), "cifar100", 24_634_980),
        (nn.build("resnet50_narrow", num_classes=10), "cifar10", 75_130),
        (nn.build("resnet50_narrow", num_classes=100), "cifar100", 86_740),
        (nn.build("mobilenet", num_classes=10), "cifar10", 3_736_906),
        (nn.build("mobilenet", num_classes=100), "cifar100", 3_783_076),
        (nn.build("mobilenet_narrow", num_classes=10), "cifar10", 71_722),
        (nn.build("mobilenet_narrow", num_classes=100), "cifar100", 83_332),
        (nn.build("vgg9", num_classes=10), "cifar10", 2_789_706),
        (nn.build("vgg16", num_classes=10), "cifar10", 14_991_946),
        (nn.build("vgg19", num_classes=10), "cifar10", 20_304_202),
        (nn.build("vgg19", num_classes=100), "cifar100", 20_350_372),
        (nn.build("vgg_narrow", num_classes=10), "cifar10", 139_914),
        (nn.build("vgg_narrow", num_classes=100), "cifar100", 145_764),
        (nn.build("vit", num_classes=10), "cifar10", 6_376_458),
        (nn.build("vit_small", num_classes=10), "cifar10", 6_475_248),
        (nn.build("vit_narrow", num_classes=10), "cifar10", 150_954),
        (nn.build("vit_narrow", num_classes=100), "cifar100", 156_804),
        (nn.build("lenet", num_classes=10), "mnist", 225_034),
        (nn.build("lenet", num_classes=10), "cifar10", 315_722),
        (nn.build("lenet", num_classes=100), "cifar100", 327_332),
        (nn.build("mlp", num_classes=10), "mnist", 669_706),
        (nn.MLP(num_classes=10, depth=5), "mnist", 1_457_674),
        (nn.build("small_conv", num_classes=10), "digits", 9_930),
    ],
)
def test_parameter_counts(model, data, count):
    assert tree.size(shapes_of(model, SHAPES[data])["params"]) == count


@pytest.mark.parametrize("name", catalog.MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_statistics_and_logits_are_float32_at_every_size(name, dtype):
    model = nn.build(name, num_classes=7, width=2, dtype=dtype)
    for shape in {(1, 1, 1), *SHAPES.values()}:
        if shape[0] < catalog.SMALLEST_IMAGE.get(name, 1):
            continue
        variables = shapes_of(model, shape)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        assert ("batch_stats" in variables) == name.startswith(NORMALISED)
        image = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
        logits = jax.eval_shape(model.apply, variables, image)
        assert logits.shape == (5, 7) and logits.dtype == jnp.float32


def test_a_bfloat16_model_computes_in_bfloat16_up_to_its_last_layer(key):
    image = jax.random.normal(key, (4, 8, 8, 1))
    model = nn.SmallConv(num_classes=10, width=4)
    variables = init(model, key, image)
    exact = evaluate(model, variables, image)
    rounded = evaluate(model.clone(dtype=jnp.bfloat16), variables, image)
    assert 1e-4 < jnp.max(jnp.abs(exact - rounded)) < 0.1
    # Logits are not themselves rounded to bfloat16.
    assert jnp.any(rounded.astype(jnp.bfloat16).astype(jnp.float32) != rounded)


def test_float64_is_float64_throughout(x64, key):
    model = nn.LeNet(num_classes=3, width=2)
    image = jax.random.normal(key, (4, 10, 10, 3), jnp.float64)
    variables = init(model, key, image)
    single = evaluate(model, variables, image)
    variables = jax.tree.map(lambda v: v.astype(jnp.float64), variables)
    with jax.numpy_dtype_promotion("strict"):
        logits = evaluate(model.clone(dtype=jnp.float64), variables, image)
    assert (single.dtype, logits.dtype) == (jnp.float32, jnp.float64)
    assert 1e-10 < jnp.max(jnp.abs(single.astype(jnp.float64) - logits)) < 1e-5


# By value.


def test_models_are_equal_and_hash_by_value():
    made = [
        nn.build("resnet18", num_classes=10, width=8, dtype=dtype)
        for dtype in ("float32", np.float32, jnp.float32, np.dtype("float32"))
    ]
    made.append(nn.ResNet18(num_classes=10, width=8))
    made.append(nn.build("resnet18", num_classes=10, width=8, dtype="bfloat16"))
    made[-1] = made[-1].clone(dtype=jnp.float32)
    assert all(model == made[0] and hash(model) == hash(made[0]) for model in made)
    others = [
        nn.ResNet18(num_classes=10, width=4),
        nn.ResNet18(num_classes=9, width=8),
        nn.ResNet20(num_classes=10, width=8),
        nn.ResNet18(num_classes=10, width=8, dtype=jnp.bfloat16),
    ]
    assert made[0] not in others and len({made[0], *others}) == 5


def test_width_zero_is_the_default():
    for name, width in {"mlp": 512, "small_conv": 16, "lenet": 32, "resnet18": 64}.items():
        model = nn.build(name, num_classes=10)
        assert model.width == width
        assert model == nn.build(name, num_classes=10, width=width)


# Layers against numpy.


def numpy_conv(x, kernel, stride, pad):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    patches = np.stack(
        [np.stack([x[:, i : i + size, j : j + size] for j in columns], 1) for i in rows], 1
    )
    return np.einsum("bijuvc,uvcf->bijf", patches, kernel)


def test_a_basic_block_equals_numpy(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 3))
    block = resnet.BasicBlock(features=4, stride=2, dtype=jnp.float64)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.asarray(x), train=False))
    # Positive throughout, for the variances.
    v = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape), shapes)

    def numpy_bn(name, y):
        p, s = v["params"][name], v["batch_stats"][name]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    kernel = [v["params"][f"Conv_{i}"]["kernel"] - 1 for i in range(3)]
    for i in range(3):
        v["params"][f"Conv_{i}"] = {"kernel": kernel[i]}
    y = np.maximum(numpy_bn("BatchNorm_0", numpy_conv(x, kernel[0], 2, 1)), 0)
    y = numpy_bn("BatchNorm_1", numpy_conv(y, kernel[1], 1, 1))
    shortcut = numpy_bn("BatchNorm_2", numpy_conv(x, kernel[2], 2, 0))
    expected = np.maximum(y + shortcut, 0)
    assert expected.shape == (2, 3, 3, 4) and 0.1 < np.mean(expected > 0) < 0.95
    with jax.numpy_dtype_promotion("strict"):
        apply = jax.jit(block.apply, static_argnames="train")
        out = apply(jax.tree.map(jnp.asarray, v), jnp.asarray(x), train=False)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_strided_convolutions_are_centred_on_even_pixels(key):
    # With `SAME` the centres would be 1, 3, 5: that pads on one side only.
    x = jax.random.normal(key, (1, 6, 6, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    layer = layers.conv(1, 3, stride=2, padding=1, use_bias=False, dtype=jnp.float32)
    out = evaluate(layer, {"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(out, x[:, ::2, ::2], rtol=1e-6)


def test_batch_norm_updates_by_hand(x64):
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 3.0, size=(5, 4, 4, 2))
    old = {"mean": np.array([1.0, -2.0]), "var": np.array([0.5, 4.0])}
    params = {"scale": np.array([1.5, 0.5]), "bias": np.array([0.0, 3.0])}
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": old})

    @functools.partial(jax.jit, static_argnums=0)
    def run(train):
        layer = resnet.batch_norm(train, jnp.float64)
        return layer.apply(variables, jnp.asarray(x), mutable=["batch_stats"])

    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    out, updated = run(True)
    new = updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-12)
    expected = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)

    out, updated = run(False)
    assert tree.digest(updated["batch_stats"]) == tree.digest(variables["batch_stats"])
    expected = (x - old["mean"]) / np.sqrt(old["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_examples_see_each_other_in_training_only(key):
    model = resnet.ResNet(num_classes=3, width=2, blocks=(1,))
    image = jax.random.normal(key, (6, 8, 8, 3))
    variables = init(model, key, image)
    apart = evaluate(model, variables, image[:2])
    together = evaluate(model, variables, image)
    np.testing.assert_allclose(together[:2], apart, rtol=1e-5, atol=1e-6)

    @jax.jit
    def train(image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])[0]

    assert jnp.max(jnp.abs(train(image)[:2] - train(image[:2]))) > 1e-2


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_max_pool_equals_flax_and_so_do_its_derivatives(size, key, x64, strict):
    x = jax.random.normal(key, (2, *size, 3), jnp.float64)
    v = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)

    def derivatives(pool):
        def loss(x):
            return jnp.sum(jnp.sin(pool(x)))

        return pool(x), jax.grad(loss)(x), jax.jvp(jax.grad(loss), (x,), (v,))[1]

    ours = derivatives(layers.max_pool)
    theirs = derivatives(lambda x: linen.max_pool(x, (2, 2), (2, 2)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


# Initialisation.


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.SmallConv(num_classes=50, width=32), (8, 8, 1)),
        (nn.MLP(num_classes=50, width=64), (8, 8, 1)),
        (resnet.ResNet(num_classes=50, width=16, blocks=(1,)), (8, 8, 3)),
    ],
)
def test_kernels_start_at_he_and_lecun_variance(model, shape, key):
    params = init(model, key, jnp.zeros((1, *shape)))["params"]
    num_kernels = 0
    for name, leaf in zip(tree.path_names(params), jax.tree.leaves(params), strict=True):
        if not name.endswith("kernel"):
            assert jnp.all(leaf == (1.0 if name.endswith("scale") else 0.0)), name
            continue
        num_kernels += 1
        gain = 1.0 if name == "head/kernel" else 2.0
        fan_in = leaf.size // leaf.shape[-1]
        # The fourth moment of the truncated normal is under that of a normal, 3.
        four_sigma = 4 * np.sqrt(2 / leaf.size)
        assert abs(jnp.mean(leaf**2) * fan_in / gain - 1) < four_sigma, name
        assert jnp.max(jnp.abs(leaf)) < 2.3 * np.sqrt(gain / fan_in)
    assert num_kernels >= 3


# Dropout.

# One model of each kind, and how many layers of it there are at two blocks, of a ViT at one.
DROPOUT = {
    "mlp": 2,
    "small_conv": 1,
    "lenet": 1,
    "resnet18": 2,
    "resnet50": 1,
    "mobilenet": 1,
    "vgg9": 1,
    "vit_small": 4,
}


def with_dropout(name, rate, **options):
    if name.startswith(NORMALISED):
        options["blocks"] = (1, 1)
    if name.startswith("vit"):
        options["depth"] = 1
    return nn.build(name, num_classes=3, width=2, dropout=rate, **options)


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, image, key):
    return model.apply(
        variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )[0]


def test_dropout_is_looked_for_in_every_kind_of_model():
    kinds = {name: catalog.resolve(reference).__mro__ for name, reference in catalog.MODELS.items()}
    looked_at = {kind for name in DROPOUT for kind in kinds[name] if kind is not linen.Module}
    for name, bases in kinds.items():
        own = {base for base in bases[: bases.index(linen.Module)] if "__call__" in vars(base)}
        assert own & looked_at, name


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_is_in_training_alone(name, key):
    plain, model = with_dropout(name, 0.0), with_dropout(name, 0.5)
    image = jax.random.normal(key, (4, 10, 10, 1))
    variables = init(model, key, image)
    assert tree.digest(variables) == tree.digest(init(plain, key, image))
    # Evaluation: no key, and the same bits.
    np.testing.assert_array_equal(
        evaluate(model, variables, image), evaluate(plain, variables, image)
    )
    for net, layers_of_it in ((plain, 0), (model, DROPOUT[name])):
        text = str(jax.make_jaxpr(train, static_argnums=0)(net, variables, image, key))
        assert text.count("name=_bernoulli") == layers_of_it
    one, again, other = (train(model, variables, image, jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert jnp.max(jnp.abs(one - other)) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "small_conv", "lenet"])
def test_dropout_before_a_linear_layer_has_the_mean_of_none(name, key):
    """The last layer is linear, and a unit is 0 or x / (1 - p): its mean is x."""
    options = {"depth": 1} if name == "mlp" else {}
    model = with_dropout(name, 0.4, **options)
    image = jax.random.normal(key, (2, 10, 10, 1))
    variables = init(model, key, image)
    keys = jax.random.split(jax.random.key(1), 2000)
    logits = np.asarray(jax.vmap(train, (None, None, None, 0))(model, variables, image, keys))
    error = logits.std(0, ddof=1) / np.sqrt(len(keys))
    assert np.all(np.abs(logits.mean(0) - evaluate(model, variables, image)) < 5 * error + 1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropped_numbers_are_0_and_the_others_larger(rate, key):
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x):
            return layers.dropout(x, rate, train=True)

    out = Layer().apply({}, jnp.full(10_000, 3.0), rngs={"dropout": key})
    kept = np.asarray(out) != 0
    np.testing.assert_allclose(out[kept], 3 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / out.size)


def test_a_model_refuses_an_impossible_rate():
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="dropout=.*give a rate"):
            shapes_of(nn.MLP(num_classes=3, width=2, dropout=rate), (4, 4, 1))


# What is refused.


def test_lenet_refuses_what_would_be_empty():
    model = nn.build("lenet", num_classes=10, width=2)
    assert shapes_of(model, (10, 10, 1))["params"]["Dense_0"]["kernel"].shape == (4, 8)
    for shape in ((9, 28, 1), SHAPES["digits"]):
        with pytest.raises(UserError, match=f"{shape[0]} x {shape[1]} .*10 x 10.*small_conv"):
            jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet81"}, "'resnet81'; did you mean 'resnet18'.*small_conv"),
        ({"width": -1}, "width=-1; give 1 or more, or 0 for the default of mlp"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"dtype": "float31"}, "dtype=float31; give one of float32, bfloat16"),
        ({"dtype": "int32"}, "dtype=int32"),
        ({"dtype": "float64"}, "JAX_ENABLE_X64"),
    ],
)
def test_build_says_what_is_wrong(arguments, words):
    with pytest.raises(UserError, match=words):
        nn.build(**{"name": "mlp", "num_classes": 10, **arguments})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mlp", {"depht": 6}, "mlp has no option 'depht'; did you mean 'depth'. It has depth"),
        ("lenet", {"blocks": (1,)}, "lenet has no option 'blocks'. It has dropout, beside width"),
        ("mlp", {"depth": -1}, "depth must be a whole number >= 0, got -1"),
        ("mlp", {"depth": 1.5}, "depth must be a whole number >= 0, got 1.5"),
        ("resnet20", {"blocks": 3}, "blocks=3; give a list"),
        ("vgg9", {"widest": 0}, "widest must be a whole number >= 1, got 0"),
        ("vit", {"patch": 2.5}, "patch must be a whole number >= 1, got 2.5"),
        ("vit", {"shifted": 1}, "shifted=1; give True or False"),
        ("resnet20", {"blocks": [1, 0]}, "blocks must be a whole number >= 1, got 0"),
        ("resnet20", {"dropout": 1.0}, r"dropout=1.0; give a rate in \[0, 1\)"),
        ("mlp", {"dropout": "half"}, "dropout='half'"),
        ("mlp", {"dropout": True}, "dropout=True"),
    ],
)
def test_build_says_what_is_wrong_with_an_option(name, options, words):
    with pytest.raises(UserError, match=words):
        nn.build(name, num_classes=10, **options)


def test_build_passes_options_on():
    model = nn.build("mlp", num_classes=10, width=8, depth=6, dropout=0.5)
    assert model == nn.MLP(num_classes=10, width=8, depth=6, dropout=0.5)
    assert len(shapes_of(model, (4, 4, 1))["params"]) == 7
    model = nn.build("resnet18", num_classes=10, blocks=[1, 1, 1])
    assert model == nn.ResNet18(num_classes=10, blocks=(1, 1, 1)) and hash(model)
    assert nn.build("mlp", num_classes=10, dropout=0) == nn.build("mlp", num_classes=10)


def test_every_field_of_a_model_is_an_option():
    general = {"num_classes", "width", "dtype", "parent", "name"}
    for name, reference in catalog.MODELS.items():
        fields = {field.name for field in dataclasses.fields(catalog.resolve(reference))}
        with pytest.raises(UserError) as caught:
            nn.build(name, num_classes=10, nonsense=1)
        assert f"It has {', '.join(sorted(fields - general))}, beside" in str(caught.value)


def test_build_takes_float64_where_it_is_on(x64):
    assert nn.build("mlp", num_classes=10, dtype="float64").dtype == jnp.float64


def test_convolutional_models_hold_a_convolution_and_the_mlp_none():
    # `loops` chooses the form of a loop by this.
    for name in catalog.MODELS:
        model = nn.build(name, num_classes=10, width=2)
        variables = shapes_of(model, (28, 28, 1))
        image = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
        text = str(jax.make_jaxpr(model.apply)(variables, image))
        assert (lax.conv_general_dilated_p.name in text) == (not name.startswith(("mlp", "vit")))
