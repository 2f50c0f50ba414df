"""Quantised models: which leaves, along which axes; training through rounding; activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from sharpjax import geometry, tree
from sharpjax.compress import integers, kernels, observers
from sharpjax.compress.activations import QuantisedInputs, calibrate, layer_inputs
from sharpjax.compress.casting import cast_params, fake_cast_params
from sharpjax.compress.grid import grid_of_range
from sharpjax.compress.straight_through import on_quantised
from sharpjax.compress.weights import (
    dequantise_params,
    fake_quantise_params,
    is_quantised,
    quantise_params,
)
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.nn import MLP, LeNet, ResNetNarrow, svd


def drawn(model, *inputs, seed=0, **kwargs):
    """Variables of the model's shapes, drawn by numpy."""
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


def small(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
        "norm": {"scale": draw(4), "bias": draw(4)},
        "query": {"kernel": draw(4, 2, 3)},
        "out": {"kernel": draw(2, 3, 4), "bias": draw(4)},
        "embed": {"embedding": draw(5, 4)},
    }


# Which leaves, and which axes.


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(LeNet(10, width=4), (1, 12, 12, 1)), (ResNetNarrow(10), (1, 8, 8, 3))],
    ids=["LeNet", "ResNet"],
)
def test_kernels_alone_and_each_output_channel(model, inputs):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(inputs))["params"]
    held = jax.eval_shape(functools.partial(quantise_params, bits=8), params)
    nodes = jax.tree.leaves(held, is_leaf=is_quantised)
    for name, leaf, node in zip(
        tree.path_names(params), jax.tree.leaves(params), nodes, strict=True
    ):
        assert is_quantised(node) == name.endswith("kernel"), name
        if is_quantised(node):
            assert node.grid.scale.shape == (1,) * (leaf.ndim - 1) + (leaf.shape[-1],), name


def test_output_channels_of_attention():
    x = jnp.zeros((1, 5, 6))
    for bias in (True, False):
        model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, use_bias=bias)
        params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        axes = dict(zip(tree.path_names(params), kernels.output_axes(params), strict=True))
        for name in ("query", "key", "value"):
            assert params[name]["kernel"].shape == (6, 2, 4) and axes[f"{name}/kernel"] == (1, 2)
        assert params["out"]["kernel"].shape == (2, 4, 6) and axes["out/kernel"] == (2,)


def test_the_rule_of_tflite():
    """absmax / 127 for each output channel, by numpy; all else is the same object."""
    params = small()
    held = quantise_params(params, 8)
    for name, inputs in (("conv", (0, 1, 2)), ("query", (0,)), ("out", (0, 1))):
        w = np.asarray(params[name]["kernel"])
        scale = np.abs(w).max(inputs, keepdims=True) / np.float32(127)
        # XLA divides by a constant as it multiplies by its reciprocal: a rounding more.
        np.testing.assert_allclose(held[name]["kernel"].grid.scale, scale, rtol=2.5e-7)
        np.testing.assert_array_equal(held[name]["kernel"].values, np.round(w / scale))
    assert held["conv"]["bias"] is params["conv"]["bias"]
    assert held["norm"]["scale"] is params["norm"]["scale"] and held["embed"] == params["embed"]
    rounded = fake_quantise_params(params, 8)
    jax.tree.map(np.testing.assert_array_equal, dequantise_params(held), rounded)
    assert jax.tree.structure(rounded) == jax.tree.structure(params)


def test_scopes():
    params = small()
    whole = quantise_params(params, 4, scope="trainable")
    assert all(map(is_quantised, jax.tree.leaves(whole, is_leaf=is_quantised)))
    assert whole["norm"]["scale"].grid.scale.shape == (1,)  # one step for a leaf of one axis
    tensors = quantise_params(params, 4, scope=["conv/*", "embed/*"], per_channel=False)
    assert tensors["conv"]["kernel"].grid.scale.shape == (1, 1, 1, 1)
    assert is_quantised(tensors["embed"]["embedding"]) and not is_quantised(
        tensors["out"]["kernel"]
    )
    large = quantise_params(params, 8, min_numbers=24)  # conv 72, query and out 24
    assert sum(map(is_quantised, jax.tree.leaves(large, is_leaf=is_quantised))) == 3
    large = quantise_params(params, 8, min_numbers=25)
    assert is_quantised(large["conv"]["kernel"]) and not is_quantised(large["out"]["kernel"])
    factors = svd.decompose({"head": {"kernel": params["embed"]["embedding"]}}, 0.5)
    held = quantise_params(factors, 8)["head"]["kernel"]
    assert is_quantised(held["U"]) and is_quantised(held["Vt"]) and not is_quantised(held["s"])


