"""Paper 7 as a study: its config, its arms, what it asks and shows, and a run through the door."""

import pytest

from configs import compression as forms
from sharpjax import schema, workdir
from sharpjax.errors import UserError
from sharpjax.protocol import claims
from sharpjax.runs import study
from sharpjax.studies.compression import shows
from sharpjax.studies.compression.plan import Change, Rise
from sharpjax.studies.papers import paper7
from sharpjax.train import planning
from tests.asked import assert_measured_and_decidable, assert_named_after_its_data
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
    assert figures == {f"{kind}-digits-mlp.png" for kind in ("distances", "sharpness", "size")}


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
        taken = {arm: rows[arm, "size/bytes", seed, whole] for arm in ("base", "int4", "pruned_90")}
        assert taken["base"] == 4 * rows["base", "size/parameters", seed, whole]
        assert taken["base"] == rows["kd_50", "size/bytes", seed, whole]
        assert taken["int4"] < taken["base"] / 4 and taken["pruned_90"] < taken["base"] / 4
        assert ("int4", "train[:32]/noise_sharpness", seed, whole) in rows
        assert len(layers) == 3 and all((k[0], "layer/sharpness", *k[2:]) in rows for k in layers)


class _View:
    """Rows of arms, by metric and coordinates."""

    def __init__(self, **arms):
        self._arms = arms

    def rows(self, arm):
        return [
            {"arm": arm, "seed": 3, "of": of, "step": 8, "metric": metric, "value": value}
            for metric, of, value in self._arms[arm]
        ]


def test_models_are_compared_with_the_copy_that_they_are_made_from():
    """Several models of a seed are told apart by `copy`, and single layers also by `layer`."""
    one, two = {"copy": 1}, {"copy": 2}
    noise = "train[:9]/noise_sharpness"
    view = _View(
        base=[("test/nll", one, 1.0), ("test/nll", two, 2.0), (noise, one, 0.1), (noise, two, 0.2),
              ("layer/noise_sharpness", two | {"layer": "head"}, 0.5),
              ("test/accuracy", one, 0.8), ("test/accuracy", two, 0.5)],
        int4=[("test/nll", one, 1.25), ("test/nll", two, 2.5), ("test/accuracy", two, 0.4)],
        layers_int4=[("test/nll", two | {"layer": "head"}, 3.0)],
    )  # fmt: skip
    rise = Rise((("int4", "base"), ("layers_int4", "base")), noise)
    found = {(arm, metric, member.of): float(x.value) for arm, member, metric, _, x in rise(view)}
    assert found == {
        ("int4", "test/nll_rise", (("copy", 1),)): 0.25,
        ("int4", "test/nll_rise", (("copy", 2),)): 0.5,
        ("int4", "source/noise_sharpness", (("copy", 1),)): 0.1,
        ("int4", "source/noise_sharpness", (("copy", 2),)): 0.2,
        ("layers_int4", "layer/nll_rise", (("copy", 2), ("layer", "head"))): 1.0,
        ("layers_int4", "layer/sharpness", (("copy", 2), ("layer", "head"))): 0.5,
    }
    ((_, member, _, _, change),) = Change(("int4",), "base")(view)
    assert member.of == (("copy", 2),) and float(change.value) == pytest.approx(-20)


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
    assert "cifar10-mobilenet_narrow-everything_10" in made


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
    assert_named_after_its_data(forms.get_config("cpu"), "cifar10-lenet-base")


# What is asked.


def test_all_that_is_asked_is_measured_and_can_be_decided():
    ids = assert_measured_and_decidable(config("cpu"), smallest_p=2.0**-10)
    places = ("cifar10-lenet", "mnist-lenet")
    papers = [f"H7.{i} {place}" for place in places for i in range(1, 7)]
    assert ids == [*papers, *(f"C.{i}" for i in range(1, 5))]


PARTS = ("cpu_cifar10_lenet", "cpu_mnist_lenet", "cpu_mobilenet_narrow")


def test_parts_of_a_form_have_its_arms_and_recipe():
    whole, *parts = [config(form).to_dict() for form in ("cpu", *PARTS)]
    arms = whole.pop("arms")
    assert {name: arm for part in parts for name, arm in part.pop("arms").items()} == arms
    assert all(part == whole for part in parts)


@pytest.mark.parametrize("form", PARTS)
def test_a_part_is_asked_by_ids_of_its_place(form):
    ids = assert_measured_and_decidable(config(form), smallest_p=2.0**-10)
    place = form.removeprefix("cpu_").replace("_lenet", "-lenet")
    if form == "cpu_mobilenet_narrow":
        assert ids == ["C.4 cifar10-mobilenet_narrow"]
    else:
        names = [f"H7.{i}" for i in range(1, 7)] + [f"C.{i}" for i in range(1, 4)]
        assert ids == [f"{name} {place}" for name in names]


def test_statistics_are_asked_of_nets_that_have_them():
    (asked,) = (h for h in study.hypotheses_of(config("cpu")) if h.id == "C.4")
    assert {c.groups[0].rpartition("-")[0] for c in claims.contrasts(asked)} == {
        "cifar10-mobilenet_narrow"
    }


