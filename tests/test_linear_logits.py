"""Cross-entropy over many classes: the dense numbers, without an array of [tokens, classes]."""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpjax import geometry, tree
from sharpjax.errors import UserError
from sharpjax.geometry import composed
from sharpjax.geometry.loss.outer_check import check_outer
from sharpjax.losses import CrossEntropy, LinearLogits, cross_entropy

ROWS, WIDTH, CLASSES = 14, 5, 7


def problem(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "hidden": jnp.asarray(rng.normal(size=(3, WIDTH))),
        "head": jnp.asarray(scale * rng.normal(size=(WIDTH, CLASSES))),
        "bias": jnp.asarray(scale * rng.normal(size=CLASSES)),
    }
    label = jnp.asarray(rng.integers(CLASSES, size=ROWS), jnp.int32)
    batch = {"x": jnp.asarray(rng.normal(size=(ROWS, 3))), "label": label}
    return params, batch, jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)


def features(params, batch):
    return jnp.tanh(batch["x"] @ params["hidden"])


def dense_model(params, batch):
    return features(params, batch) @ params["head"] + params["bias"][None]


def model(block, params, batch):
    return LinearLogits(features(params, batch), params["head"], params["bias"], block)


def optax_loss(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def streamed(block, outer=None, **parts):
    return composed(functools.partial(model, block), outer or CrossEntropy(), **parts)


def close(found, expected, rtol=1e-12, atol=1e-13):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(check, found, expected)


@jax.jit
def products(operator, v):
    return operator.linearize()(v)


# Blocks that divide the rows, that do not, and one of all.
@pytest.mark.parametrize(("block", "microbatch_size"), [(4, None), (3, 7), (None, None)])
def test_it_is_the_dense_loss(block, microbatch_size, x64, strict):
    params, batch, v = problem()
    dense, loss = composed(dense_model, optax_loss), streamed(block)
    close(*(jax.jit(jax.value_and_grad(f))(params, batch) for f in (loss, dense)))
    size = {"microbatch_size": microbatch_size}
    close(*(geometry.hessian(f, params, batch, **size) @ v for f in (loss, dense)))
    expected = geometry.gauss_newton(dense, params, batch) @ v
    close(geometry.gauss_newton(loss, params, batch, **size) @ v, expected)
    if block == 4:
        close(geometry.fisher(loss, params, batch) @ v, expected)


def test_products_by_reverse_over_reverse(x64):
    params, batch, v = problem()
    for make in (geometry.hessian, geometry.gauss_newton):
        dense = make(composed(dense_model, optax_loss), params, batch)
        close(make(streamed(4), params, batch, product="reverse") @ v, dense @ v)


@pytest.fixture(params=[True, False], ids=["large", "small"])
def is_large(request, monkeypatch):
    if request.param:
        module = importlib.import_module("sharpjax.losses.cross_entropy")  # its function hides it
        monkeypatch.setattr(module, "BLOCK", 0)
    return request.param


def test_the_closed_form(x64, is_large):
    """H u = p * u - p (p . u) for each row, of an array of logits, too."""
    rng = np.random.default_rng(1)
    z, u = (jnp.asarray(rng.normal(size=(ROWS, CLASSES))) for _ in range(2))
    batch = {"label": problem()[1]["label"]}
    p = jax.nn.softmax(z)
    slope = (p - jax.nn.one_hot(batch["label"], CLASSES)) / ROWS
    found, along = jax.jvp(lambda z: jax.grad(CrossEntropy())(z, batch), (z,), (u,))
    close(found, slope)
    close(along, p * (u - jnp.sum(p * u, 1, keepdims=True)) / ROWS)


def test_a_linearised_product_keeps_the_probabilities_alone(is_large):
    z, label = jnp.zeros((ROWS, CLASSES)), jnp.zeros(ROWS, jnp.int32)
    _, along = jax.linearize(lambda z: jax.grad(CrossEntropy())(z, {"label": label}), z)
    assert [x.shape for x in jax.tree.leaves(along)].count(z.shape) == 1 + 2 * (not is_large)


@pytest.mark.parametrize("make", [geometry.hessian, geometry.gauss_newton])
def test_nothing_of_tokens_by_classes_is_whole(make):
    rows, classes, width = 1024, 4096, 16
    whole = 4 * rows * classes
    shapes = {"hidden": (3, width), "head": (width, classes), "bias": (classes,)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    batch = {
        "x": jax.ShapeDtypeStruct((rows, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    kind = type(make(streamed(4), *problem()[:2]))

    @jax.jit
    def linearize(params, batch):
        return kind(streamed(64), params, batch).linearize()

    def extra(fn, *args):
        memory = fn.lower(*args).compile().memory_analysis()
        return memory.temp_size_in_bytes

    product = jax.eval_shape(linearize, params, batch)
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(product))
    head = 4 * width * classes
    assert kept < 4 * head + 8 * rows * width * 4  # parameters and features, a few times
    # Six blocks of 64 rows, and the head and its products a few times.
    assert extra(jax.jit(lambda p, v: p(v)), product, params) < 6 * whole / 16 + 8 * head
    assert extra(linearize, params, batch) < 6 * whole / 16 + 8 * head


def float32(scale=1.0):
    params, batch, v = jax.tree.map(jnp.float32, problem(scale))
    return params, batch | {"label": batch["label"].astype(jnp.int32)}, v


def test_extreme_logits_stay_finite():
    params, batch, v = float32(scale=1e4)
    loss, dense = streamed(4), composed(dense_model, optax_loss)
    for make in (geometry.hessian, geometry.gauss_newton):
        found, expected = (make(f, params, batch) @ v for f in (loss, dense))
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found))
        size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
        # Logits of 1e4 carry 1e-3 of rounding in float32, and so do probabilities.
        close(found, expected, rtol=0, atol=2e-2 * size + 1e-6)


@pytest.mark.parametrize("form", ["array", "factors"])
def test_rows_that_do_not_count(form, x64):
    params, batch, v = problem()
    mask = jnp.arange(ROWS) % 3 > 0
    unknown = batch | {"label": jnp.where(mask, batch["label"], -100)}

    def loss(head, h, batch, mask):
        logits = LinearLogits(h, *head, block_rows=4)
        logits = logits if form == "factors" else logits.multiply_out()
        return jnp.sum(cross_entropy(logits, batch["label"], where=mask)) / jnp.sum(mask)

    h, head = features(params, batch), (params["head"], params["bias"])
    some = jax.tree.map(lambda x: x[mask], (h, batch))
    h = jnp.where(mask[:, None], h, jnp.nan)
    value, slopes = jax.value_and_grad(loss, (0, 1))(head, h, unknown, mask)
    expected, other = jax.value_and_grad(loss, (0, 1))(head, *some, jnp.ones(sum(mask), bool))
    close(value, expected)
    if form == "factors":  # of an array, 0 * NaN in the product before
        close(slopes[0], other[0])
        close(slopes[1][mask], other[1])
        assert not slopes[1][~mask].any()


def test_declared_weights(x64):
    params, batch, v = problem()
    weight = jnp.asarray(np.random.default_rng(2).uniform(size=ROWS)).at[3].set(0)
    batch = batch | {"weight": weight}

    def outer(logits, batch):
        each = cross_entropy(logits, batch["label"], where=batch["weight"] > 0)
        return jnp.sum(batch["weight"] * each) / jnp.sum(batch["weight"])

    weights = {"example_weight": lambda batch: batch["weight"]}
    loss = streamed(4, outer, **weights)
    dense = composed(dense_model, outer, **weights)
    expected = geometry.gauss_newton(dense, params, batch) @ v
    for size in (None, 7):
        close(geometry.gauss_newton(loss, params, batch, microbatch_size=size) @ v, expected)
    with pytest.raises(UserError, match="outer_loss is not the mean over the examples"):
        geometry.gauss_newton(streamed(4, outer), params, batch)


def test_a_sum_is_refused(x64):
    params, batch, _ = problem()

    def outer(logits, batch):
        return jnp.sum(cross_entropy(logits, batch["label"]))

    with pytest.raises(UserError, match="outer_loss is a sum over the examples"):
        geometry.gauss_newton(streamed(4, outer), params, batch)


def test_fishers_by_labels_and_exact_traces_multiply_the_logits_out(x64, key):
    params, batch, v = problem()
    loss, dense = streamed(4), composed(dense_model, CrossEntropy())
    each: tuple[dict[str, Any], ...] = ({"labels": "observed"}, {"key": key})
    for options in each:
        close(*(geometry.fisher(f, params, batch, **options) @ v for f in (loss, dense)))
    close(*(geometry.empirical_fisher(f, params, batch) @ v for f in (loss, dense)))
    found, expected = (
        geometry.trace(geometry.hessian(f, params, batch), method="exact", key=key)
        for f in (loss, dense)
    )
    close(found.value, expected.value)
    close(found.standard_error, expected.standard_error)


def test_labels_that_are_no_class_are_nan():
    params, batch, v = float32()
    batch["label"] = batch["label"].at[2].set(CLASSES)
    for make in (geometry.hessian, geometry.gauss_newton):
        assert jnp.isnan(tree.norm(make(streamed(4), params, batch) @ v))


def test_rows_of_any_shape_in_lanes(x64):
    """A population, and tokens of sequences."""
    params, batch, _ = problem()
    h, label = features(params, batch).reshape(2, 7, WIDTH), batch["label"].reshape(2, 7)

    def losses(head):
        return cross_entropy(LinearLogits(h, head, block_rows=4), label)

    heads = jnp.stack([params["head"], -params["head"]])
    logits = jnp.stack([h @ head for head in heads])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.stack([label] * 2))
    close(jax.jit(jax.vmap(losses))(heads), expected)


def test_narrow_types_are_computed_in_float32():
    params, batch, _ = problem()
    h, w = (x.astype(jnp.bfloat16) for x in (features(params, batch), params["head"]))
    logits = h.astype(jnp.float32) @ w.astype(jnp.float32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    found, slope = jax.value_and_grad(
        lambda w: cross_entropy(LinearLogits(h, w, block_rows=4), batch["label"]).sum()
    )(w)
    close(found, expected.sum(), rtol=1e-6)
    assert slope.dtype == jnp.bfloat16
    params, batch, v = float32()
    low = geometry.gauss_newton(streamed(4), params, batch, precision="bfloat16") @ v
    high = geometry.gauss_newton(streamed(4), params, batch) @ v
    off = tree.norm(tree.add_scaled(low, -1, high)) / tree.norm(high)
    assert 1e-4 < off < 5e-2


def test_shards_are_not_gathered():
    """Tokens on one axis of the mesh, classes on the other."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=auto)
    rng = np.random.default_rng(0)
    shapes = {"hidden": (3, WIDTH), "head": (WIDTH, 8), "bias": (8,)}
    params, v = (
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        for _ in range(2)
    )
    batch = {
        "x": jnp.asarray(rng.normal(size=(64, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(8, size=64), jnp.int32),
    }
    expected = geometry.gauss_newton(composed(dense_model, optax_loss), params, batch) @ v

    def lie(specs, arrays):
        return {k: jax.device_put(x, jax.NamedSharding(mesh, specs[k])) for k, x in arrays.items()}

    batch = lie({"x": jax.P("data"), "label": jax.P("data")}, batch)
    lies = {"hidden": jax.P(), "head": jax.P(None, "model"), "bias": jax.P("model")}
    params, v = lie(lies, params), lie(lies, v)
    operator = geometry.gauss_newton(streamed(16), params, batch)
    text = products.lower(operator, v).compile().as_text() or ""
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    close(products(operator, v), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": jnp.ones((WIDTH + 1, CLASSES))}, r"features \[..., d\], a kernel \[d, K\]"),
        ({"bias": jnp.ones(2)}, r"a bias \[K\] or None; got .*\(2,\)"),
        ({"block_rows": 0}, "block_rows of LinearLogits must be a whole number >= 1"),
        ({"kernel": jnp.ones((WIDTH, 1)), "bias": None}, "are of one class"),
        ({"features": jnp.ones((2, 7, WIDTH))}, r"features.reshape\(-1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    logits = LinearLogits(jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, CLASSES)), jnp.ones(CLASSES))
    with pytest.raises(UserError, match=message):
        CrossEntropy()(dataclasses.replace(logits, **change), problem()[1])


def test_labels_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"labels must have the shape .* \(3,\); got \(3, 1\)"):
        cross_entropy(jnp.ones((3, 2)), jnp.zeros((3, 1), int))


def test_few_sequences_are_tried():
    """The check of an outer loss makes 2^22 numbers at the most, where 64 sequences have 2^25."""
    tokens, classes, seen = 512, 1024, []

    def outer(logits, batch):
        seen.append(logits.shape)
        return CrossEntropy()(logits, batch)

    loss = composed(dense_model, outer)
    batch = {"label": jnp.zeros((64, tokens), jnp.int32)}
    logits = jax.ShapeDtypeStruct((64 * tokens, classes), jnp.float32)
    assert check_outer("test", loss, None, batch, logits) is None
    assert max(seen) == (8 * tokens, classes)
    seen.clear()
    factors = {"features": (64 * tokens, 16), "kernel": (16, classes)}
    shapes = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in factors.items()}

    def implicit(logits, batch):
        seen.append((*logits.features.shape, *logits.kernel.shape))
        return CrossEntropy()(logits, batch)

    loss, logits = composed(model, implicit), LinearLogits(**shapes)
    assert check_outer("test", loss, None, batch, logits) is None
    assert max(seen) == (64 * tokens, 8, 8, 64)


def test_measures_take_them(x64):
    params, batch, _ = problem()
    found, expected = (
        (
            geometry.information_sharpness(loss, params, batch)[:2],
            geometry.relative_flatness(loss, params, batch, head="head"),
            geometry.fisher_rao(loss, params, batch),
        )
        for loss in (streamed(4), composed(dense_model, CrossEntropy()))
    )
    close(found, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int16])
def test_labels_of_narrow_types(dtype):
    labels, logits = jnp.array([0, 100, 2]), jnp.zeros((3, jnp.iinfo(dtype).max + 1))
    found = cross_entropy(logits, labels.astype(dtype))
    np.testing.assert_array_equal(found, cross_entropy(logits, labels))
    factors = LinearLogits(jnp.ones((3, 2)), jnp.zeros((2, logits.shape[1])), block_rows=2)
    np.testing.assert_allclose(cross_entropy(factors, labels.astype(dtype)), found, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (jnp.ones((3, 4)), jnp.zeros(3), "integers, got float"),
        (LinearLogits(jnp.eye(3), jnp.ones((3, 4))), jnp.zeros(3), "integers, got float"),
        (jnp.float32(1), jnp.int32(0), "got one number"),
    ],
)
def test_no_labels_and_no_logits(logits, labels, says):
    with pytest.raises(UserError, match=says):
        cross_entropy(logits, labels)