def test_a_population_lane_by_lane():
    population = tree.stack([small(0), small(1)])
    held = jax.vmap(functools.partial(quantise_params, bits=4))(population)
    done = tree.index(jax.vmap(dequantise_params)(held), 1)
    jax.tree.map(np.testing.assert_array_equal, done, fake_quantise_params(small(1), 4))


def test_each_leaf_has_its_own_draw(key):
    kernel = jnp.full((50, 20), 0.5).at[0].set(7.0)  # s = 1
    twins = {"a": {"kernel": kernel}, "b": {"kernel": kernel}}
    done = fake_quantise_params(twins, 4, rounding="stochastic", key=key)
    assert jnp.any(done["a"]["kernel"] != done["b"]["kernel"])
    assert set(np.unique(done["a"]["kernel"])) == {0.0, 1.0, 7.0}


def test_folding_a_norm_changes_nothing():
    """Channels times numbers are channels of steps times those numbers."""
    kernel = small()["conv"]["kernel"]
    factors = jnp.array([0.25, -2.0, 8.0, 1.0])  # exact in floating point
    folded = fake_quantise_params({"kernel": kernel * factors}, 4)["kernel"]
    np.testing.assert_array_equal(
        folded, fake_quantise_params({"kernel": kernel}, 4)["kernel"] * factors
    )


def test_casts_of_models():
    params = small()
    short = cast_params(params, "float16")
    assert {leaf.dtype for leaf in jax.tree.leaves(short)} == {jnp.dtype("float16")}
    assert cast_params(params, "float16", scope="kernels")["norm"] == params["norm"]
    done = fake_cast_params(params, "float16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), done, short)


def test_what_is_refused():
    params = small()
    with pytest.raises(UserError, match=r"^quantise_params: bits=1; "):
        quantise_params(params, 1)
    with pytest.raises(UserError, match=r"^fake_quantise_params: scope='kernels' chooses nothing"):
        fake_quantise_params({"w": jnp.ones(3)}, 8)
    with pytest.raises(
        UserError, match=r"^quantise_params: min_numbers=100, but the largest .* 72;"
    ):
        quantise_params(params, 8, min_numbers=100)
    with pytest.raises(UserError, match=r"^where: no leaf is named 'kernel'"):
        quantise_params(params, 8, scope="kernel")
    params["conv"]["kernel"] = params["conv"]["kernel"].at[0, 0, 0, 0].set(jnp.nan)
    with pytest.raises(
        UserError, match=r"^quantise_params: 'conv/kernel' holds NaN or infinity in 1"
    ):
        quantise_params(params, 8)
    with pytest.raises(UserError, match=r"^cast_params: 'conv/kernel' holds NaN"):
        cast_params(params, "bfloat16")
    with pytest.raises(UserError, match=r"^on_quantised: bits=0; "):
        on_quantised(lambda p, b: 0.0, 0)


# Through rounding.


def network_and_batch():
    model, rng = MLP(3, width=5, depth=1, dtype=jnp.float64), np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(6, 2, 2, 1)))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), drawn(model, image)["params"])
    return model, params, {"image": image, "label": jnp.asarray(rng.integers(0, 3, 6))}


@pytest.mark.parametrize("bound", ["integer", "half"])
def test_geometry_through_rounding(bound, x64):
    """M H M v with H at the rounded weights; with "integer" nothing is clipped."""
    model, params, batch = network_and_batch()
    loss = Classification(model)
    through = on_quantised(loss, 4, bound=bound)
    assert hash(jax.tree.structure(through)) == hash(
        jax.tree.structure(on_quantised(Classification(model), 4, bound=bound))
    )
    rounded = fake_quantise_params(params, 4, bound=bound)
    slope = jax.jacfwd(lambda w: jnp.sum(integers.fake_quantise(w, 4, axis=-1, bound=bound)))
    inside = {
        layer: {"kernel": slope(leaves["kernel"]), "bias": jnp.ones_like(leaves["bias"])}
        for layer, leaves in params.items()
    }
    v = tree.random_normal(jax.random.key(1), params)
    times = functools.partial(jax.tree.map, jnp.multiply)
    truth = times(inside, geometry.hvp(loss, rounded, batch, times(inside, v)))
    found = geometry.hvp(through, params, batch, v)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, found, truth)
    gradient = times(inside, jax.grad(loss)(rounded, batch))
    jax.tree.map(close, jax.grad(through)(params, batch), gradient)
    parts = geometry.composed(on_quantised(loss.model_fn, 4, bound=bound), loss.outer_loss)
    found = geometry.trace(geometry.gauss_newton(parts, params, batch), method="exact").value
    if bound == "integer":
        at = geometry.composed(loss.model_fn, loss.outer_loss)
        truth = geometry.trace(geometry.gauss_newton(at, rounded, batch), method="exact").value
        np.testing.assert_allclose(found, truth, rtol=1e-9)


