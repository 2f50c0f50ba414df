"""Teachers: the loss in closed form, and what each kind keeps of its model."""

import dataclasses
import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import nn, optim, tree
from sharpjax.errors import UserError
from sharpjax.losses import Objective, Teacher, check_teacher, distillation
from sharpjax.nn.resnet import ResNet

module = importlib.import_module("sharpjax.losses.teacher")
MODEL = nn.MLP(num_classes=5, width=4)


def params_of(seed, model=MODEL):
    return model.init(jax.random.key(seed), jnp.zeros((1, 6, 6, 1)))["params"]


def example_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 6, 6, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 5, size), jnp.int32),
    }


def teacher_of(kind, *, key=None, **fields):
    """One of any kind, at temperature 2 and weight 1/2."""
    if kind in module._WITH_MODEL:
        params = tree.stack([params_of(s) for s in (7, 8)]) if kind == "ensemble" else params_of(7)
        fields = {"model": MODEL, "params": params} | fields
    if kind == "stored":
        fields = {"params": jax.random.normal(jax.random.key(9), (16, 5))} | fields
    if kind in module._RANDOM:
        fields = {"key": jax.random.key(3) if key is None else key} | fields
    return Teacher(kind=kind, **{"weight": 0.5, "temperature": 2.0} | fields)


def outputs_of(teacher, batch):
    return np.asarray(teacher.logits(batch, jnp.zeros((len(batch["image"]), 5))))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(z):
    p = softmax(np.asarray(z, np.float64))
    return -(p * np.log(p)).sum(-1)


# The loss.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence_times_the_temperature_squared(temperature, x64, strict):
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(2, 6, 5)) * 3
    q, p = softmax(z / temperature), softmax(t / temperature)
    loss = functools.partial(distillation, targets=jnp.asarray(t), temperature=temperature)
    value, slope = jax.value_and_grad(loss)(jnp.asarray(z))
    expected = temperature**2 * (p * np.log(p / q)).sum() / 6
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, temperature * (q - p) / 6, atol=1e-14)


def test_the_loss_of_a_high_temperature_is_a_squared_distance(x64):
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(2, 6, 5))
    apart = (z - z.mean(1, keepdims=True)) - (t - t.mean(1, keepdims=True))
    got = distillation(jnp.asarray(z), jnp.asarray(t), 1e4)
    np.testing.assert_allclose(got, (apart**2).sum() / (2 * 5 * 6), rtol=1e-3)  # error of order 1/T


def test_classes_of_probability_0():
    targets = jnp.array([[0.0, -jnp.inf, 0.0]])
    value, slope = jax.value_and_grad(distillation)(jnp.zeros((1, 3)), targets, 1.0)
    np.testing.assert_allclose(value, math.log(1.5), rtol=1e-6)
    np.testing.assert_allclose(slope, [[-1 / 6, 1 / 3, -1 / 6]], rtol=1e-6)


def test_a_student_that_equals_its_teacher_has_no_loss_and_no_slope():
    teacher = teacher_of("model", weight=1.0, params=params_of(0))
    loss = Objective(MODEL, teacher=teacher)
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params_of(0), example_batch())
    assert value == 0.0
    # The slope in the outputs is q (1 - sum p): a few units in the last place.
    (_, _), other = jax.value_and_grad(loss, has_aux=True)(params_of(1), example_batch())
    assert tree.norm(grads) < 100 * np.finfo(np.float32).eps * tree.norm(other)


def test_the_weight_is_the_teachers():
    batch, params = example_batch(), params_of(0)
    labels = Objective(MODEL)(params, batch)[0]
    teacher = teacher_of("model")
    taught = teacher(MODEL.apply({"params": params}, batch["image"]), batch)
    for weight in (0.0, 0.3, 1.0):
        loss = Objective(MODEL, teacher=dataclasses.replace(teacher, weight=weight))
        value, aux = loss(params, batch)
        np.testing.assert_allclose(value, weight * taught + (1 - weight) * labels, rtol=1e-6)
        assert aux["accuracy"] == Objective(MODEL)(params, batch)[1]["accuracy"]
    assert Objective(MODEL, teacher=dataclasses.replace(teacher, weight=0.0))(params, batch)[0] == (
        labels
    )


