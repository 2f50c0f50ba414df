"""Sharpness of a model on a frozen set: each number against its own formula; what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sharpjax import data, nn
from sharpjax.errors import UserError
from sharpjax.metrics import temperature
from sharpjax.train import planning, state
from sharpjax.train.plan import Subject, When
from sharpjax.train.sharpness import Augmentation, Sharpness, frozen_batch
from tests import plans

N = 32
MEASURE = Sharpness(When(), N, noise_pairs=16, information_examples=3, scaled=True)
MODEL = nn.build("mlp", num_classes=10, width=24)


@pytest.fixture(scope="module")
def splits():
    return data.on_device(data.Images("digits", num_train=64, num_validation=64).load())


@pytest.fixture(scope="module")
def params(splits):
    batch = data.batch(splits.train, np.arange(2))
    found = jax.jit(MODEL.init)(jax.random.key(0), batch["image"])["params"]
    return jax.tree.map(lambda x: x + 0.1, found)  # biases are no zeros


def a_subject(params):
    return Subject(0, (), 0, MODEL, state.fresh(params, {}, (), ()), at=None)


def measured(measure, params, splits):
    _, found = measure((), a_subject(params), splits, jax.random.key(1))
    named = {metric: x for (metric, of), x in found.rows.items() if not of}
    assert set(named) == set(measure.metrics)
    return {name.removeprefix(f"{measure.set_name}/"): x for name, x in named.items()}


@pytest.fixture(scope="module")
def found(splits, params):
    return measured(MEASURE, params, splits)


def outputs(params, batch):
    """Features of the head and logits, in float64."""
    _, seen = MODEL.apply(
        {"params": params}, batch["image"], capture_intermediates=True, mutable="intermediates"
    )
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["head"])
    hidden = seen["intermediates"]["Dense_1"]["__call__"][0]
    features = np.maximum(np.asarray(hidden, np.float64), 0)
    return features, features @ head["kernel"] + head["bias"], head["kernel"]


def flatness(features, logits, kernel):
    """E |f|^2 (sum_s p_s |w_s|^2 - |sum_s p_s w_s|^2), raw and of features over their deviation."""
    p = special.softmax(logits, 1)
    deviation = features.std(0)
    varies = deviation > 0
    for f, w in (
        (features, kernel),
        (features[:, varies] / deviation[varies], kernel[varies] * deviation[varies, None]),
    ):
        spread = p @ (w**2).sum(0) - ((p @ w.T) ** 2).sum(1)
        yield np.mean((f**2).sum(1) * spread)


def test_each_number_is_that_of_its_formula(found, splits, params):
    batch = data.batch(splits.train, np.arange(N))
    features, logits, kernel = outputs(params, batch)
    label = np.asarray(batch["label"])
    log_p = special.log_softmax(logits, 1)[np.arange(N), label]
    raw, normalised = flatness(features, logits, kernel)
    expected = {
        "nll": -log_p.mean(),
        "accuracy": np.mean(logits.argmax(1) == label),
        "mean_p": np.exp(log_p).mean(),
        "head_norm": (kernel**2).sum(),
        "relative_flatness": raw,
        "relative_flatness_normalised": normalised,
        "information_sharpness": np.expm1(-log_p).mean(),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-4), name
    assert found["nll"].standard_error == pytest.approx(log_p.std(ddof=1) / N**0.5, rel=1e-4)
    assert 0.99 < found["information_sharpness/known"].value < 1.001
    assert np.isfinite(found["information_sharpness"].standard_error)

    def loss(w, axis=None):
        p = jax.nn.log_softmax(MODEL.apply({"params": w}, batch["image"]))
        own = jnp.take_along_axis(p, batch["label"][:, None], 1)
        return -jnp.mean(own) if axis is None else -own[:, 0]

    gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient))
    assert found["gradient_norm"].value == pytest.approx(norm, rel=1e-4)
    _, along = jax.jvp(lambda w: loss(w, 0), (params,), (params,))
    assert found["fisher_rao"].value == pytest.approx(np.sqrt(np.mean(along**2)), rel=1e-4)
    # A sphere of radius rho: the slope part is rho |g| / sqrt(P), to within its own draws.
    count = sum(x.size for x in gradient)
    slope = found["noise_sharpness/slope"].value / (0.05 * norm / count**0.5)
    assert 0.4 < slope < 1.9  # a root mean square of 16 normal numbers: each side p < 1e-4
    # The mean is rho^2 tr(H) / (2 P), to second order.
    flat, undo = jax.flatten_util.ravel_pytree(params)
    trace = np.trace(jax.jit(jax.hessian(lambda w: loss(undo(w))))(flat))
    rise = found["noise_sharpness"]
    expected = 0.05**2 * trace / (2 * count)
    assert abs(rise.value - expected) < 6 * rise.standard_error + 0.05 * expected
    assert 0 < found["sam_sharpness"].value < 2 * 0.05 * norm


@pytest.mark.slow
def test_the_hessian_is_measured_where_it_is_asked_for(splits, params):
    """Largest eigenvalue and trace are of one matrix: Gershgorin's bound, and the count of P."""
    found = measured(Sharpness(When(), N, max_products=12, max_probes=4), params, splits)
    trace, count = found["hessian/trace"], sum(x.size for x in jax.tree.leaves(params))
    top = found["hessian/lambda_1"].value
    assert 0 < top and abs(trace.value) < count * top + 6 * trace.standard_error