def test_fewer_images_are_not_the_papers():
    every = {h.id: h for h in study.hypotheses_of(config("cpu"))}
    assert every["H7.1"].missing


def test_the_papers_changes_are_read_off_its_table():
    """Its alpha weighs the labels, so that its first column is the teacher's weight of 90."""
    assert paper7.CHANGES["cifar10-lenet"]["kd_paper_90"] == 8.74
    assert paper7.CHANGES["cifar10-lenet"]["kd_paper_10"] == 8.57
    assert paper7.CHANGES["cifar100-mobilenet"]["pruned_10"] == -36.26
    assert all(len(line) == 10 for line in paper7.CHANGES.values())


def test_models_of_a_seed_are_one_in_tables():
    arm, of = "cifar10-lenet-independent", [{"copy": 1}, {"copy": 2}]
    rows = [
        {"arm": arm, "seed": seed, "step": 1, "of": own, "metric": "test/accuracy",
         "value": 0.3 + 0.2 * (seed + i)}
        for seed in (0, 1) for i, own in enumerate(of)
    ]  # fmt: skip
    (table, *_) = shows.tables(rows)
    assert table.rows[0][:2] == (arm, "0.50 ± 0.10")  # of 0.4 and 0.6


def test_its_table_stands_beside_both_ways_of_doing_it():
    place, change = "cifar10-lenet", "test/accuracy_change"
    ours = {"kd_paper_90": 1.0, "kd_90": 2.0, "tflite_int8": 3.0, "int8": 4.0,
            "everything_10": 5.0, "pruned_10": 6.0}  # fmt: skip
    rows = [
        {"arm": f"{place}-{arm}", "seed": 0, "step": 1, "of": {}, "metric": change, "value": value}
        for arm, value in ours.items()
    ]
    (table,) = (t for t in shows.tables(rows) if "as the authors do" in t.columns)
    assert table.rows == (
        (place, "student, teacher's weight 90", "+8.74", "1", "2"),
        (place, "int8", "-0.33", "3", "4"),
        (place, "pruned 10", "-0.25", "5", "6"),
    )


def what_models_take():
    """A base, its 8 bits, an independent model and one of SAM, a seed each."""
    place, sharp = "cifar10-lenet", "train[:64]/noise_sharpness"
    taken = {"size/parameters": 1000.0, "size/flops": 2e6}
    ours = {
        "base": taken | {"size/bytes": 4000.0, "test/accuracy": 0.75, sharp: 0.5},
        "int8": taken | {"size/bytes": 1000.0, "test/accuracy": 0.5, sharp: 0.3, shows.NEAR: 0.2},
        "independent": {"test/accuracy": 0.75, shows.NEAR: 0.4},
        "sam": taken | {"size/bytes": 4000.0, "test/accuracy": 0.8, sharp: 0.1, shows.NEAR: 0.3},
    }
    return [
        {"arm": f"{place}-{arm}", "seed": 0, "step": 1, "of": {}, "metric": metric, "value": value}
        for arm, own in ours.items() for metric, value in own.items()
    ]  # fmt: skip


def test_the_table_of_what_models_take():
    """Of the distance its share of the independent models'; nothing where nothing is known."""
    (table,) = (t for t in shows.tables(what_models_take()) if "times less" in t.columns)
    assert table.columns == (
        "arm", "parameters", "kB", "times less", "MFLOP", "accuracy", "activation distance",
        "noise sharpness",
    )  # fmt: skip
    assert table.rows == (
        ("cifar10-lenet-base", "1,000", "4.0", "1.00", "2", "0.75", "", "0.5"),
        ("cifar10-lenet-int8", "1,000", "1.0", "4.00", "2", "0.5", "0.2 (0.50)", "0.3"),
        ("cifar10-lenet-sam", "1,000", "4.0", "1.00", "2", "0.8", "0.3 (0.75)", "0.1"),
    )


def test_the_picture_of_what_models_take():
    """A panel each for accuracy, distance (of the base to itself 0) and sharpness; SAM's models
    are left out, and so is a panel of sharpness that was not measured."""
    rows = what_models_take()
    (size,) = (f for f in shows.figures(rows, {}) if f.name == "size-cifar10-lenet")
    panels = size.draw().axes
    assert [axis.get_xlabel() for axis in panels] == ["kilobytes"] * 3
    assert [axis.get_ylabel() for axis in panels] == [
        "test accuracy", "activation distance to the base", "noise sharpness"
    ]  # fmt: skip
    marked = [
        {(*line.get_xydata()[0].tolist(),) for line in axis.lines if line.get_linestyle() == "None"}
        for axis in panels
    ]
    assert marked == [{(4, 0.75), (1, 0.5)}, {(4, 0), (1, 0.2)}, {(4, 0.5), (1, 0.3)}]
    without = [row for row in rows if "sharpness" not in row["metric"]]
    (size,) = (f for f in shows.figures(without, {}) if f.name == "size-cifar10-lenet")
    assert len(size.draw().axes) == 2
