"""Compressed models in a plan, what each takes, and how far its function goes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sharpjax import compress, tree
from sharpjax.data import Examples, Splits
from sharpjax.errors import UserError
from sharpjax.metrics import functional
from sharpjax.nn import MLP, LeNet, MobileNetNarrow
from sharpjax.train.compressing import Cast, Quantise, Size
from sharpjax.train.plan import When
from sharpjax.train.pruning import Prune
from sharpjax.train.results import of

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Held:
    params: Any
    variables: Any = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Subject:
    state: Any
    model: Any = None
    source: Any = None


def by_hand():
    params = {
        "Conv_0": {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2), "bias": jnp.full(2, 0.1)},
        "head": {"kernel": 100 + jnp.arange(6.0).reshape(2, 3)},
    }
    return Held(params, {"batch_stats": {"var": jnp.full(2, 0.01)}})


def made(transform, state):
    subject: Any = Subject(state)
    ((own, found),) = transform(subject, KEY)
    assert (own,) == transform.outputs if hasattr(transform, "outputs") else own == ()
    return found


def test_each_transform_changes_what_it_says():
    state = by_hand()
    pruned = made(Prune((50,), named=False), state)  # 7 of 14 weights
    assert int(jnp.sum(pruned.params["Conv_0"]["kernel"] == 0)) == 7
    assert float(pruned.params["Conv_0"]["bias"][0]) == pytest.approx(0.1)
    assert pruned.variables is state.variables
    # 4 of 18 numbers: variances and biases are the smallest.
    everything = made(Prune((20,), scope="variables", named=False), state)
    assert not everything.variables["batch_stats"]["var"].any()
    assert not everything.params["Conv_0"]["bias"].any()
    bits = made(Quantise(2), state).params
    assert {*np.unique(np.asarray(bits["head"]["kernel"]))} <= {0.0, 103.0, 104.0, 105.0}
    large = made(Quantise(2, min_numbers=7), state).params  # as TFLite leaves small ones
    np.testing.assert_array_equal(large["head"]["kernel"], state.params["head"]["kernel"])
    np.testing.assert_array_equal(large["Conv_0"]["kernel"], bits["Conv_0"]["kernel"])
    half = made(Cast("float16"), state).params["Conv_0"]["bias"]
    assert float(half[0]) == float(np.float16(0.1))
    alone = Quantise(2, ("head/kernel",))
    one = made(alone, state).params
    assert alone.outputs == (of(layer="head/kernel"),)
    np.testing.assert_array_equal(one["Conv_0"]["kernel"], state.params["Conv_0"]["kernel"])
    np.testing.assert_array_equal(one["head"]["kernel"], bits["head"]["kernel"])


def test_models_without_a_name_are_one():
    with pytest.raises(UserError, match=r"^pruning.Prune: percent=\(10, 20\) and named=False"):
        Prune((10, 20), named=False)


def trained(module):
    """Drawn weights, none of them 0."""
    image = jnp.zeros((1, 32, 32, 3))
    variables = dict(jax.eval_shape(module.init, KEY, image))
    leaves, structure = jax.tree.flatten(variables)
    drawn = np.random.default_rng(0)
    drawn = [jnp.asarray(0.1 + np.abs(drawn.normal(size=x.shape)), x.dtype) for x in leaves]
    variables = jax.tree.unflatten(structure, drawn)
    return Held(variables.pop("params"), variables)


def measured(form, state, model):
    images = Examples(np.zeros((2, 32, 32, 3), np.float32), np.zeros(2, np.int32))
    after = state if form is None else made(form, state)
    subject: Any = Subject(after, model, Subject(state, model))
    size: Any = Size(When(), form)
    _, found = size((), subject, Splits(images, images), KEY)
    assert {name for name, _ in found.rows} == {*size.metrics}
    return [int(found.rows[name, ()].value) for name in size.metrics]


def test_what_lenet_takes():
    """Kernels of 864, 18,432, 294,912 and 1,280 numbers, of 32, 64, 128 and 10 outputs."""
    model = LeNet(num_classes=10)
    state = trained(model)
    kernels, outputs = (864, 18_432, 294_912, 1_280), 32 + 64 + 128 + 10
    numbers, biases = sum(kernels) + outputs, outputs
    shapes = [x.shape for x in jax.tree.leaves(state.params) if x.ndim > 1]
    assert sorted(map(np.prod, shapes)) == sorted(kernels)
    # 30 x 30 places after the first convolution, 13 x 13 after the second, each of which pools.
    flops = 2 * (30 * 30 * 864 + 13 * 13 * 18_432 + 294_912 + 1_280)
    assert measured(None, state, model) == [numbers, 4 * numbers, flops]
    eight = sum(kernels) + 4 * outputs + 4 * biases  # a byte each, a step for each output
    assert measured(Quantise(8), state, model) == [numbers, eight, flops]
    # TFLite leaves the first convolution: 864 numbers are fewer than 1,024.
    tflite = eight + 3 * 864 - 4 * 32
    assert measured(Quantise(8, min_numbers=1024), state, model) == [numbers, tflite, flops]
    assert measured(Cast("float16"), state, model) == [numbers, 2 * numbers, flops]
    gone = round(0.9 * sum(kernels))
    kept, taken, after = measured(Prune((90,), named=False), state, model)
    assert (kept, after) == (numbers - gone, flops)
    # A bit for each weight, and the kept ones: each of four arrays rounded up.
    exact = sum(kernels) / 8 + 4 * (sum(kernels) - gone) + 4 * biases
    assert exact <= taken < exact + 4


def test_statistics_count_as_bytes_and_not_as_parameters():
    model = MobileNetNarrow(num_classes=10)
    state = trained(model)
    numbers, statistics = (
        sum(x.size for x in jax.tree.leaves(own)) for own in (state.params, state.variables)
    )
    kept, taken, _ = measured(None, state, model)
    assert (kept, taken) == (numbers, 4 * (numbers + statistics)) and statistics > 0
    everything = measured(Prune((10,), scope="variables", named=False), state, model)
    assert everything[0] < numbers


def test_a_zero_of_before_is_not_a_pruned_one():
    """Biases that were never trained are held as they were."""
    model = LeNet(num_classes=10)
    state = trained(model)
    params = {
        layer: own | {"bias": jnp.zeros_like(own["bias"])} for layer, own in state.params.items()
    }
    still = measured(Prune((0,), named=False), Held(params), model)
    assert still == measured(None, state, model)


def test_the_form_is_the_one_that_was_made():
    """Held as integers and read back, the weights are those of the transform."""
    state = trained(LeNet(num_classes=10))
    for form in (Quantise(4), Quantise(8, min_numbers=1024)):
        read = compress.dequantise_params(form.held(state.params))
        jax.tree.map(np.testing.assert_array_equal, read, made(form, state).params)


def test_a_net_on_the_grid_stays_as_it_is():
    """Kernels of whole steps, 127 at the most in each channel and a power of two each: 127 s / 127
    is s, k s / s is k, and no bit of a weight or of an output changes."""
    model, drawn = MLP(num_classes=10, width=32), np.random.default_rng(0)
    images = jnp.asarray(drawn.normal(size=(300, 6, 6, 1)), jnp.float32)

    def on_the_grid(shape):
        if len(shape) < 2:
            return jnp.asarray(0.1 * drawn.normal(size=shape), jnp.float32)
        whole = drawn.integers(-127, 128, shape)
        whole[drawn.integers(shape[0], size=shape[1]), np.arange(shape[1])] = 127
        return jnp.asarray(whole * 2.0 ** drawn.integers(-9, -5, shape[1]), jnp.float32)

    shapes = jax.eval_shape(model.init, KEY, images)["params"]
    params = jax.tree.map(lambda x: on_the_grid(x.shape), shapes)
    same = made(Quantise(8), Held(params)).params
    assert tree.digest(same) == tree.digest(params)
    other = made(Quantise(2), Held(params)).params
    base, eight, two = (
        np.asarray(model.apply({"params": p}, images), np.float64) for p in (params, same, other)
    )
    for distance in (functional.jensen_shannon, functional.disagreement):
        assert distance(base, eight) == 0 < distance(base, two)


@pytest.mark.parametrize(
    "forms",
    [
        [Prune((p,), named=False) for p in (10, 30, 50, 70, 90)],
        [Quantise(bits) for bits in (8, 6, 4, 3, 2)],
    ],
    ids=["pruned", "bits"],
)
def test_the_more_is_taken_the_farther_the_function(forms):
    """Of 8 drawn nets. If levels had no order, Page's test would come to 1e-6 once in a million;
    all 8 in order is 1 in 120^8."""
    model, images = MLP(num_classes=10, width=32), np.random.default_rng(0)
    images = jnp.asarray(images.normal(size=(300, 6, 6, 1)), jnp.float32)
    far = []
    for seed in range(8):
        params = model.init(jax.random.key(seed), images)["params"]
        outputs = [model.apply({"params": p}, images) for p in (
            params, made(Prune((0,), named=False), Held(params)).params,
            *(made(form, Held(params)).params for form in forms))]  # fmt: skip
        base, same, *others = (np.asarray(x, np.float64) for x in outputs)
        for distance in (functional.jensen_shannon, functional.disagreement):
            assert distance(base, same) == 0
        far.append([functional.jensen_shannon(base, x) for x in others])
    assert stats.page_trend_test(far).pvalue < 1e-6
