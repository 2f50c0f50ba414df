"""The geometric reappraisal as a study: its config, what it asks, and a run."""

import pathlib
import runpy

import numpy as np
import pytest

from sharpjax import schema
from sharpjax.errors import UserError
from sharpjax.protocol.claims import check, contrasts
from sharpjax.protocol.judging.verdicts import decide
from sharpjax.runs import study
from sharpjax.studies.geometric_reappraisal import asks
from sharpjax.studies.geometric_reappraisal.plan import GradientShare
from sharpjax.studies.papers import paper1
from sharpjax.train import planning
from sharpjax.train.plan import Member, Train
from tests.asked import assert_named_after_its_data
from tests.commands import assert_one_line, launch, read_rows, studies

SMOKE = "--config=configs/geometric_reappraisal.py:smoke"
CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "geometric_reappraisal.py"
OF_PAPER = [f"H1.{i}" for i in range(1, 12)]
OWN = [f"G1.{i}" for i in range(1, 7)]
# What each form answers.
ANSWERED = {
    "": [*OF_PAPER[:10], *OWN],
    "labels": ["H1.11", "G1.7"],
    "cpu": [*(f"{id} narrow" for id in OF_PAPER[:10]), *OWN],
    **{
        f"cpu_{net}": [f"{id} {net}" for id in [*OF_PAPER[:10], *OWN]]
        for net in ("resnet_narrow", "vgg_narrow", "vit_narrow")
    },
    "cpu_labels": ["H1.11 narrow", "G1.7"],
    "quick": [*(f"{id} small" for id in OF_PAPER[:10]), *OWN],
    "smoke": [*(f"{id} small" for id in OF_PAPER[:10]), *OWN],
}


def config(form, **changes):
    made = runpy.run_path(str(CONFIG))["get_config"](form)
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return made


@pytest.mark.parametrize("form", ANSWERED)
def test_each_form_can_be_run_and_asked(form):
    made = config(form)
    schema.check(made, {})
    plan = study.plan_of(made)
    arms = planning.arms(plan)
    asked = study.hypotheses_of(made)
    can = [h for h in asked if not h.missing]
    check(asked)
    check(can, arms=set(arms), metrics={m for arm in arms for m in planning.metrics(plan, arm)})
    assert [h.id for h in can] == ANSWERED[form]
    assert {*OF_PAPER} <= {h.id for h in asked}
    # Each arm has its metrics, not another one alone.
    for contrast in (c for h in can for c in contrasts(h)):
        several = isinstance(contrast.quantity, tuple)
        for i, group in enumerate(contrast.groups):
            quantity = contrast.quantity[i] if several else contrast.quantity
            for arm in group.split("|"):
                assert quantity.metric in planning.metrics(plan, arm), (arm, quantity.metric)


@pytest.mark.parametrize("change", [{"data__num_train": 5_000}, {"model__width": 32}])
def test_fewer_images_or_another_width_are_not_the_papers(change):
    every = study.hypotheses_of(config("", **change))
    assert all(h.missing for h in every if h.id in OF_PAPER)
    asked = [h.id for h in every if not h.missing]
    assert asked == [*(f"{id} other" for id in OF_PAPER[:10]), *OWN]


def test_arms_differ_from_base_in_their_control_alone():
    arms = schema.complete_arms(config("cpu"))
    base = arms["cifar10-vgg_narrow-base"]
    expected = {
        "aug": {("data", "augment"): True},
        "wd_sam": {("optim", "weight_decay"): 5e-4, ("optim", "rho"): 0.05},
        "base_sam": {("optim", "rho"): 0.05},
    }
    for condition, changes in expected.items():
        arm = arms[f"cifar10-vgg_narrow-{condition}"]
        found = {
            (block, field): arm[block][field]
            for block in ("data", "model", "optim", "train")
            for field in arm[block]
            if arm[block][field] != base[block][field]
        }
        assert found == changes
    levels = schema.complete_arms(config("cpu_labels")).values()
    assert sorted(arm.data.label_noise for arm in levels) == [i / 10 for i in range(11)]


def test_bad_input_is_refused_at_the_door():
    with pytest.raises(UserError, match=r"matched.num_examples=500: there are 128 training"):
        schema.check(config("smoke", evaluate__matched__num_examples=500), {})
    with pytest.raises(UserError, match="landscape.num_examples=129: there are 128 training"):
        schema.check(config("smoke", evaluate__landscape__num_examples=129), {})
    with pytest.raises(UserError, match="num_points=4; give an odd number"):
        study.plan_of(config("smoke", evaluate__landscape__num_points=4))
    with pytest.raises(UserError, match="microbatch_size=7 does not divide"):
        schema.check(config("smoke", evaluate__sharpness__microbatch_size=7), {})
    with pytest.raises(UserError, match="'fogg'.*did you mean 'fog'"):
        study.plan_of(config("smoke", evaluate__test__kinds=("fogg",)))
    done = launch(SMOKE, "--config.evaluate.sharpness.noise_rho=0.0", "--dry_run")
    assert_one_line(done, 2, "config.evaluate.sharpness.noise_rho=0.0", "a number above 0")


def test_an_arm_is_named_after_its_data():
    assert_named_after_its_data(config("cpu"), "cifar10-vit_narrow-aug")


