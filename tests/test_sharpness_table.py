"""The table of all measures, of a linear model of three classes: against the dense Hessian and the
softmax of its logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry
from sharpjax.errors import UserError
from sharpjax.geometry import Status, composed, measure_all
from sharpjax.geometry.sharpness import table as module
from sharpjax.losses import CrossEntropy, normalised_logits, tempered_logits

KEY = jax.random.key(0)
HOW: Any = dict(head="kernel", max_products=12, max_pairs=16, num_steps=10)


def logits(params, batch):
    return batch["x"] @ params["kernel"]


def plain(params, batch):
    return CrossEntropy()(logits(params, batch), batch)


def values(table):
    return {name: float(np.asarray(found.value)) for name, found in table.estimates().items()}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(3, 4)), "label": np.array([0, 2, 1], np.int32)}
    return {"kernel": rng.normal(size=(4, 3))}, batch


@pytest.fixture(scope="module")
def table(problem):
    with jax.enable_x64(True):
        return measure_all(composed(logits, CrossEntropy()), *problem, key=KEY, **HOW)


def test_values(problem, table, x64):
    params, batch = problem
    given = params["kernel"].ravel(), params, batch
    dense = jax.hessian(lambda w: plain({"kernel": w.reshape(4, 3)}, batch))(given[0])
    value = values(table)
    assert table.left_out == () and geometry.check(table) is table
    p = jax.nn.softmax(logits(params, batch))[np.arange(3), batch["label"]]
    np.testing.assert_allclose(value["mean_p"], p.mean(), rtol=1e-12)
    np.testing.assert_allclose(value["loss"], -jnp.log(p).mean(), rtol=1e-12)
    np.testing.assert_allclose(value["weight_norm"], np.linalg.norm(given[0]), rtol=1e-12)
    slope = jax.grad(plain)(params, batch)["kernel"]
    np.testing.assert_allclose(value["gradient_norm"], jnp.linalg.norm(slope), rtol=1e-12)
    np.testing.assert_allclose(value["lambda_1"], jnp.linalg.eigvalsh(dense)[-1], rtol=1e-3)
    off = abs(value["trace"] - jnp.trace(dense))
    assert off <= 5 * np.asarray(table["trace"].estimate.standard_error) + 1e-12
    # The Hessian of a linear model is its Fisher matrix, and the examples are as many as needed.
    np.testing.assert_allclose(value["fisher_rao"] ** 2, given[0] @ dense @ given[0], rtol=1e-9)
    np.testing.assert_allclose(value["information_sharpness"], jnp.mean((1 - p) / p), rtol=1e-6)
    assert value["relative_flatness"] > 0 and value["relative_flatness_normalised"] > 0
    # A convex loss: on the sphere it rises on average, less than at the worst.
    for prefix, worst in (("", "worst_case_sharpness"), ("adaptive_", "adaptive_sharpness")):
        assert 0 < value[f"{prefix}average_sharpness"] < value[worst]
        assert value[f"{prefix}average_slope"] > 0
    assert 0 < value["sam_sharpness"] <= value["worst_case_sharpness"]
    assert table["worst_case_sharpness"].estimate.num_evaluations == 11


def test_the_table(table):
    lines = str(table).splitlines()
    assert lines[0] == "sharpness of 12 parameters on 3 examples, rho=0.05, adaptive_rho=0.5"
    assert [line.split()[0] for line in lines[2:]] == list(table.estimates())
    assert max(map(len, lines)) <= 100
    (worst,) = [line for line in lines if "worst_case_sharpness" in line]
    assert worst.endswith("ok             11 gradients (a lower bound)")
    two = jax.tree.map(lambda x: jnp.stack([x, x]), table)
    assert two.status.tolist() == [Status.OK, Status.OK]
    with pytest.raises(UserError, match="this is a population"):
        str(two)


def test_what_does_not_apply_is_named(problem, table, x64):
    found = measure_all(plain, *problem, key=KEY, **{**HOW, "head": None})
    left_out = dict(found.left_out)
    needs = ("mean_p", "fisher_rao", "relative_flatness", "information_sharpness")
    assert {*found.estimates(), *left_out} == set(table.estimates()) and {*needs} <= {*left_out}
    assert "left out: the loss has no parts" in str(found)
    assert values(found)["loss"] == values(table)["loss"]


def test_models_at_their_own_temperature_and_at_one_scale(problem, x64):
    """Tempered and normalised logits compose with the table. Divided by 2 are logits of half the
    kernel; divided by their length they do not know of a factor on it."""
    params, batch = problem
    half = {"kernel": params["kernel"] / 2}

    def measured(model_fn, params):
        loss = composed(model_fn, CrossEntropy())
        return values(measure_all(loss, params, batch, key=KEY, **{**HOW, "head": None}))

    tempered = measured(tempered_logits(logits, 2.0), params)
    of_half = measured(logits, half)
    same = ("loss", "mean_p", "fisher_rao", "information_sharpness", "adaptive_sharpness")
    for name in same:
        np.testing.assert_allclose(tempered[name], of_half[name], rtol=1e-8)
    np.testing.assert_allclose(4 * tempered["lambda_1"], of_half["lambda_1"], rtol=2e-3)
    long, short = (measured(normalised_logits(logits), w) for w in (params, half))
    for name in ("loss", "mean_p", "adaptive_sharpness", "adaptive_average_sharpness"):
        np.testing.assert_allclose(long[name], short[name], rtol=1e-8)


def test_a_kernel_of_zeros(problem):
    """A head as it often starts: no weight has a size, so nothing rises in units of the weights.
    Every class has the share 1 / 3."""
    params, batch = problem
    batch = {"x": jnp.asarray(batch["x"], jnp.float32), "label": batch["label"]}
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), params)
    found = measure_all(composed(logits, CrossEntropy()), zeros, batch, key=KEY, **HOW)
    assert geometry.check(found) is found and found.left_out == ()
    value, eps = values(found), float(np.finfo(np.float32).eps)
    for name in ("average_sharpness", "average_slope", "sharpness"):
        assert value[f"adaptive_{name}"] == 0
    assert value["weight_norm"] == value["fisher_rao"] == 0
    np.testing.assert_allclose(value["mean_p"], 1 / 3, rtol=4 * eps)
    assert value["worst_case_sharpness"] > value["average_sharpness"] > 0


def test_much_information_is_left_out(problem, monkeypatch, x64):
    """And named, with what it would take."""
    monkeypatch.setattr(module, "_MOST_OUTPUTS", 8)
    found = measure_all(composed(logits, CrossEntropy()), *problem, key=KEY, **HOW)
    assert "a matrix of 9 numbers square" in dict(found.left_out)["information_sharpness"]
    assert values(found)["fisher_rao"] > 0


def test_refuses(problem, x64):
    loss = composed(logits, CrossEntropy())
    with pytest.raises(UserError, match="measure_all: adaptive_rho: rho is a radius"):
        measure_all(loss, *problem, key=KEY, adaptive_rho=-1.0)
    with pytest.raises(UserError, match="measure_all: rho is a radius"):
        measure_all(loss, *problem, key=KEY, rho=-1.0)
    with pytest.raises(UserError, match="^measure_all: max_products must be .* >= 4, got 3"):
        measure_all(loss, *problem, key=KEY, **{**HOW, "max_products": 3})
    with pytest.raises(UserError, match="no leaf is named 'body'"):
        measure_all(loss, *problem, key=KEY, **{**HOW, "head": "body"})