def test_a_constant_teacher_is_label_smoothing():
    batch, params = example_batch(), params_of(0)
    teacher = Teacher(kind="constant", weight=0.2, temperature=1.0)
    grad = jax.value_and_grad(lambda loss, params: loss(params, batch)[0], argnums=1)
    value, slope = grad(Objective(MODEL, teacher=teacher), params)
    smoothed, expected = grad(Objective(MODEL, {}, 0.2), params)
    np.testing.assert_allclose(value, smoothed - 0.2 * math.log(5), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    prior = jnp.array([0.5, 0.5, 0.0, 0.0, 0.0])
    of_labels = dataclasses.replace(teacher, prior=prior)
    np.testing.assert_allclose(of_labels(jnp.zeros((2, 5)), {}), math.log(5 / 2), rtol=1e-6)


# The kinds.


def test_a_model_teaches_in_eval_mode_with_its_own_statistics():
    model, batch = ResNet(num_classes=5, width=2, blocks=(1,)), example_batch()
    variables = dict(model.init(jax.random.key(1), batch["image"]))
    params = variables.pop("params")
    variables = jax.tree.map(lambda s: 1.5 * s + 0.2, variables)
    teacher = teacher_of("model", model=model, params=params, variables=variables)
    want = model.apply({"params": params, **variables}, batch["image"], train=False)
    np.testing.assert_array_equal(outputs_of(teacher, batch), want)
    missing = dataclasses.replace(teacher, variables={})
    with pytest.raises(UserError, match="losses.Teacher: ResNet reads a collection"):
        outputs_of(missing, batch)


def test_a_teacher_gets_no_gradient():
    teacher, batch = teacher_of("model"), example_batch()

    def loss(teacher, params):
        return Objective(MODEL, teacher=teacher)(params, batch)[0]

    slopes = jax.grad(loss)(teacher, params_of(0))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slopes.params))
    assert slopes.weight != 0 and slopes.temperature != 0


def test_an_ensemble_is_the_mean_of_probabilities():
    batch, one, two = example_batch(), params_of(7), params_of(8)
    teacher = teacher_of("ensemble")
    outputs = [MODEL.apply({"params": p}, batch["image"]) for p in (one, two)]
    want = (softmax(np.asarray(outputs[0])) + softmax(np.asarray(outputs[1]))) / 2
    np.testing.assert_allclose(np.exp(outputs_of(teacher, batch)), want, rtol=1e-5)
    same = teacher_of("ensemble", params=tree.stack([one] * 3))
    z = jax.random.normal(jax.random.key(0), (8, 5))
    alone = teacher_of("model", params=one)
    np.testing.assert_allclose(same(z, batch), alone(z, batch), rtol=1e-5)
    with pytest.raises(UserError, match=r"one leading axis of its members.*tree.stack"):
        outputs_of(teacher_of("ensemble", params=one), batch)


def test_stored_outputs_belong_to_the_example():
    """Those of a model, in whatever order they come."""
    batch, index = example_batch(), np.array([5, 0, 3])
    table = outputs_of(teacher_of("model"), batch)
    stored, part = teacher_of("stored", params=jnp.asarray(table)), {"image": np.zeros((3, 1))}
    np.testing.assert_array_equal(outputs_of(stored, part | {"index": index}), table[index])
    with pytest.raises(UserError, match=r"'stored' needs batch\['index'\]"):
        outputs_of(stored, part)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_an_example_without_stored_outputs_is_taught_nothing(as_array):
    """Indexing in jax gives the nearest row there is, and the loss would look sound."""
    table = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    stored, part = teacher_of("stored", params=as_array(table)), {"image": np.zeros((3, 1))}
    found = outputs_of(stored, part | {"index": np.array([0, 3, -1])})
    np.testing.assert_array_equal(found[0], table[0])
    assert np.isnan(found[1:]).all()
    assert np.isnan(stored(jnp.zeros((1, 5)), {"image": np.zeros((1, 1)), "index": np.array([3])}))


