"""Paper 5 as a study: its config, its arms, what it asks and shows, and a run through the door."""

import itertools

import numpy as np
import pytest

from configs import distillation as forms
from sharpjax import losses, schema, workdir
from sharpjax.data import Examples, Splits
from sharpjax.errors import UserError
from sharpjax.metrics import functional
from sharpjax.runs import study
from sharpjax.schema import blocks
from sharpjax.studies.distillation import shows
from sharpjax.studies.distillation.plan import ExcessAgreement
from sharpjax.train import planning
from sharpjax.train.plan import Compare, Member
from tests.asked import assert_measured_and_decidable, assert_named_after_its_data
from tests.commands import assert_one_line, launch, launch_probed, read_rows

SMOKE = "--config=configs/distillation.py:smoke"


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
    assert "H5.1 small" in said and "D.6" in said
    assert workdir.verify(folder) == []
    plan, rows = study.plan_of(config("smoke")), read_rows(folder)
    for arm in planning.arms(plan):
        own = {r["metric"] for r in rows if r["arm"] == arm}
        assert own == {*planning.metrics(plan, arm)}
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    shown = ("distances", "accuracy", "approach", "landscape")
    assert figures == {f"{name}-digits-mlp.png" for name in shown}


def test_rows_compare_what_was_stored(finished):
    """A distance is that of the outputs of a model and its teacher, which are stored."""
    folder, _ = finished
    rows = read_rows(folder)

    def outputs(arm):
        (path,) = sorted((folder / "arrays" / arm).glob("**/*outputs*.npz"))[-1:]
        with np.load(path) as file:
            return {name: file[name] for name in file.files}

    student, teacher = outputs("digits-mlp-kd_90"), outputs("digits-mlp-teacher")
    found = {r["seed"]: r["value"] for r in rows
             if (r["arm"], r["metric"]) == ("digits-mlp-kd_90", "teacher/l1")}  # fmt: skip
    for seed, value in found.items():
        own = functional.l1(student[f"{seed}.logits"], teacher[f"{seed}.logits"])
        assert value == pytest.approx(own, rel=1e-6)
    assert len(found) == 2


# What a config holds.


def test_the_arms_of_each_form():
    for form, nets in (("", forms.OF_PAPER), ("cpu", forms.NARROW)):
        arms = schema.complete_arms(config(form))
        first, *others = nets
        assert len(arms) == 12 * 3 + 7 + 3
        for name, arm in arms.items():
            data_set, net, condition = name.split("-")
            assert (arm.data.name, arm.model.name) == (data_set, net if form else arm.model.name)
            kind, _, weight = condition.rpartition("_")
            if kind:
                assert arm.distill.weight == int(weight) / 100
                assert (arm.distill.start, arm.distill.order) == ("same", "other")
                assert (arm.distill.inputs == "probabilities") == (
                    kind in ("kd_paper", "constant_paper")
                )
        assert not any(f"cifar10-{net}-kd_paper_90" in arms for net in others)


def test_students_share_start_and_order_and_differ_in_their_teachers():
    """SIDDO has a student's start and order, DISDO the other of both."""
    plan = study.plan_of(config("smoke"))
    one = {arm.removeprefix("digits-mlp-"): planning.members(plan, arm)[0]
           for arm in planning.arms(plan)}  # fmt: skip
    teacher, student, siddo, disdo = (one[n] for n in ("teacher", "kd_90", "siddo", "disdo"))
    for role in ("init", "order"):
        same = role == "init"
        assert student.decides(role) == siddo.decides(role)
        assert (siddo.decides(role) == teacher.decides(role)) == same
        assert (disdo.decides(role) == teacher.decides(role)) != same
    assert student.teacher.refs[0].arm == "digits-mlp-teacher"
    assert one["gaussian_10"].teacher.refs == () and siddo.teacher is None
    assert one["kd_paper_10"].teacher.inputs == "probabilities"


def test_the_kinds_of_teachers_are_those_that_there_are():
    assert {*blocks.TEACHERS} == {*losses.teacher.KINDS} - {"ensemble", "stored"}


def test_an_unknown_kind_is_refused_at_the_door():
    done = launch_probed(SMOKE, "--config.distill.teacher=oracle")
    assert done.stdout.strip() == "imported:"
    assert_one_line(done, 2, "distill.teacher=", "none, model, shuffled")


