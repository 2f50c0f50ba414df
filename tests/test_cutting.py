"""Cut batches: right where the loss is the mean of its parts or says its weights, else refused."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import geometry, loops, tree
from sharpjax.errors import UserError
from sharpjax.geometry import Status, averaged, composed, hessian, hvp
from sharpjax.geometry.operators import averaging
from sharpjax.geometry.operators.algebra import linearize
from sharpjax.losses import CrossEntropy
from tests.problems import dense, flat

COUNT, CLASSES, TOKENS = 24, 3, 4


def problem(seed=0, dtype: Any = np.float64):
    """A net of 45 parameters; of 24 examples the last third is masked, and has no label."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = {"in": draw(5, 6), "shift": draw(6), "out": draw(6, CLASSES) / 2}
    lengths = rng.integers(1, TOKENS + 1, COUNT)
    lengths[0], lengths[-1] = 1, TOKENS
    batch = {
        "x": draw(COUNT, 5),
        "label": jnp.asarray(rng.integers(0, CLASSES, COUNT), jnp.int32),
        "mask": jnp.asarray(np.arange(COUNT) < 2 * COUNT // 3, dtype),
        "some": jnp.asarray(rng.permutation(np.arange(COUNT) % 2), dtype),
        "tokens": jnp.asarray(rng.integers(0, CLASSES, (COUNT, TOKENS)), jnp.int32),
        "there": jnp.asarray(np.arange(TOKENS) < np.expand_dims(lengths, 1), dtype),
    }
    return params, batch


def model(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + jnp.expand_dims(params["shift"], 0))
    return hidden @ params["out"]


def each(outputs, batch):
    picked = jnp.take_along_axis(outputs, jnp.expand_dims(batch["label"], 1), 1)[:, 0]
    return jax.nn.logsumexp(outputs, axis=1) - picked


def mean(outputs, batch):
    return jnp.mean(each(outputs, batch))


def weighted(weight, outputs, batch):
    w = weight(batch)
    return jnp.sum(w * each(outputs, batch)) / jnp.sum(w)


def mask(batch):
    return batch["mask"]


def some(batch):
    return batch["some"]


def of_class(batch):
    return jnp.asarray([0.3, 3.0, 8.0], batch["x"].dtype)[batch["label"]]


def num_tokens(batch):
    return jnp.sum(batch["there"], axis=1)


def per_token(outputs, batch):
    log_p = jax.nn.log_softmax(outputs)
    picked = jnp.take_along_axis(log_p, batch["tokens"], 1)
    return -jnp.sum(picked * batch["there"]) / jnp.sum(batch["there"])


def per_sequence(outputs, batch):
    log_p = jax.nn.log_softmax(outputs)
    picked = jnp.take_along_axis(log_p, batch["tokens"], 1)
    return -jnp.mean(jnp.sum(picked * batch["there"], axis=1) / num_tokens(batch))


def summed(outputs, batch):
    return jnp.sum(each(outputs, batch))


def log_mean_exp(outputs, batch):
    return jax.nn.logsumexp(each(outputs, batch)) - jnp.log(len(batch["x"]))


def contrastive(outputs, batch):
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(outputs @ outputs.T)))


def decay(params):
    return 100 * tree.vdot(params, params)