def test_what_shuffled_classes_keep():
    batch = example_batch(64)
    plain = outputs_of(teacher_of("model"), batch)
    mixed = {k: outputs_of(teacher_of(k), batch) for k in ("permuted", "entropy-matched")}
    for outputs in mixed.values():
        np.testing.assert_array_equal(np.sort(outputs), np.sort(plain))
        for T in (1.0, 3.0):
            np.testing.assert_allclose(entropy(outputs / T), entropy(plain / T), rtol=1e-9)
        assert np.mean(np.all(outputs == plain, axis=1)) < 0.5
    first = plain.argmax(1)
    np.testing.assert_array_equal(mixed["permuted"].argmax(1), first)
    # One in five choices is kept by chance: 64 of them, five standard deviations.
    kept = np.mean(mixed["entropy-matched"].argmax(1) == first)
    assert abs(kept - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 64)


def test_the_other_classes_come_in_every_order_alike():
    outputs = jnp.array([1.0, 4.0, 2.0, 3.0])
    keys = jax.random.split(jax.random.key(0), 3000)
    mixed = np.asarray(jax.vmap(module._permute_others, (0, None))(keys, outputs))
    assert np.all(mixed[:, 1] == 4)
    orders, counts = np.unique(mixed, axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.all(np.abs(counts - 500) < 5 * math.sqrt(3000 / 6 * 5 / 6))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_shuffled_examples_have_the_outputs_of_others(size):
    batch = example_batch(size)
    plain, shuffled = (outputs_of(teacher_of(k), batch) for k in ("model", "shuffled"))
    assert not np.any(np.all(plain == shuffled, axis=1))
    order = np.lexsort(plain.T), np.lexsort(shuffled.T)
    np.testing.assert_array_equal(plain[order[0]], shuffled[order[1]])


def test_a_single_example_has_no_other_to_be_shuffled_with():
    """A batch of one, or a chunk of m-SAM: its own outputs would not be a control."""
    teacher, said = teacher_of("shuffled"), "'shuffled' got a batch, .*of one example"
    with pytest.raises(UserError, match=said):
        outputs_of(teacher, example_batch(1))
    clean_pass = optim.sam_value_and_grad(Objective(MODEL, teacher=teacher), m=1)
    with pytest.raises(UserError, match=said):
        jax.eval_shape(clean_pass, params_of(0), example_batch(4))


@pytest.mark.parametrize("inputs", module.INPUTS)
def test_16_bit_outputs_are_compared_in_float32(inputs):
    teacher, batch = teacher_of("model", inputs=inputs, temperature=300.0), example_batch()
    z = jax.random.normal(jax.random.key(0), (8, 5), jnp.bfloat16)
    assert teacher(z, batch) == teacher(z.astype(jnp.float32), batch) > 0


@pytest.mark.parametrize(
    ("kind", "mean", "variance", "low", "high"),
    [("uniform", 0.5, 1 / 12, 0.0, 1.0), ("gaussian", 0.0, 1.0, -7.0, 7.0)],
)
def test_noise_has_its_law(kind, mean, variance, low, high):
    batch = {"image": np.zeros((4000, 1))}
    draws = outputs_of(teacher_of(kind), batch)
    assert draws.min() >= low and draws.max() <= high
    assert abs(draws.mean() - mean) < 5 * math.sqrt(variance / draws.size)
    assert abs(draws.var() - variance) < 5 * variance * math.sqrt(2 / draws.size)
    together = np.corrcoef(draws.T) - np.eye(5)  # classes are independent
    assert np.max(np.abs(together)) < 5 / math.sqrt(len(draws))


# Draws.


@pytest.mark.parametrize("kind", module._RANDOM)
def test_fresh_draws_differ_from_step_to_step(kind):
    batch = example_batch(16)
    draws = [outputs_of(teacher_of(kind).at(step), batch) for step in (0, 1, 1)]
    np.testing.assert_array_equal(draws[1], draws[2])
    assert np.any(draws[0] != draws[1])
    other = outputs_of(teacher_of(kind, key=jax.random.key(4)).at(0), batch)
    assert np.any(draws[0] != other)


@pytest.mark.parametrize("kind", sorted(set(module._RANDOM) - {"shuffled"}))
def test_fixed_draws_belong_to_the_example(kind):
    teacher, batch = teacher_of(kind, fresh=False), example_batch(16)
    with pytest.raises(UserError, match=r"fresh=False needs batch\['index'\]"):
        outputs_of(teacher, batch)
    batch["index"] = jnp.arange(100, 116)
    whole = outputs_of(teacher.at(5), batch)
    order = np.random.default_rng(0).permutation(16)[:7]
    part = jax.tree.map(lambda x: x[order], batch)
    # Products of another number of rows may be rounded otherwise: what is drawn is the order.
    np.testing.assert_allclose(outputs_of(teacher.at(6), part), whole[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", module.KINDS)
def test_every_kind_compiles_once_for_all_leaves_and_runs_in_lanes(kind):
    batch, traces = example_batch() | {"index": 2 * jnp.arange(8)}, []

    @jax.jit
    def value(loss, params):
        traces.append(kind)
        return loss(params, batch)[0]

    objectives = [
        Objective(MODEL, teacher=teacher_of(kind, weight=w, temperature=t).at(step))
        for step, (w, t) in enumerate([(0.1, 1.0), (0.9, 3.0)])
    ]
    each = [value(loss, params_of(0)) for loss in objectives]
    assert len(traces) == 1 and each[0] != each[1]
    together = jax.vmap(value, (0, None))(tree.stack(objectives), params_of(0))
    np.testing.assert_allclose(together, each, rtol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "modle"}, "unknown teacher 'modle'; did you mean 'model'"),
        ({"weight": 1.5}, r"weight=1.5; give a number in \[0, 1\]"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"temperature": 0.0}, "temperature=0.0; give a number above 0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"model": None}, "of kind 'model' needs model and params"),
        ({"kind": "uniform"}, "of kind 'uniform' has no model"),
        ({"kind": "shuffled", "fresh": False}, "shuffled within each batch.*entropy-matched"),
    ],
)
def test_impossible_teachers_are_refused(fields, said):
    given = {"kind": "model", "model": MODEL, "weight": 0.5, "temperature": 1.0} | fields
    with pytest.raises(UserError, match=said):
        Teacher(**given)