def test_an_arm_needs_its_place():
    made = forms.get_config("smoke")
    with made.unlocked():
        made.arms["digits-siddo"] = {}
    with pytest.raises(UserError, match="<data set>-<net>-<condition>"):
        schema.check(made.lock(), {})
    assert_named_after_its_data(forms.get_config("cpu"), "cifar10-vit_narrow-siddo")


def test_outputs_that_are_compared_are_of_the_same_images():
    made = forms.get_config("smoke")
    with made.unlocked():
        made.arms["digits-mlp-siddo"].evaluate = {"test": {"num_outputs": 20}}
    with pytest.raises(UserError, match=r"evaluate.test.num_outputs: all arms have the same eval"):
        schema.check(made.lock(), {})


# What is asked.


PARTS = ("_resnet_narrow", "_vgg_narrow", "_vit_narrow")


@pytest.mark.parametrize("form", ["cpu", "cpu_resnet_narrow", "quick"])
def test_all_that_is_asked_is_measured_and_can_be_decided(form):
    ids = assert_measured_and_decidable(config(form), smallest_p=2.0**-10)
    kind = {"cpu": "narrow", "quick": "small"}.get(form, "resnet_narrow")
    ours = " resnet_narrow" if form == "cpu_resnet_narrow" else ""
    papers = [f"H5.{i} {kind}" for i in range(1, 7) if (form, i) != ("quick", 4)]
    assert ids == [*papers, *(f"D.{i}{ours}" for i in range(1, 7))]


def test_parts_of_a_form_have_its_arms_and_recipe():
    whole, *parts = [config(f"cpu{net}").to_dict() for net in ("", *PARTS)]
    assert {name: arm for part in parts for name, arm in part.pop("arms").items()} == whole.pop(
        "arms"
    )
    assert all(part == whole for part in parts)


def test_temperatures_and_sizes_are_compared_with_nets_of_their_size():
    ids = assert_measured_and_decidable(config("quick_sweep"), smallest_p=2.0**-10)
    assert ids == ["H5.2 small", "H5.5 small", "D.7", "D.8"]
    asked = {h.id: h for h in study.hypotheses_of(config("quick_sweep"))}
    place = "digits-mlp-"
    assert {c.groups for c in asked["D.8"].contrasts} == {
        (f"{place}kd_90_{size}", f"{place}siddo_{size}") for size in ("half", "double")
    }
    plan = study.plan_of(config("quick_sweep"))
    (compared,) = [stage for stage in plan.stages if isinstance(stage, Compare)]
    of = {own.control: own.arms for own in compared.measures if isinstance(own, ExcessAgreement)}
    assert of[f"{place}siddo_half"] == (f"{place}kd_90_half",) and len(of) == 3


@pytest.mark.parametrize("net", PARTS[1:])
def test_a_part_without_the_further_controls_asks_of_noise_and_distance(net):
    ids = assert_measured_and_decidable(config(f"cpu{net}"), smallest_p=2.0**-10)
    assert ids == [f"H5.{i} {net[1:]}" for i in (1, 2, 3, 5, 6)]


def test_the_order_of_data_is_asked_of_the_vit_wherever_its_name_stands():
    made = forms.get_config("cpu")
    with made.unlocked():
        arms = {name.replace("-vit_narrow-", "-attention-"): arm for name, arm in made.arms.items()}
        made.arms = arms
    asked = {h.id: h for h in study.hypotheses_of(made.lock())}
    expected = ("cifar10-attention-siddo", "cifar10-attention-disdo")
    assert asked["H5.6 narrow"].contrasts[0].groups == expected


def test_the_papers_nets_are_asked_by_their_own_ids():
    every = {h.id: h for h in study.hypotheses_of(config(""))}
    assert not any(every[f"H5.{i}"].missing for i in (1, 2, 3, 5, 6))


@pytest.mark.parametrize("change", [{"data": {"num_train": 5_000}}, {"model": {"width": 32}}])
def test_fewer_images_or_another_width_are_not_the_papers(change):
    made = forms.get_config("")
    made.update(change)
    every = study.hypotheses_of(made.lock())
    assert all(h.missing for h in every if h.id in {f"H5.{i}" for i in range(1, 7)})
    asked = [h.id for h in every if not h.missing]
    assert asked == [*(f"H5.{i} other" for i in range(1, 7)), *(f"D.{i}" for i in range(1, 7))]


# What is shown.