def test_a_loss_is_rounded_in_the_leaves_that_are_chosen():
    loss = Partial(lambda params, batch: jnp.sum((params["a"] + 2 * params["b"] - batch) ** 2))
    params = {"a": jnp.array([1.0, 0.3]), "b": jnp.array([1.0, 0.6])}
    truth = loss({"a": params["a"], "b": jnp.array([1.0, 1.0])}, 1.0)
    for scope in ("b", ["b"], {"a": False, "b": True}, {"a": np.False_, "b": jnp.array(True)}):
        assert jax.jit(on_quantised(loss, 2, scope=scope))(params, 1.0) == truth


def test_training_through_rounding():
    """The second weight moves until it is rounded to its target: by 0.2 a step, to 0.4."""
    loss = on_quantised(Partial(squares), 2)
    weights, target = {"kernel": jnp.array([1.0, 0.8])}, jnp.array([1.0, 0.0])
    losses = []
    for _ in range(4):
        losses.append(float(loss(weights, target)))
        slope = jax.grad(loss)(weights, target)
        weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, slope)
    assert losses == [1, 1, 0, 0]
    np.testing.assert_allclose(weights["kernel"], [1, 0.4], rtol=1e-6)


def squares(params, target):
    return jnp.sum((params["kernel"] - target) ** 2)


# Ranges.


def observed(observer, arrays):
    state = observer.init()
    for x in arrays:
        state = jax.jit(observer.update)(state, jnp.asarray(x))
    return [float(end) for end in observer.range(state)]


def test_ranges_by_numpy():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=1000) ** 3)
    parts = [x[:100], x[100:101], x[101:101], x[101:]]
    assert observed(observers.MinMax(), parts) == [x.min(), x.max()]
    assert observed(observers.MinMax(), parts[::-1]) == [x.min(), x.max()]
    root = 2 * np.sqrt(np.mean(np.square(x)))
    np.testing.assert_allclose(
        observed(observers.RootMeanSquare(2.0), parts), [-root, root], rtol=1e-5
    )
    low, high = x[:100].min(), x[:100].max()
    for part in (parts[1], parts[3]):
        low, high = low + 0.1 * (part.min() - low), high + 0.1 * (part.max() - high)
    np.testing.assert_allclose(
        observed(observers.MovingAverage(0.1), parts), [low, high], rtol=1e-5
    )


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_percentiles(share):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=1001) ** 3)
    x[500] = 32.0  # a power of two is the edge of a bin
    observer = observers.Percentile(share)
    low, high = observed(observer, [x])
    assert [low, high] == observed(observer, np.split(x[::-1], [7, 8, 400]))
    beyond = int(np.floor((1 - share) / 2 * x.size + 1e-3))
    inner = np.sort(x)[[beyond, -1 - beyond]]
    assert np.sum(x < low) <= beyond and np.sum(x > high) <= beyond
    width = 4 / observer.bins * np.abs(x).max()
    assert inner[0] - width <= low <= inner[0] and inner[1] <= high <= inner[1] + width
    if share == 1:
        assert [low, high] == [x.min(), x.max()]


def test_bins_are_no_wider_after_zeros():
    x = np.float32(np.random.default_rng(0).normal(size=100) * 1e-4)
    observer = observers.Percentile(0.8, bins=64)
    zeros = np.zeros(100, np.float32)
    together = observed(observer, [np.concatenate([zeros, x])])
    assert together == observed(observer, [zeros, x]) == observed(observer, [x, zeros])
    inner = np.sort(np.concatenate([zeros, x]))[[20, -21]]  # (1 - share) / 2 of 200 lie beyond
    width = 4 / observer.bins * np.abs(x).max()
    assert np.all(np.abs(together - inner) <= width)