def test_stored_probabilities_are_refused():
    """And neither logits, nor what is not looked at: logarithms, and arrays that are traced."""
    probabilities = jax.nn.softmax(jax.random.normal(jax.random.key(0), (300, 10)))
    settings = {"kind": "stored", "weight": 0.5, "temperature": 1.0}
    with pytest.raises(UserError, match="rows of sum 1, .* give logits, or the logarithms"):
        Teacher(params=probabilities, **settings)
    Teacher(params=jnp.log(probabilities), **settings)
    jax.jit(lambda x: Teacher(params=x, **settings).params)(probabilities)


def test_settings_are_refused_before_there_is_a_teacher():
    check_teacher("gaussian", weight=1, temperature=4, fresh=False)
    for weight, temperature in ((2, 1), (0.5, 0)):
        with pytest.raises(UserError, match="losses.Teacher: (weight=2|temperature=0)"):
            check_teacher("model", weight=weight, temperature=temperature)


def test_what_is_missing_is_named():
    batch = example_batch()
    for kind, fields, said in (
        ("model", {"params": None}, "'model' needs params"),
        ("gaussian", {"key": None}, "'gaussian' needs a key"),
        ("stored", {"params": None}, "'stored' needs params"),
    ):
        teacher = dataclasses.replace(teacher_of(kind), **fields)
        with pytest.raises(UserError, match=said):
            outputs_of(teacher, batch)


def test_a_teacher_of_other_classes_is_refused():
    other = nn.MLP(num_classes=4, width=4)
    teacher = teacher_of("model", model=other, params=params_of(0, other))
    with pytest.raises(UserError, match="the teacher has 4 classes and the model 5"):
        Objective(MODEL, teacher=teacher)
    with pytest.raises(UserError, match=r"outputs are \[8, 4\] and the student's \[8, 5\]"):
        outputs_of(teacher, example_batch())
    prior = Teacher(kind="constant", weight=0.5, temperature=1.0, prior=jnp.full(3, 1 / 3))
    with pytest.raises(UserError, match=r"outputs are \[8, 3\]"):
        Objective(MODEL, teacher=prior)(params_of(0), example_batch())


def test_a_teacher_can_be_a_tree_of_axes():
    axes = jax.tree.map(lambda _: 0, teacher_of("gaussian"))
    assert (axes.weight, axes.temperature) == (0, 0)
    assert jax.tree.map(lambda _: None, teacher_of("model")).params["head"]["bias"] is None
