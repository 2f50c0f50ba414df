"""Paper 7 as a study: its config, its arms, what it asks and shows, and a run through the door."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import compression as forms
from sharpjax import schema, workdir
from sharpjax.errors import UserError
from sharpjax.runs import study
from sharpjax.studies.compression import transforms
from sharpjax.studies.papers import paper7
from sharpjax.train import planning
from tests.asked import assert_measured_and_decidable
from tests.commands import assert_one_line, launch, launch_probed, read_rows

SMOKE = "--config=configs/compression.py:smoke"


def config(form):
    return forms.get_config(form).lock()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    done = launch(SMOKE, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run(finished):
    folder, said = finished
    assert "H7.1 digits-mlp" in said and "C.3" in said
    assert workdir.verify(folder) == []
    plan, rows = study.plan_of(config("smoke")), read_rows(folder)
    for arm in planning.arms(plan):
        own = {r["metric"] for r in rows if r["arm"] == arm}
        assert own <= {*planning.metrics(plan, arm)} and "test/accuracy" in own
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    assert figures == {"distances-digits-mlp.png", "sharpness-digits-mlp.png"}


def test_rows_of_what_is_made_of_a_model(finished):
    """Rises are differences, changes per cent, distances to itself 0, and two copies one row."""
    rows = {}
    for r in read_rows(finished[0]):
        rows[r["arm"].removeprefix("digits-mlp-"), r["metric"], r["seed"], str(r["of"])] = r[
            "value"
        ]
    whole = str({})
    for seed in (0, 1):
        nll = {arm: rows[arm, "test/nll", seed, whole] for arm in ("base", "int4", "pruned_90")}
        for arm in ("int4", "pruned_90"):
            rise = rows[arm, "test/nll_rise", seed, whole]
            assert rise == pytest.approx(nll[arm] - nll["base"], abs=1e-6)
        accuracy = [rows[arm, "test/accuracy", seed, whole] for arm in ("base", "pruned_90")]
        change = rows["pruned_90", "test/accuracy_change", seed, whole]
        assert change == pytest.approx(100 * (accuracy[1] / accuracy[0] - 1), abs=1e-4)
        assert rows["init", "base/l1", seed, whole] > 0
        assert ("independent", "base/l1", seed, whole) in rows
        copies = [k for k in rows if k[:3] == ("independent", "test/accuracy", seed)]
        assert len(copies) == 2
        layers = [k for k in rows if k[:3] == ("layers_int4", "layer/nll_rise", seed)]
        assert len(layers) == 3 and all((k[0], "layer/sharpness", *k[2:]) in rows for k in layers)


# How models are compressed.


def test_each_method_changes_what_it_says():
    @dataclasses.dataclass(frozen=True)
    class Held:
        params: dict
        variables: dict

    class Subject:
        state = Held(
            {"Conv_0": {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2), "bias": jnp.full(2, 0.1)},
             "head": {"kernel": 100 + jnp.arange(6.0).reshape(2, 3)}},
            {"batch_stats": {"var": jnp.full(2, 0.01)}},
        )  # fmt: skip

    def made(method, amount):
        ((own, state),) = transforms.Compressed(method, amount)(Subject(), jax.random.key(0))
        assert own == ()
        return state

    pruned = made("pruned", 50)  # 7 of 14 weights
    assert int(jnp.sum(pruned.params["Conv_0"]["kernel"] == 0)) == 7
    assert float(pruned.params["Conv_0"]["bias"][0]) == pytest.approx(0.1)
    assert pruned.variables is Subject.state.variables
    everything = made("everything", 20)  # 4 of 18 numbers: variances and biases are the smallest
    assert not everything.variables["batch_stats"]["var"].any()
    assert not everything.params["Conv_0"]["bias"].any()
    bits = made("bits", 2).params["head"]["kernel"]
    assert {*np.unique(np.asarray(bits))} <= {0.0, 103.0, 104.0, 105.0}
    half = made("type", "float16").params["Conv_0"]["bias"]
    assert float(half[0]) == float(np.float16(0.1))
    one = transforms.OneLayer(2, ("head/kernel",))
    ((own, state),) = one(Subject(), jax.random.key(0))
    assert own == one.outputs[0] and state.params["Conv_0"] is not None
    kept = state.params["Conv_0"]["kernel"] == Subject.state.params["Conv_0"]["kernel"]
    assert bool(kept.all()) and bool((state.params["head"]["kernel"] == bits).all())


# What a config holds.


def test_the_arms_of_each_form():
    arms = schema.complete_arms(config("cpu"))
    trained = sum(arm.train.copies for arm in arms.values()) * 10
    assert len(arms) == 2 * 9 + 1 and trained == 210
    assert {name.split("-")[0] for name in arms} == {"cifar10", "mnist"}
    assert arms["cifar10-lenet-kd_paper_50"].optim.name == "adamax"
    assert arms["cifar10-lenet-sam"].optim.rho == 0.05
    plan = study.plan_of(config("cpu"))
    made = {arm for arm in planning.arms(plan) if arm not in arms}
    assert {f"mnist-lenet-pruned_{p}" for p in forms.PERCENT} <= made
    assert {"cifar10-lenet-float16", "cifar10-lenet-sam_int4", "mnist-lenet-init"} <= made
    assert "cifar10-resnet_narrow-everything_10" in made


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.compress.pruned=(100,)", "whole numbers from 0 to 99"),
        ("--config.compress.bits=(1,)", "whole numbers from 2 to 8"),
    ],
)
def test_what_cannot_be_made_is_refused_at_the_door(flag, says):
    done = launch_probed(SMOKE, flag)
    assert done.stdout.strip() == "imported:"
    assert_one_line(done, 2, says)


def test_an_arm_needs_its_place():
    made = forms.get_config("smoke")
    with made.unlocked():
        made.arms["digits-base"] = {}
    with pytest.raises(UserError, match="<data set>-<net>-<condition>"):
        schema.check(made.lock(), {})


# What is asked.


def test_all_that_is_asked_is_measured_and_can_be_decided():
    ids = assert_measured_and_decidable(config("cpu"), smallest_p=2.0**-10)
    places = ("cifar10-lenet", "mnist-lenet")
    papers = [f"H7.{i} {place}" for place in places for i in range(1, 7)]
    assert ids == [*papers, *(f"C.{i}" for i in range(1, 5))]


def test_fewer_images_are_not_the_papers():
    every = {h.id: h for h in study.hypotheses_of(config("cpu"))}
    assert every["H7.1"].missing


def test_the_papers_changes_are_read_off_its_table():
    """Its alpha weighs the labels, so that its first column is the teacher's weight of 90."""
    assert paper7.CHANGES["cifar10-lenet"]["kd_paper_90"] == 8.74
    assert paper7.CHANGES["cifar10-lenet"]["kd_paper_10"] == 8.57
    assert paper7.CHANGES["cifar100-mobilenet"]["pruned_10"] == -36.26
    assert all(len(line) == 10 for line in paper7.CHANGES.values())