def test_what_cannot_be_measured_is_refused_before_it_is_trained():
    """`train.corruption` and the authors' code would say so when all is trained."""
    name = "arm 'digits-mlp-aug': config"
    with pytest.raises(UserError) as error:
        study.plan_of(config("smoke", model__name="small_conv"))
    assert str(error.value).startswith(f"{name}.model.name=small_conv: Conv_1/bias")
    with pytest.raises(UserError) as error:
        study.plan_of(config("smoke", evaluate__test__kinds=("fog", "saturate")))
    assert str(error.value).startswith(f"{name}.evaluate.test.kinds=('fog', 'saturate'): the image")
    assert "\n" not in str(error.value)


def test_arms_of_other_data_have_a_key_of_their_own():
    """Arms share the data of a key, so two specifications under one would train on the last."""
    made = config("smoke")
    same = study.plan_of(made)
    key = "digits, 0 of the labels drawn anew"
    with made.unlocked():
        made.arms["digits-mlp-wd_sam"].data = {"num_train": 100}
        made.arms["digits-mlp-wd"].data = {"normalization": "measured"}
    plan = study.plan_of(made)
    of = {stage.arm: plan.data[stage.data] for stage in plan.stages if isinstance(stage, Train)}
    assert of["digits-mlp-wd_sam"].num_train == 100
    assert of["digits-mlp-wd"].normalization == "measured"
    assert of["digits-mlp-base"] == of["digits-mlp-aug_sam"] == same.data[key] == plan.data[key]
    assert {*plan.data} - {*same.data} == {f"{key} of digits-mlp-{end}" for end in ("wd", "wd_sam")}


class _View:
    """Rows of one arm."""

    def __init__(self, **values):
        self._values = values

    def rows(self, arm):
        return [
            {"arm": arm, "seed": 3, "of": {}, "step": 8, "metric": f"train[:9]/{name}", "value": x}
            for name, x in self._values.items()
        ]


def test_the_gradients_share_is_one_where_the_loss_is_linear():
    """Of a linear loss the mean of |g'e| over normal e of deviation rho / sqrt(P) is sqrt(2 / pi)
    rho |g| / sqrt(P)."""
    generator, gradient = np.random.default_rng(0), np.arange(1.0, 101.0)
    draws = generator.normal(size=(4000, 100)) / np.sqrt(100)
    noise = np.abs(draws @ gradient).mean()
    names = {"gradient_norm": np.linalg.norm(gradient), "authors/noise_sharpness": noise}
    measure = GradientShare("train[:9]", (("a-b-base", 100),))
    ((arm, member, metric, _, share),) = measure(_View(**names))
    assert (arm, member, metric) == ("a-b-base", Member(3), "train[:9]/authors/gradient_share")
    # Of |z| the deviation over the mean is .756.
    assert share.value == pytest.approx(1, abs=5 * 0.756 / np.sqrt(4000))
    assert not list(measure(_View(gradient_norm=1.0)))


def test_two_places_are_asked_each_for_itself():
    """A place that lacks a condition is asked nothing."""
    whole = [f"cifar10-n-{c}" for c in ("base", *paper1.CONDITIONS)]
    asked = asks.hypotheses([*whole, "cifar10-m-base"], examples=9, corrupted=9, matched=False)
    own = {h.id: h for h in asked if h.id.startswith("G")}
    assert [*own] == [id for id in OWN if id != "G1.5"]
    assert {g for c in contrasts(own["G1.2"]) for g in c.groups} == {
        "cifar10-n-aug", "cifar10-n-aug_sam", "cifar10-n-base"
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    done = launch(SMOKE, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run(finished):
    rows = read_rows(finished)
    found = {(row["arm"], row["metric"]) for row in rows}
    place = "digits-mlp"
    for condition in ("base", *paper1.CONDITIONS):
        arm = f"{place}-{condition}"
        assert (arm, "test/mean_rank") in found and (arm, "test/disagreement") in found
        assert (arm, "train[:32]/authors/gradient_share") in found
        assert (f"{arm}-matched", "train[:32]/fisher_rao") in found
        anew = (arm, "train[:32]/resampled/authors/noise_sharpness") in found
        assert anew == condition.startswith("aug")
    assert (f"{place}-random_50", "train[:32]/true/fisher_rao") in found
    # The same 32 images by the labels trained on and by the true ones, of which half are replaced.
    ends = {
        row["metric"]: row["value"]
        for row in rows
        if (row["arm"], row["seed"], row["step"]) == (f"{place}-random_50", 0, 4)
    }
    assert abs(ends["fit/nll"] - ends["train[:32]/true/nll"]) > 1e-3
    # All that these arms can answer has its numbers, but for pairs of two models, which are one.
    asked = [h for h in study.hypotheses_of(config("smoke")) if not h.missing]
    reached = decide(asked, rows, seeds=(0, 1), detectable=None)
    assert {j.hypothesis.id for j in reached if j.verdict == "not run"} == {"H1.5 small"}
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    kinds = ("sharpness", "reliability", "landscape", "random-labels")
    assert {f"{kind}-{place}" for kind in kinds} <= names
    verified = studies("verify", str(finished))
    assert verified.returncode == 0, verified.stdout + verified.stderr