def test_excess_agreement_has_its_own_control():
    """A student that copies its teacher's errors and nothing else, beside a control that errs."""
    label = np.array([0, 0, 1, 1])
    say = {"teacher": [0, 1, 1, 2], "student": [0, 1, 1, 2], "control": [0, 0, 1, 1]}

    class View:
        def members(self, arm):
            return (Member(3),)

        def arrays(self, arm, name, member):
            return {"logits": np.eye(3)[say[arm]]}

        def data(self, arm, member):
            asked = Examples(np.arange(4.0) + (arm == mixed), label)
            return Splits(asked, asked)

    mixed = ""
    rows = list(ExcessAgreement(("student",), "teacher", "control")(View()))
    found = {metric: float(estimate.value) for _, _, metric, _, estimate in rows}
    assert found == {"wrong/excess_agreement": 1.0, "right/excess_agreement": 0.0}
    mixed = "control"
    with pytest.raises(UserError, match="with arm 'control', member 3, and their first 4 examples"):
        list(ExcessAgreement(("student",), "teacher", "control")(View()))


def test_distances_are_shown_over_those_of_siddo():
    metric = "teacher/activation_distance"
    rows = [
        {"study": "s", "arm": f"digits-mlp-{arm}", "seed": seed, "step": 3, "of": {},
         "metric": metric, "value": value + seed, "standard_error": 0.0}
        for (arm, value), seed in itertools.product({"siddo": 2.0, "kd_90": 0.5}.items(), (0, 1))
    ]  # fmt: skip
    (table,) = shows.tables(rows)
    at = table.columns.index("activation distance")
    assert [line[at].split(" ")[-1] for line in table.rows] == ["(1.00)", "(0.40)"]


def test_ways_end_at_the_distance_that_was_measured():
    """A model that walks to its teacher's end in three epochs, and one that stays."""
    end = np.array([[4.0, 0.0], [0.0, 4.0]])
    paths = {"teacher": [0 * end, end], "kd_90": [-end, 0 * end, end], "siddo": [-end] * 3}
    stored = {f"digits-mlp-{name}": {"0": {"logits": np.stack(x)}} for name, x in paths.items()}
    rows = [{"arm": arm, "metric": "test/nll"} for arm in (*stored, "digits-mlp-disdo")]

    def arrays(arm, name, *, every_step=False):
        assert name == shows.TRAJECTORY and every_step
        return stored.get(arm, {})

    approach, landscape = shows.figures(rows, arrays)
    assert [f.name for f in (approach, landscape)] == [
        "approach-digits-mlp",
        "landscape-digits-mlp",
    ]
    (axis,) = approach.draw().axes
    far = functional.activation_distance(-end, end)
    means = [line.get_ydata() for line in axis.lines if line.get_linewidth() > 1]
    np.testing.assert_allclose(means[1], [far] * 3)  # siddo, after the teacher
    np.testing.assert_allclose(means[2], [far, far / 2, 0], atol=1e-12)
    (axis,) = landscape.draw().axes
    assert "root of JSD" in axis.get_xlabel()


def test_conditions_with_other_images_than_the_teacher_s_are_left_out():
    """--config.evaluate.trajectory.num_examples sets those of arms that have no number of their
    own."""
    shapes = {"teacher": 5, "kd_90": 5, "kd_90_half": 5, "disdo": 5, "siddo": 3, "entropy_90": 3}
    draw = np.random.default_rng(0).standard_normal
    stored = {
        f"digits-mlp-{name}": {"0": {"logits": draw((4, number, 2))}}
        for name, number in shapes.items()
    }
    rows = [{"arm": arm, "metric": "test/nll"} for arm in stored]

    def arrays(arm, name, *, every_step=False):
        return stored[arm]

    approach, landscape = shows.figures(rows, arrays)
    for figure in (approach, landscape):
        assert "on 5 test images" in figure.caption
        assert "; without siddo, entropy_90 (no outputs for these images); n" in figure.caption
    (axis,) = approach.draw().axes
    assert len([line for line in axis.lines if line.get_linewidth() > 1]) == 4
    assert "All begin in the same weights, but disdo and kd_90_half;" in landscape.caption
    landscape.draw()


def test_what_begins_elsewhere_is_named_only_where_it_is_shown():
    stored = {"digits-mlp-teacher": {"0": {"logits": np.eye(3)[None].repeat(2, 0)}}}
    _, landscape = shows.figures(
        [{"arm": "digits-mlp-teacher", "metric": "test/nll"}],
        lambda arm, name, *, every_step=False: stored[arm],
    )
    assert "All begin in the same weights; n = 1 seed." in landscape.caption