def test_a_temperature_is_of_the_validation_split(found, splits, params):
    held = np.arange(len(splits.validation.label))
    _, logits, _ = outputs(params, data.batch(splits.validation, held))
    fit = temperature.fit(jnp.asarray(logits, jnp.float32), splits.validation.label)
    assert found["temperature"].value == pytest.approx(fit.temperature.value, rel=1e-4)
    features, logits, kernel = outputs(params, data.batch(splits.train, np.arange(N)))
    t = fit.temperature.value
    for name, value in zip(
        ("relative_flatness", "relative_flatness_normalised"),
        flatness(features / t, logits / t, kernel),
        strict=True,
    ):
        assert found[f"scaled/{name}"].value == pytest.approx(value, rel=1e-3)


def test_a_model_without_mistakes_has_no_temperature(splits, params):
    held = np.arange(len(splits.validation.label))
    _, logits, _ = outputs(params, data.batch(splits.validation, held))
    right = splits.validation._replace(label=jnp.asarray(logits.argmax(1), jnp.int32))
    measure = dataclasses.replace(MEASURE, information_examples=0)
    found = measured(measure, params, splits._replace(validation=right))
    for name in ("temperature", "scaled/nll", "scaled/relative_flatness"):
        assert np.isnan(found[name].value)
    assert np.isfinite(found["relative_flatness"].value)


def test_normalised_logits_do_not_see_their_size(splits, params):
    measure = Sharpness(When(), N, noise_pairs=1, normalised=True)
    larger = {**params, "head": jax.tree.map(lambda x: 7 * x, params["head"])}
    one, other = (measured(measure, p, splits) for p in (params, larger))
    for name in ("nll", "mean_p", "fisher_rao"):
        assert one[name].value == pytest.approx(float(other[name].value), rel=1e-4)
    assert "relative_flatness" not in one and measure.set_name == "train[:32]/normalised"


def test_an_augmented_set_is_frozen(splits):
    index, key = jnp.arange(8, 24), jax.random.key(3)
    plain, fixed, again = (
        frozen_batch(splits, index, how, key)
        for how in (None, Augmentation(1, False), Augmentation(1, False))
    )
    np.testing.assert_array_equal(fixed["image"], again["image"])
    np.testing.assert_array_equal(plain["label"], fixed["label"])
    np.testing.assert_array_equal(plain["image"], data.batch(splits.train, index)["image"])
    assert np.mean(np.any(plain["image"] != fixed["image"], (1, 2, 3))) > 0.5  # of 16, 8 / 9 each
    assert Sharpness(When(), 16, 8, Augmentation()).set_name == "train[8:24]/augmented"


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="normalised logits have one scale"):
        Sharpness(When(), normalised=True, scaled=True)
    plan = plans.a_plan(plans.an_arm("a", evaluators=[Sharpness(When(), 8, scaled=True)]))
    with pytest.raises(UserError, match="'a': its data have no split 'validation'"):
        planning.check(plan)
