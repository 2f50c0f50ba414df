"""The concentric circles as a study: its config, what it asks, what it measures, and a run."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import data, nn, schema
from sharpjax.errors import UserError
from sharpjax.geometry import hessian
from sharpjax.losses import Classification
from sharpjax.protocol.claims import check
from sharpjax.runs import study
from sharpjax.studies.circles import asks
from sharpjax.studies.circles.plan import Sharpness
from sharpjax.train import planning
from sharpjax.train.plan import Subject, When
from sharpjax.train.state import fresh
from tests.commands import assert_one_line, launch, read_rows, studies

SMOKE = "--config=configs/circles.py:smoke"
CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "circles.py"
FORMS = ("", "cpu", "cpu_labels", "quick", "smoke")


def config(form, **changes):
    made = runpy.run_path(str(CONFIG))["get_config"](form)
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    done = launch(SMOKE, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run(finished):
    rows = read_rows(finished)
    assert {row["arm"] for row in rows} == {"factor_10", "factor_90", "labels_true", "labels_1"}
    assert {row["metric"] for row in rows} <= metrics_of(config("smoke"))
    last = {(r["arm"], r["seed"], r["metric"]): r["value"] for r in rows if r["step"] in (4, 6)}
    # 20 points in batches of 5: a sum over 4 batches.
    mean = last["factor_90", 1, "train/relative_flatness_normalised"]
    assert last["factor_90", 1, "authors/relative_flatness"] == pytest.approx(4 * mean, rel=1e-6)
    # Every model is trained for all epochs; epoch 2, of epochs (0, 2), is measured too.
    arrays = np.load(finished / "arrays" / "factor_10" / "4" / "curves.npz")
    assert len(arrays["0.test_accuracy"]) == 4
    assert {row["step"] for row in rows if row["arm"] == "factor_10"} == {0, 2, 4}
    boundary = np.load(finished / "arrays" / "factor_10" / "4" / "boundary.npz")
    assert list(boundary) == ["0.inner"] and boundary["0.inner"].shape == (8, 8)
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    assert {"sharpness-factor", "authors-factor", "random-labels", "boundary-factor"} <= names
    verified = studies("verify", str(finished))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def metrics_of(made):
    plan = study.plan_of(made)
    return {metric for arm in planning.arms(plan) for metric in planning.metrics(plan, arm)}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_can_be_run_and_asked(form):
    made = config(form)
    schema.check(made, ())
    plan = study.plan_of(made)
    asked = study.hypotheses_of(made)
    check(asked, arms=set(planning.arms(plan)), metrics=metrics_of(made))
    ids = [hypothesis.id for hypothesis in asked]
    factors, labels = ([f"T1.{i}" for i in span] for span in (range(11, 20), range(20, 24)))
    expected = {"cpu": factors, "quick": factors, "cpu_labels": labels}
    assert ids == expected.get(form, factors + labels)


def test_the_full_form_is_the_papers():
    arms = schema.complete_arms(config(""))
    found = [arm.data.factor for name, arm in arms.items() if name.startswith("factor_")]
    assert found == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]  # a trend has their order
    assert len(config("").seeds) == 100
    assert {arms[name].train.epochs for name in ("factor_10", "labels_1")} == {300, 20_000}


def test_a_trend_has_the_order_of_the_factors_and_not_of_the_names():
    made = config("smoke")
    with made.unlocked():
        made.arms = {f"factor_{f}": {"data": {"factor": f / 100}} for f in (5, 10, 90)}
    assert [*made.arms] == ["factor_10", "factor_5", "factor_90"]
    expected = ("factor_5", "factor_10", "factor_90")
    assert tuple(stage.arm for stage in study.plan_of(made).stages) == expected
    asked = {h.id: h for h in study.hypotheses_of(made)}
    for number in (11, 12, 13, 14, 16):
        for contrast in asked[f"T1.{number}"].contrasts:
            assert contrast.groups == expected
    assert asked["T1.15"].contrasts[0].groups == ("factor_90", "factor_5")


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="train.batch_size=30 is larger than the data: 20 training"):
        schema.check(config("smoke", train__batch_size=30), ())
    done = launch(SMOKE, "--config.data.num_train=7", "--dry_run")
    assert_one_line(done, 2, "config.data.num_train=7", "an even number")


@pytest.fixture(scope="module")
def measured():
    """A net of one hidden layer that separates the circles, and a copy that calls all outer."""
    splits = data.on_device(data.Circles(num_train=12, factor=0.2).load())
    model = nn.build("mlp", num_classes=2, width=4, depth=1)
    # |x| + |y| by four units: at most .29 on the inner circle, at least 1 on the outer one.
    corner = jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    separating = {
        "Dense_0": {"kernel": corner, "bias": jnp.zeros(4)},
        "head": {"kernel": jnp.tile(jnp.array([3.0, -3.0]), (4, 1)), "bias": jnp.array([-2.0, 2])},
    }
    outer = {**separating, "head": {"kernel": jnp.zeros((4, 2)), "bias": jnp.array([1.0, 0.0])}}
    measure = Sharpness(When(), 0.2, 5, 2, 1e-3, 32, 0.1, 8, 0.005, 16)

    def rows(params):
        subject = Subject(0, (), 1, model, fresh(params, {}, (), ()), lambda at: None)
        return measure((), subject, splits, jax.random.key(0))[1].rows

    return model, splits, separating, rows(separating), rows(outer)


def test_measures_are_those_of_the_definitions(measured):
    model, splits, params, found, _ = measured
    loss, batch = Classification(model, {}), data.as_batch(splits.train)
    dense = np.asarray(hessian(loss, params, batch).to_dense())
    top = np.linalg.eigvalsh(dense)[-1]
    assert value(found, "train/lambda_1") == pytest.approx(top, rel=1e-2)  # 10 x tol
    assert value(found, "train/nll") == pytest.approx(float(loss(params, batch)), rel=1e-5)
    # Depth 1 has 2 layers; 3 batches of 5 hold 12 examples.
    logits = np.asarray(loss.logits(params, batch), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = (p * logits).sum(1) - logits[np.arange(12), np.asarray(batch["label"])]
    norm = 3 * np.sqrt(np.mean(slope**2))
    assert value(found, "authors/fisher_rao") == pytest.approx(norm, rel=1e-4)
    flatness = value(found, "train/relative_flatness_normalised")
    assert value(found, "authors/relative_flatness") == pytest.approx(3 * flatness, rel=1e-6)


def test_perfect_and_fitted_are_of_models_that_are_right_on_all(measured):
    *_, good, bad = measured
    for measure in asks.MEASURES:
        assert value(good, f"perfect/{measure}") == value(good, f"train/{measure}")
        assert value(good, f"fitted/{measure}") == value(good, f"train/{measure}")
    assert value(bad, "train/fitted") == 0.5
    assert not any(name.startswith(("perfect", "fitted")) for name, _ in bad)


def value(rows, metric):
    return float(rows[metric, ()].value)