@pytest.mark.parametrize(
    "observer",
    [
        observers.MinMax(),
        observers.MovingAverage(),
        observers.RootMeanSquare(3.0),
        observers.Percentile(0.9, bins=16),
    ],
    ids=lambda observer: type(observer).__name__,
)
def test_a_range_of_nothing_or_of_what_is_not_finite(observer):
    good = np.ones(3, np.float32)
    assert np.all(np.isnan(observed(observer, [])))
    for bad in (np.nan, np.inf, -np.inf):
        assert np.all(np.isnan(observed(observer, [good, np.float32([1, bad]), good])))
    zero = observed(observer, [np.zeros(3, np.float32)])
    assert zero == [0, 0] or zero == pytest.approx([0, 0], abs=1e-37)
    assert hash(observer) == hash(type(observer)(**vars(observer)))


def test_observers_that_are_refused():
    for make, said in (
        (lambda: observers.MovingAverage(0), "rate=0;"),
        (lambda: observers.RootMeanSquare(-1), "factor=-1;"),
        (lambda: observers.Percentile(1.5), "share=1.5;"),
        (lambda: observers.Percentile(0.5, bins=100), "bins=100; give a power of two"),
    ):
        with pytest.raises(UserError, match=said):
            make()


# Activations.


class Net(nn.Module):
    """A convolution, a norm, and one layer that is called twice."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (2, 2))(image)))
        twice = nn.Dense(3, name="twice")
        return nn.Dense(4, name="head")(twice(twice(x.mean((1, 2)))))


def test_activations():
    net, image = Net(), jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 2)), jnp.float32)
    variables = jax.tree.map(jnp.abs, drawn(net, image))
    found = layer_inputs(net, variables, image)
    assert {name: len(arrays) for name, arrays in found.items()} == {
        "Conv_0": 1,
        "twice": 2,
        "head": 1,
    }
    ranges = calibrate(net, variables, [image[:4], image[4:]], observers.MinMax())
    for name, arrays in found.items():
        ends = [min(map(np.min, arrays)), max(map(np.max, arrays))]
        np.testing.assert_allclose(ranges[name], ends, rtol=1e-5)
    rounded = QuantisedInputs(net, bits=5)
    shapes = jax.eval_shape(rounded.init, jax.random.key(0), image)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)

    # By hand: the head of what it reads, rounded, at the end of layers that are rounded.
    for state in (variables, {**variables, "ranges": ranges}):
        fixed = "ranges" in state
        x = layer_inputs(rounded, state, image)["head"][0]
        if fixed:
            grid = grid_of_range(*ranges["head"], 5, symmetric=False)
            x = integers.fake_quantise_onto(x, grid)
        else:
            x = integers.fake_quantise(x, 5, axis=0, symmetric=False)
        head = variables["params"]["head"]
        logits = rounded.apply(state, image)
        np.testing.assert_allclose(logits, x @ head["kernel"] + head["bias"], rtol=1e-5)
        # Examples do not see each other.
        np.testing.assert_allclose(rounded.apply(state, image[2:3]), logits[2:3], rtol=1e-5)
        assert jnp.any(logits != net.apply(variables, image))

    others = {"batch_stats": variables["batch_stats"], "ranges": ranges}
    loss = Classification(rounded, others)
    batch = {"image": image, "label": jnp.arange(6) % 4}
    slope = jax.grad(on_quantised(loss, 8))(variables["params"], batch)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
    assert jnp.any(slope["Conv_0"]["kernel"] != 0)


def test_activations_that_are_refused():
    model, image = MLP(3, width=4), jnp.ones((2, 2, 2, 1))
    variables = drawn(model, image)
    with pytest.raises(UserError, match=r"^calibrate: nothing was observed"):
        calibrate(model, variables, [], observers.MinMax())
    with pytest.raises(UserError, match=r"^calibrate: 'Dense_0' read NaN or infinity"):
        calibrate(model, variables, [image * jnp.nan], observers.MinMax())
    with pytest.raises(UserError, match=r"^QuantisedInputs: ranges lacks the layer 'Dense_0'"):
        QuantisedInputs(model, bits=8).apply({**variables, "ranges": {"head": (0.0, 1.0)}}, image)
    with pytest.raises(UserError, match=r"^QuantisedInputs: bits=1; "):
        QuantisedInputs(model, bits=1).apply(variables, image)
