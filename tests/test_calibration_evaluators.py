"""Calibration with and without temperature scaling, and accuracy under corruption, of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sharpjax import data, nn
from sharpjax.data import corruption
from sharpjax.errors import UserError
from sharpjax.metrics import reliability, temperature
from sharpjax.train import corruption as evaluator
from sharpjax.train import planning, state
from sharpjax.train.calibration import Calibration, diagram_of
from sharpjax.train.corruption import Corrupted
from sharpjax.train.plan import Subject, When
from sharpjax.train.results import of
from sharpjax.train.streams import stream
from tests import plans

MODEL = nn.build("mlp", num_classes=10, width=6)


@pytest.fixture(scope="module")
def splits():
    return data.on_device(data.Images("digits", num_train=64, num_validation=100).load())


@pytest.fixture(scope="module")
def subject(splits):
    batch = data.batch(splits.train, np.arange(2))
    params = jax.jit(MODEL.init)(jax.random.key(0), batch["image"])["params"]
    params = jax.tree.map(lambda x: 3 * x, params)
    return Subject(0, (), 0, MODEL, state.fresh(params, {}, (), ()), at=None)


def logits(subject, split):
    batch = data.batch(split, np.arange(len(split.label)))
    return np.asarray(MODEL.apply({"params": subject.state.params}, batch["image"]))


def fit_right(subject, splits):
    """As if the model had learned: most labels are what it says."""

    def labelled(split):
        z = logits(subject, split)
        wrong = np.arange(len(z)) % 3 == 0
        return split._replace(label=jnp.asarray((z.argmax(1) + wrong) % 10, jnp.int32))

    return splits._replace(**{n: labelled(getattr(splits, n)) for n in splits._fields})


def test_before_and_after_the_temperature_of_the_validation_split(splits, subject):
    splits = fit_right(subject, splits)
    measure = Calibration(When(), 64, 10, num_examples=300, gap_examples=50)
    _, found = measure((), subject, splits, None)
    named = {metric.removeprefix("test/"): x for (metric, _), x in found.rows.items()}
    assert {f"test/{name}" for name in named} == set(measure.metrics)
    z, label = (x[:300] for x in (logits(subject, splits.test), np.asarray(splits.test.label)))
    held = logits(subject, splits.validation)
    t = temperature.fit(held, splits.validation.label).temperature.value
    train = logits(subject, splits.train)[:50].argmax(1) == np.asarray(splits.train.label)[:50]
    right = z.argmax(1) == label
    assert named["temperature"].value == pytest.approx(t, rel=1e-5) and t > 1.2
    assert named["temperature/fitted"].value == 1
    assert named["error"].value == pytest.approx(1 - right.mean())
    assert named["gap"].value == pytest.approx(train.mean() - right.mean())
    after = {}
    for prefix, scale in (("", 1), ("scaled/", t)):
        p = special.softmax(z / scale, 1)
        bin_ = np.ceil(p.max(1) * 10).astype(int)
        gaps = [abs((right - p.max(1))[bin_ == b].sum()) for b in range(1, 11)]
        after[prefix] = sum(gaps) / len(z)
        assert named[f"{prefix}ece"].value == pytest.approx(after[prefix], rel=1e-4)
        nll = -np.log(p[np.arange(len(z)), label]).mean()
        assert named[f"{prefix}nll"].value == pytest.approx(nll, rel=1e-4)
    reduction = 1 - after["scaled/"] / after[""]
    assert named["ece_reduction"].value == pytest.approx(reduction, rel=1e-3)
    for is_scaled, scale in ((False, 1), (True, t)):
        bins = reliability.update(reliability.init(10), jnp.asarray(z / scale), label)
        drawn = diagram_of(found.arrays, scaled=is_scaled)
        for ours, theirs in zip(drawn, reliability.diagram(bins), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_more_examples_than_there_are_are_all(splits, subject):
    """No example counts twice, as the last one of a padded batch would."""
    n, most = len(splits.train.label), len(splits.test.label)
    each = [
        Calibration(When(), 64, 10, scaled=False, num_examples=m, gap_examples=k)((), subject,
            splits, None)[1].rows
        for m, k in ((most, n), (most + 7, n + 7))
    ]  # fmt: skip
    assert each[0].keys() == each[1].keys()
    for ours, theirs in zip(each[0].values(), each[1].values(), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert each[0]["test/gap", ()].num_evaluations == n + most


def test_a_model_without_mistakes_is_said_to_have_no_temperature(splits, subject):
    right = jnp.asarray(logits(subject, splits.validation).argmax(1), jnp.int32)
    perfect = splits._replace(validation=splits.validation._replace(label=right))
    _, found = Calibration(When())((), subject, perfect, None)
    named = {metric.removeprefix("test/"): x.value for (metric, _), x in found.rows.items()}
    assert named["temperature/fitted"] == 0
    scaled = [x for name, x in named.items() if name.startswith("scaled/")]
    assert np.isnan([named["temperature"], named["ece_reduction"], *scaled]).all()
    assert np.isfinite(named["ece"]) and diagram_of(found.arrays, scaled=True) is None


def test_scaling_needs_a_validation_split(splits, subject):
    plan = plans.a_plan(plans.an_arm("a", evaluators=[Calibration(When())]))
    with pytest.raises(UserError, match="'a': its data have no split 'validation'"):
        planning.check(plan)
    _, found = Calibration(When(), scaled=False)((), subject, splits._replace(validation=None), 0)
    assert not any("temperature" in metric for metric, _ in found.rows)


def test_a_temperature_is_not_scored_where_it_was_fitted():
    with pytest.raises(UserError, match="train.Calibration: of='validation' with scaled=True"):
        Calibration(When(), of="validation")
    assert Calibration(When(), of="validation", scaled=False).split == "validation"


def test_every_cell_is_measured_and_made_once(splits, subject, monkeypatch):
    made = []
    make = corruption.corrupted
    monkeypatch.setattr(
        evaluator.corruption, "corrupted", lambda *a, **k: (made.append(a[1:]), make(*a, **k))[1]
    )
    kinds, severities = ("gaussian_noise", "contrast"), (1, 5)
    measure = Corrupted(When(), 40, kinds=kinds, severities=severities, batch_size=16)
    _, found = measure((), subject, splits, None)
    assert {metric for metric, _ in found.rows} == set(measure.metrics)
    first = splits.test._replace(input=splits.test.input[:40], label=splits.test.label[:40])
    cells = {}
    for kind in kinds:
        for severity in severities:
            split = make(first, kind, severity, key=stream(0, "corruption"), block=40)
            right = logits(subject, split).argmax(1) == np.asarray(split.label)
            cells[kind, severity] = right.mean()
    table = np.array(list(cells.values())).reshape(2, 2)
    np.testing.assert_allclose(found.arrays["accuracy"], table, atol=1e-6)
    rows = {key: x.value for key, x in found.rows.items()}
    assert rows["test[:40]/corrupted_accuracy", ()] == pytest.approx(table.mean(), abs=1e-6)
    of_5 = rows["test[:40]/accuracy_by_severity", of(severity=5)]
    assert of_5 == pytest.approx(table[:, 1].mean(), abs=1e-6)
    assert rows["test[:40]/corrupted_ece", ()] == pytest.approx(found.arrays["ece"].mean())
    clean = (logits(subject, first).argmax(1) == np.asarray(first.label)).mean()
    assert rows["test[:40]/clean_accuracy", ()] == pytest.approx(clean)
    assert len(made) == 4
    measure((), subject, splits, None)
    assert len(made) == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kinds": ("fogg",)}, "unknown corruption .* 'fogg'; did you mean 'fog'"),
        ({"severities": (1, 6)}, "severities has 6; give 1 to 5"),
        ({"severities": (0,)}, "severities must be a whole number >= 1"),
        ({"kinds": ()}, "name a kind and a severity"),
    ],
)
def test_unknown_corruptions_are_refused_at_the_door(given, says):
    with pytest.raises(UserError, match=says):
        Corrupted(When(), **given)


def test_colours_of_grey_images_are_refused(splits, subject):
    with pytest.raises(UserError, match="'saturate' is of colours"):
        Corrupted(When(), 8, kinds=("saturate",), batch_size=8)((), subject, splits, None)