def normalized(params, batch):
    """BatchNorm in training mode."""
    hidden = batch["x"] @ params["in"]
    shift = jnp.mean(hidden, axis=0, keepdims=True)
    scale = jnp.sqrt(jnp.mean(jnp.square(hidden - shift), axis=0, keepdims=True) + 1e-5)
    hidden = jnp.tanh((hidden - shift) / scale + jnp.expand_dims(params["shift"], 0))
    return hidden @ params["out"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, and the weights that it has."""

    model: Any
    outer: Any
    weight: Any = None

    def __call__(self, params, batch):
        return self.outer(self.model(params, batch), batch)

    def declared(self, **options):
        return composed(self.model, self.outer, example_weight=self.weight, **options)


def of_weight(weight):
    return Case(model, functools.partial(weighted, weight), weight)


WEIGHTED = {
    "mask at the end": of_weight(mask),
    "mask": of_weight(some),
    "class weights": of_weight(of_class),
    "token counts": Case(model, per_token, num_tokens),
}
MIXING = {
    "sum": Case(model, summed),
    "log-mean-exp": Case(model, log_mean_exp),
    "in-batch negatives": Case(model, contrastive),
    "BatchNorm in training mode": Case(normalized, mean),
}
SOUND = {
    "mean": Case(model, mean),
    "mean of sequences": Case(model, per_sequence),
    "declared mean": Case(model, mean).declared(),
    "declared mean, decay": Case(model, mean).declared(regularizer=decay),
    "decay": lambda params, batch: mean(model(params, batch), batch) + decay(params),
    "tiny": lambda params, batch: 1e-20 * mean(model(params, batch), batch),
    "zero": lambda params, batch: jnp.mean(jax.nn.relu(-9 - jnp.square(model(params, batch)))),
    "one value": lambda params, batch: jnp.mean(jnp.sum(params["in"] ** 2) + 0 * batch["x"]),
}


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def rows(batch, first, end):
    return jax.tree.map(lambda x: x[first:end], batch)


def parts(batch):
    return [rows(batch, 0, 10), rows(batch, 10, 20), rows(batch, 20, COUNT)]


def of_batches(source, **options):
    def make(loss, params, batch):
        return averaged(functools.partial(hessian, loss, params), source(batch), **options)

    return make


OPERATORS = {
    **{
        f"hessian, {size}": functools.partial(hessian, microbatch_size=size)
        for size in (1, 2, 4, 12)
    },
    "list": of_batches(parts),
    "list, nothing kept": of_batches(parts, cache_bytes=0),
    "loader": of_batches(lambda batch: Loader(parts(batch))),
    "function": of_batches(lambda batch: lambda: iter(parts(batch)), cache_bytes=0),
    "arrays": of_batches(lambda batch: batch, batch_size=7),
    "single examples": of_batches(lambda batch: batch, batch_size=1),
}


# What the issue was.


def test_a_masked_loss_is_refused_or_right(key):
    """Undeclared, the largest eigenvalue was 143.18 with microbatches of 3, and NaN with 2."""
    x, m = jnp.arange(1.0, 13.0).reshape(6, 2), jnp.array([1.0, 1, 1, 1, 0, 0])

    def masked(outputs, batch):
        return jnp.sum(batch[1] * outputs**2) / jnp.sum(batch[1])

    def loss(w, batch):
        return masked(batch[0] @ w, batch)

    w, batch = jnp.ones(2), (x, m)
    declared = composed(lambda w, batch: batch[0] @ w, masked, example_weight=lambda b: b[1])
    right = 2 * np.linalg.eigvalsh(np.asarray(x[:4].T @ x[:4]) / 4)[-1]
    assert right == pytest.approx(101.80, abs=0.01)
    for size in (1, 2, 3):
        with pytest.raises(UserError, match=f"hessian: .*microbatch_size={size}.*example_weight"):
            hessian(loss, w, batch, microbatch_size=size)
        found = geometry.top_eigenpairs(hessian(declared, w, batch, microbatch_size=size), key=key)
        assert found.values[0] == pytest.approx(right, rel=1e-5)
    for whole in (hessian(loss, w, batch), hessian(loss, w, batch, microbatch_size=6)):
        assert geometry.top_eigenpairs(whole, key=key).values[0] == pytest.approx(right, rel=1e-5)


# Weights make it right wherever a batch is cut.


@functools.cache
def declared(name):
    """A loss, a problem and the dense Hessian; call it in float64."""
    params, batch = problem()
    loss = WEIGHTED[name].declared(regularizer=decay)
    return loss, params, batch, dense(loss, params, batch)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("way", OPERATORS)
def test_products_of_weighted_means(x64, name, way):
    loss, params, batch, expected = declared(name)
    product = linearize(OPERATORS[way](loss, params, batch))
    v = tree.random_normal(jax.random.key(1), params)
    np.testing.assert_allclose(flat(product(v)), expected @ flat(v), rtol=1e-7)


@pytest.mark.parametrize("name", ["mask at the end", "token counts"])
def test_weighted_means_inside_a_trace(x64, name):
    loss, params, batch, expected = declared(name)
    v = tree.random_normal(jax.random.key(1), params)

    @jax.jit
    def products(params, v):
        ways = ("hessian, 4", "list", "arrays")
        return [linearize(OPERATORS[way](loss, params, batch))(v) for way in ways]

    for found in products(params, v):
        np.testing.assert_allclose(flat(found), expected @ flat(v), rtol=1e-7)


def test_other_measures_of_weighted_means(x64, key):
    params, batch = problem()
    loss = WEIGHTED["mask at the end"].declared()
    v = tree.random_normal(key, params)
    measures = {
        "hvp": lambda **o: hvp(loss, params, batch, v, **o),
        "along": lambda **o: geometry.directional_curvature(loss, params, batch, **o),
        "sam": lambda **o: geometry.sam_sharpness(loss, params, batch, rho=0.1, **o),
        "worst": lambda **o: geometry.worst_case_sharpness(
            *(loss, params, batch), key=key, rho=0.1, num_steps=4, **o
        ),
    }
    for name, measure in measures.items():
        found, expected = measure(microbatch_size=4), measure()
        # The error of a rise is some 1e-15, and rounding decides its digits.
        kwargs = {"rtol": 1e-9, "atol": 1e-14, "err_msg": name}
        np.testing.assert_allclose(flat(found), flat(expected), **kwargs)


def test_chunks_of_m_sharpness_have_weights(x64, key):
    """Two chunks count 8 and 2 examples, the third none."""
    params, batch = problem()
    loss = WEIGHTED["mask at the end"].declared()
    batch = batch | {"mask": jnp.asarray(np.arange(COUNT) < 10, jnp.float64)}
    ball: Any = {"key": key, "rho": 0.1, "num_steps": 3}
    found = geometry.worst_case_sharpness(loss, params, batch, m=8, **ball)
    one, two = (
        geometry.worst_case_sharpness(loss, params, rows(batch, i, i + 8), **ball) for i in (0, 8)
    )
    assert found.status == Status.OK
    np.testing.assert_allclose(found.value, 0.8 * one.value + 0.2 * two.value, rtol=1e-9)
    np.testing.assert_allclose(found.loss, loss(params, batch), rtol=1e-9)


def test_parts_without_weight_do_not_count(x64):
    """Nor where nothing in them is finite; where no part has any, there is no mean."""
    params, batch = problem()
    loss = WEIGHTED["mask at the end"].declared()
    keep = batch["mask"] > 0
    broken = batch | {"x": jnp.where(jnp.expand_dims(keep, 1), batch["x"], jnp.nan)}
    kept = rows(batch, 0, 2 * COUNT // 3)
    v = tree.random_normal(jax.random.key(1), params)
    expected = dense(loss, params, kept) @ flat(v)
    operators = [
        hessian(loss, params, broken, microbatch_size=4),
        averaged(
            functools.partial(hessian, loss, params),
            [rows(broken, 0, 16), rows(broken, 16, COUNT)],
        ),
    ]
    for operator in operators:
        np.testing.assert_allclose(flat(linearize(operator)(v)), expected, rtol=1e-7)
    nothing = batch | {"mask": jnp.zeros(COUNT)}
    assert np.isnan(flat(hvp(loss, params, nothing, v, microbatch_size=4))).all()


def test_weighted_means_over_chunks():
    chunks, weights = jnp.arange(8.0).reshape(4, 2), jnp.array([1.0, 0.0, 2.0, 1.0])
    for fn in (jnp.multiply, _convolved):
        found = loops.mean_over_chunks(fn, jnp.float32(2), chunks, weights)
        terms = [fn(jnp.float32(2), chunk) for chunk in chunks]
        np.testing.assert_allclose(found, (terms[0] + 2 * terms[2] + terms[3]) / 4, rtol=1e-6)


def _convolved(factor, chunk):
    return factor * jnp.convolve(chunk, jnp.ones(3))


# Else it is refused.


@pytest.mark.parametrize("name", WEIGHTED | MIXING)
@pytest.mark.parametrize("way", OPERATORS)
def test_what_is_no_mean_is_refused(name, way):
    params, batch = problem(dtype=np.float32)
    loss = (WEIGHTED | MIXING)[name]
    caller = way.split(",")[0] if way.startswith("hessian") else "averaged"
    with pytest.raises(UserError, match=f"{caller}: the loss is not the mean of its parts"):
        OPERATORS[way](loss, params, batch)


@pytest.mark.parametrize("name", ["mask", "sum", "in-batch negatives"])
def test_every_function_that_cuts_names_itself(name, key):
    params, batch = problem(dtype=np.float32)
    loss = (WEIGHTED | MIXING)[name]
    ball = {"key": key, "rho": 0.1}
    calls = {
        "hvp": lambda: hvp(loss, params, batch, params, microbatch_size=4),
        "sam_sharpness": lambda: geometry.sam_sharpness(
            loss, params, batch, rho=0.1, microbatch_size=4
        ),
        "directional_curvature": lambda: geometry.directional_curvature(
            loss, params, batch, microbatch_size=4
        ),
        "directional_sharpness": lambda: geometry.directional_sharpness(
            loss, params, batch, params, microbatch_size=4
        ),
        "critical_sharpness": lambda: geometry.critical_sharpness(
            loss, params, batch, params, microbatch_size=4
        ),
        "batch_sharpness": lambda: geometry.batch_sharpness(
            loss, params, batch, batch_size=12, key=key, microbatch_size=4
        ),
        "local_learning_coefficient": lambda: geometry.local_learning_coefficient(
            loss, params, batch, key=key, step_size=0.1, localization=1.0, batch_size=4
        ),
        "worst_case_sharpness": lambda: geometry.worst_case_sharpness(
            loss, params, batch, microbatch_size=4, **ball
        ),
        "adaptive_sharpness": lambda: geometry.adaptive_sharpness(
            loss, params, batch, m=12, microbatch_size=4, **ball
        ),
    }
    for caller, call in calls.items():
        with pytest.raises(UserError, match=f"{caller}: .*example_weight.*take the mean"):
            call()
    # The chunks of m-sharpness are what it is a mean over.
    geometry.adaptive_sharpness(loss, params, batch, m=12, num_steps=1, **ball)


@pytest.mark.parametrize(
    "name", ["token counts", "sum", "in-batch negatives", "BatchNorm in training mode"]
)
def test_gauss_newton_and_fisher_matrices_are_refused(name):
    """Whose outer loss may be sound, while the model mixes; empirical ones, cut or not."""
    params, batch = problem(dtype=np.float32)
    case = (WEIGHTED | MIXING)[name]
    with pytest.raises(UserError, match="empirical_fisher: the loss is not the mean of its parts"):
        geometry.empirical_fisher(case, params, batch)
    if case.model is model:  # the outer loss is refused, cut or not
        return
    loss = composed(case.model, CrossEntropy())
    geometry.gauss_newton(loss, params, batch)
    for make in (geometry.gauss_newton, geometry.fisher):
        with pytest.raises(UserError, match=f"{make.__name__}: the loss is not the mean"):
            make(loss, params, batch, microbatch_size=4)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("make", [geometry.gauss_newton, geometry.empirical_fisher])
def test_gauss_newton_and_fisher_matrices_of_weighted_means(x64, name, make):
    params, batch = problem()
    loss, v = WEIGHTED[name].declared(), tree.random_normal(jax.random.key(1), params)
    expected = flat(linearize(make(loss, params, batch))(v))
    ways = [make(loss, params, batch, microbatch_size=4)]
    ways += [averaged(functools.partial(make, loss, params), parts(batch))]
    for operator in ways:
        np.testing.assert_allclose(flat(linearize(operator)(v)), expected, rtol=1e-7)


def test_weights_that_are_not_those_of_the_loss():
    params, batch = problem(dtype=np.float32)
    wrong = composed(model, functools.partial(weighted, mask), example_weight=of_class)
    for way in ("hessian, 4", "list", "loader"):
        with pytest.raises(UserError, match="weighted mean that its example_weight says"):
            OPERATORS[way](wrong, params, batch)


def test_a_large_regularizer_hides_nothing_where_it_is_known():
    params, batch = problem(dtype=np.float32)
    case = WEIGHTED["mask"]
    loss = composed(case.model, case.outer, regularizer=lambda params: 1e3 * decay(params))
    with pytest.raises(UserError, match="not the mean of its parts"):
        hessian(loss, params, batch, microbatch_size=4)


@pytest.mark.parametrize("name", ["mask", "class weights", "token counts"])
def test_a_head_of_zeros_hides_nothing(name):
    """All examples then have one value, whatever their weights."""
    params, batch = problem(dtype=np.float32)
    params["out"] = jnp.zeros_like(params["out"])
    for way in ("hessian, 4", "list"):
        with pytest.raises(UserError, match="not the mean of its parts"):
            OPERATORS[way](WEIGHTED[name], params, batch)
        OPERATORS[way](SOUND["mean"], params, batch)


@pytest.mark.parametrize("size", [2, 3, 6, 12, 48, 96])
def test_masks_are_found_whatever_they_hide(size):
    """No mask that hides 1 of 4 examples or more leaves the same share of all parts that are
    looked at, but by a chance below 1e-3 for each."""
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.normal(size=(192, 3)), jnp.float32)

    def loss(w, batch):
        return jnp.sum(batch[1] * jnp.square(batch[0] @ w)) / jnp.sum(batch[1])

    missed = 0
    for _ in range(40):
        shown = jnp.asarray(rng.permutation(192) % 4 > 0, jnp.float32)
        try:
            hessian(loss, jnp.ones(3), (x, shown), microbatch_size=size)
            missed += 1
        except UserError:
            pass
    assert missed <= 1


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_padding_in_the_last_batch_of_a_loader(kept):
    """Found where a pass ends, whatever is kept; declared, it is right."""
    params, batch = problem(dtype=np.float32)
    hidden = batch | {"mask": jnp.asarray(np.arange(COUNT) < 21, jnp.float32)}
    source = Loader([rows(hidden, i, i + 6) for i in range(0, COUNT, 6)])
    case = WEIGHTED["mask at the end"]
    operator_of = functools.partial(hessian, case, params)
    each = averaging.linearization_bytes(operator_of(rows(hidden, 0, 6)), rows(hidden, 0, 6))
    operator = averaged(operator_of, source, cache_bytes=kept * each)
    with pytest.raises(UserError, match="averaged: the loss is not the mean of its parts"):
        linearize(operator)(params)
    declared = averaged(functools.partial(hessian, case.declared(), params), source)
    found, expected = linearize(declared)(params), flat(hvp(case, params, hidden, params))
    # In float32 some hundred roundings of 6e-8, each at most of the size of the largest entry.
    np.testing.assert_allclose(flat(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_mean_of_operators_is_the_way_out(x64):
    """Where the loss is meant for each batch by itself."""
    params, batch = problem()
    loss, v = MIXING["BatchNorm in training mode"], tree.random_normal(jax.random.key(1), params)
    one, two = rows(batch, 0, 12), rows(batch, 12, COUNT)
    with pytest.raises(UserError, match=r"averaged: .*\(A \+ B\) / 2"):
        averaged(functools.partial(hessian, loss, params), [one, two])
    mean_of = (hessian(loss, params, one) + hessian(loss, params, two)) / 2
    expected = (dense(loss, params, one) + dense(loss, params, two)) / 2
    np.testing.assert_allclose(flat(linearize(mean_of)(v)), expected @ flat(v), rtol=1e-9)


# What is sound passes.


@pytest.mark.parametrize("way", OPERATORS)
def test_what_is_a_mean_passes(way):
    for seed in range(3):
        params, batch = problem(seed, np.float32)
        for loss in SOUND.values():
            OPERATORS[way](loss, params, batch)
        margins = jax.tree.map(lambda x: 100 * x, params)
        OPERATORS[way](SOUND["mean"], margins, batch)


def test_rounding_is_no_difference():
    """Where the value is what rounding left of numbers a million times as large."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 300)), jnp.float32)
    w = jnp.asarray(rng.normal(size=300), jnp.float32)

    def loss(w, batch):
        outputs = 1e3 * (batch @ w)
        return jnp.mean(jax.nn.softplus(-jnp.abs(outputs)) + 1e-3 * jnp.sin(outputs))

    for size in (2, 8, 32):
        hessian(loss, w, x, microbatch_size=size)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_residuals_of_rounding_alone_are_no_difference(size):
    """A net that fits its targets, as a student that has become its teacher: the loss is what
    rounding leaves, which depends on how many examples are computed together."""

    def squared(outputs, batch):
        return jnp.mean((outputs - batch["target"]) ** 2)

    params, batch = problem(dtype=np.float32)
    for seed in range(3):
        params = tree.add_scaled(params, 1.0, tree.random_normal(jax.random.key(seed), params))
        for change in (1.0, 1 + 1e-7, 1 - 3e-7):
            batch["target"] = change * jax.jit(model)(params, batch)
            hessian(composed(model, squared), params, batch, microbatch_size=size)
            geometry.empirical_fisher(composed(model, squared), params, batch)


@pytest.mark.parametrize("way", ["hessian, 4", "list"])
def test_models_in_bfloat16(way):
    params, batch = problem(dtype=np.float32)

    def narrow(params, batch):
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return model(low, batch | {"x": batch["x"].astype(jnp.bfloat16)})

    for outer in (mean, lambda outputs, batch: mean(outputs.astype(jnp.float32), batch)):
        OPERATORS[way](Case(narrow, outer), params, batch)
    for name in ("mask", "sum", "in-batch negatives"):
        with pytest.raises(UserError, match="not the mean of its parts"):
            OPERATORS[way](Case(narrow, (WEIGHTED | MIXING)[name].outer), params, batch)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    OPERATORS[way](SOUND["mean"], half, batch)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_batches_on_several_devices(kind):
    """Of batches in one example a device, too."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    params, batch = problem(dtype=np.float32)
    with jax.set_mesh(mesh):
        params, batch = jax.device_put(params, jax.P()), jax.device_put(batch, jax.P("data"))
        for size in (4, 8):
            make = of_batches(lambda batch: batch, batch_size=size)
            make(SOUND["mean"], params, batch)
            make(WEIGHTED["mask"].declared(), params, batch)
            for name in ("mask", "sum", "BatchNorm in training mode"):
                with pytest.raises(UserError, match="not the mean of its parts"):
                    make((WEIGHTED | MIXING)[name], params, batch)
        if kind == "Auto":
            hessian(SOUND["mean"], params, batch, microbatch_size=8)
            with pytest.raises(UserError, match="not the mean of its parts"):
                hessian(WEIGHTED["mask"], params, batch, microbatch_size=8)
            return
        ball = {"key": jax.random.key(0), "rho": 0.1}
        chain = {"key": jax.random.key(0), "step_size": 0.1, "localization": 1.0, "batch_size": 4}
        for remedy, ask in (
            ("averaged", lambda loss, *at: hessian(loss, *at, microbatch_size=8)),
            ("reshard", lambda *at: geometry.batch_sharpness(*at, key=ball["key"], batch_size=8)),
            ("reshard", lambda *at: geometry.worst_case_sharpness(*at, m=8, **ball)),
            ("reshard", lambda *at: geometry.local_learning_coefficient(*at, **chain)),
        ):
            with pytest.raises(UserError, match=f"sharded over Explicit axes.*{remedy}"):
                ask(SOUND["mean"], params, batch)


def _masked_in_the_middle(kind, every):
    """Of 40 batches of 32 examples, those in the middle are masked, or one example there is."""
    rng = np.random.default_rng(0)
    count = 40 * 32
    there = np.ones((count, 4), bool)
    there[{"half": slice(320, 960, 2), "one": slice(640, 641)}[every]] = False
    if kind == "tokens":  # the mask is in the numbers of tokens
        there[:, 0] = True
    tokens = np.where(there, rng.integers(1, 9, (count, 4)), -100 if kind == "ignored" else 0)
    mask = there.any(1).astype(np.float32)
    return {"x": rng.normal(size=(count, 5)).astype(np.float32), "tokens": tokens, "mask": mask}


def _by_tokens(w, batch):
    weight = jnp.sum(batch["tokens"] > 0, axis=1).astype(w.dtype)
    return jnp.sum(weight * jnp.square(batch["x"] @ w + 1)) / jnp.sum(weight)


def _by_mask(w, batch):
    return jnp.sum(batch["mask"] * jnp.square(batch["x"] @ w + 1)) / jnp.sum(batch["mask"])


@pytest.mark.parametrize("every", ["half", "one"])
@pytest.mark.parametrize("kind", ["mask", "tokens", "ignored"])
def test_masks_in_the_middle_of_a_data_set_are_found(kind, every):
    """In a list and in arrays, on the host and on a device."""
    batch = _masked_in_the_middle(kind, every)
    loss = _by_mask if kind == "mask" else _by_tokens
    for move in (np.asarray, jnp.asarray):
        moved = jax.tree.map(move, batch)
        listed = [rows(moved, i, i + 32) for i in range(0, 40 * 32, 32)]
        for batches, size in ((listed, None), (moved, 32)):
            make = functools.partial(averaged, batch_size=size)
            with pytest.raises(UserError, match="not the mean of its parts"):
                make(functools.partial(hessian, loss, jnp.ones(5)), batches)
            make(functools.partial(hessian, _plain, jnp.ones(5)), batches)


def _plain(w, batch):
    return jnp.mean(jnp.square(batch["x"] @ w + 1))


# Inside a trace nothing can be raised.


@pytest.mark.parametrize("way", ["hessian, 4", "list", "arrays"])
def test_inside_a_trace_results_say_so(key, way):
    params, batch = problem(dtype=np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def solve(loss, params):
        operator = OPERATORS[way](loss, params, batch)
        found = geometry.top_eigenpairs(operator, key=key, max_products=4)
        return found.values, found.status, linearize(2 * operator)(params)

    @functools.partial(jax.jit, static_argnums=0)
    def multiply(loss, params):
        return linearize(2 * OPERATORS[way](loss, params, batch))(params)

    for name in ("sum", "BatchNorm in training mode"):
        assert np.isnan(flat(multiply((WEIGHTED | MIXING)[name], params))).all()
    values, status, product = solve(WEIGHTED["mask at the end"], params)
    assert np.isnan(values).all() and (np.asarray(status) == Status.ASSUMPTION_FAILED).all()
    assert np.isnan(flat(product)).all()
    values, status, product = solve(SOUND["mean"], params)
    assert np.isfinite(values).all() and not (np.asarray(status) == Status.ASSUMPTION_FAILED).any()
    assert np.isfinite(flat(product)).all()


def test_measures_inside_a_trace_say_so(key):
    params, batch = problem(dtype=np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def measure(loss, params):
        given = (loss, params, batch)
        ball = {"key": key, "rho": 0.1, "num_steps": 1}
        return (
            geometry.sam_sharpness(*given, rho=0.1, microbatch_size=4),
            geometry.directional_curvature(*given, microbatch_size=4),
            geometry.worst_case_sharpness(*given, microbatch_size=4, **ball),
            geometry.adaptive_sharpness(*given, microbatch_size=4, **ball),
        )

    for result in measure(WEIGHTED["mask"], params):
        assert result.status == Status.ASSUMPTION_FAILED
        assert np.isnan(result.value) and np.isnan(result.loss)
    for result in measure(SOUND["mean"], params):
        assert result.status == Status.OK and np.isfinite(result.value)


def test_each_lane_has_its_own_verdict(key):
    params, batch = problem(dtype=np.float32)
    masks = jnp.stack([jnp.ones(COUNT), batch["mask"]])

    @jax.vmap
    def status(mask):
        given = (WEIGHTED["mask at the end"], params, batch | {"mask": mask})
        operator = hessian(*given, microbatch_size=4)
        return geometry.trace(operator, key=key, max_products=4)

    found = status(masks)
    assert found.status.tolist() == [Status.OK, Status.ASSUMPTION_FAILED]
    assert np.isfinite(found.value).tolist() == [True, False]


def test_a_product_in_microbatches_has_a_derivative(x64):
    params, batch = problem()
    loss, v = SOUND["mean"], tree.random_normal(jax.random.key(1), params)

    def along(params, **options):
        return tree.vdot(v, hvp(loss, params, batch, v, **options))

    found, expected = (
        jax.grad(functools.partial(along, microbatch_size=4))(params),
        jax.grad(along)(params),
    )
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-7)


# What it costs.


def test_a_second_check_compiles_nothing(compilations):
    def check(seed):
        params, batch = problem(seed, np.float32)
        for way in ("hessian, 4", "arrays"):
            OPERATORS[way](SOUND["mean"], params, batch)

    check(0)
    compilations.clear()
    check(1)
    assert compilations == []


def test_a_part_without_weight_is_no_error_of_nan():
    """Under jax_debug_nans, which stops where a jitted function returns NaN."""
    params, batch = problem(dtype=np.float32)
    case = WEIGHTED["mask at the end"]
    with jax.debug_nans(True):
        hessian(case.declared(), params, batch, microbatch_size=4)
        with pytest.raises(UserError, match="apart no number"):
            hessian(case, params, batch, microbatch_size=1)


def test_nothing_is_looked_at_where_nothing_is_cut():
    calls = collections.Counter()
    params, batch = problem(dtype=np.float32)

    def loss(params, batch):
        jax.debug.callback(lambda: calls.update(["run"]))
        return summed(model(params, batch), batch)

    hessian(loss, params, batch)
    hessian(loss, params, batch, microbatch_size=COUNT)
    averaged(functools.partial(hessian, loss, params), [batch])
    jax.effects_barrier()
    assert not calls


def test_a_batch_that_holds_a_matrix_of_all_examples_is_not_cut():
    """A graph: its model takes all nodes or none."""
    adjacency, x, w = jnp.eye(8), jnp.ones((8, 3)), {"w": jnp.ones((3, 2))}
    batch = {"adjacency": adjacency, "x": x}
    loss = composed(lambda p, b: b["adjacency"] @ b["x"] @ p["w"], lambda o, b: jnp.mean(o**2))
    asks = {
        "hessian": lambda: hessian(loss, w, batch, microbatch_size=4),
        "empirical_fisher": lambda: geometry.empirical_fisher(loss, w, batch),
        "trace": lambda: geometry.trace(
            geometry.gauss_newton(loss, w, batch), key=jax.random.key(0), method="exact"
        ),
    }
    for name, ask in asks.items():
        with pytest.raises(UserError, match=rf"^{name}: .*not some of its examples.*\[N, N\]"):
            ask()


@pytest.mark.parametrize("place", [0, 50, 127])
def test_one_example_without_a_label_is_seen_before_microbatches(place):
    labels = np.arange(128) % 3
    labels[place] = -1
    batch = {"x": np.random.default_rng(0).normal(size=(128, 2)).astype("f4"), "label": labels}

    def loss(w, batch):
        known = batch["label"] >= 0
        losses = jnp.square(batch["x"] @ w - batch["label"])
        return jnp.sum(known * losses) / jnp.sum(known)

    with pytest.raises(UserError, match="^hessian: the loss is not the mean of its parts"):
        hessian(loss, jnp.ones(2), batch, microbatch_size=16)
    hessian(loss, jnp.ones(2), {**batch, "label": np.arange(128) % 3}, microbatch_size=16)
