"""Paper 6 as a study: its config, its arms, what it asks and shows, and a run through the door."""

import json

import numpy as np
import pytest

from configs import explicit_regularisation as forms
from sharpjax import schema, workdir
from sharpjax.errors import UserError
from sharpjax.metrics.reliability import Diagram
from sharpjax.protocol.claims import check, contrasts, families, quantities
from sharpjax.protocol.judging.corrections import levels
from sharpjax.runs import study
from sharpjax.studies.explicit_regularisation import asks, shows
from sharpjax.studies.papers import cells, paper6
from sharpjax.train import planning
from tests.asked import assert_named_after_its_data
from tests.commands import assert_one_line, launch, launch_probed, read_rows

SMOKE = "--config=configs/explicit_regularisation.py:smoke"
NETS = tuple(forms.NARROW)


def config(form, **changes):
    made = forms.get_config(form)
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return made.lock()


def asked_of(form):
    return [h for h in study.hypotheses_of(config(form)) if not h.missing]


# The whole of it, through the door.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "smoke"
    done = launch(SMOKE, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run(finished):
    folder, said = finished
    assert "H6.2 mlp (authors)" in said and "N.3" in said
    assert workdir.verify(folder) == []
    plan = study.plan_of(config("smoke"))
    rows = read_rows(folder)
    for arm in planning.arms(plan):
        own = [r for r in rows if r["arm"] == arm]
        assert {r["metric"] for r in own} == {*planning.metrics(plan, arm)} - (
            {"train/alive"} if arm.endswith("-es") else set()
        )
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    kinds = ("sharpness", "reliability", "reliability-scaled", "landscape")
    assert figures == {f"{kind}-digits-mlp.png" for kind in kinds}
    assert "authors' code" in (folder / "report.md").read_text().replace("&#x27;", "'")


def test_early_stopping_takes_the_best_of_the_validation_split(finished):
    """Where the last epoch is the first best one, the two arms are one model."""
    folder, _ = finished
    rows = read_rows(folder)
    plan, seen = study.plan_of(config("smoke")), set()
    per_epoch = planning.steps_per_epoch(plan, planning.arms(plan)["digits-mlp-baseline"])
    for arm in (name for name in planning.arms(plan) if not name.endswith("-es")):
        for seed in (0, 1):
            value = {
                (r["arm"], r["metric"], r["step"]): r["value"] for r in rows if r["seed"] == seed
            }
            each = [value[arm, "validation/accuracy", i * per_epoch] for i in (1, 2)]
            is_last = each[1] > each[0]
            pair = [value[name, "test/nll", 2 * per_epoch] for name in (arm, f"{arm}-es")]
            assert (pair[0] == pair[1]) == is_last
            seen.add(is_last)
    assert seen, "seeds were looked at"


# What a config holds.


def test_each_form_has_its_arms():
    for form, nets, data_sets in (("", forms.PAPER, 2), ("cpu", forms.NARROW, 2)):
        made = config(form)
        arms = schema.complete_arms(made)
        assert len(arms) == 4 * len(nets) * data_sets == 24 and len(made.seeds) == 10
        for name, arm in arms.items():
            data_set, net, regulariser = name.split("-")
            assert (arm.data.name, arm.model.name) == (data_set, net)
            assert arm.data.augment == (regulariser == "augmentation")
            assert (arm.model.dropout > 0) == (regulariser == "dropout")
            assert (arm.optim.weight_decay > 0) == (regulariser == "weight_decay")
            assert arm.data.num_validation > 0 and arm.optim.rho == 0
    assert config("").arms["cifar100-vgg19-baseline"].train.epochs == 75


def test_without_validation_data_it_is_refused_at_the_door():
    done = launch_probed(SMOKE, "--config.data.num_validation=0")
    assert done.stdout.strip() == "imported:"
    assert_one_line(done, 2, "num_validation=0", "some of the training images")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluate__sharpness__num_examples": 65}, "num_examples=65 is above the 64 training"),
        ({"evaluate__landscape__num_examples": 65}, "landscape.num_examples=65 is above the 64"),
        ({"evaluate__sharpness__information_examples": 33}, "=33 is above the 32 num_examples"),
        ({"evaluate__sharpness__microbatch_size": 5}, "=5 does not divide num_examples=32"),
        ({"arms__digits-mlp": {}}, "<data set>-<net>-<regulariser>"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, says):
    made = forms.get_config("smoke")
    with made.unlocked():
        for path, value in changes.items():
            *tables, last = path.split("__")
            node = made
            for table in tables:
                node = node[table]
            node[last] = value
    with pytest.raises(UserError, match=says):
        schema.check(made.lock(), {})


def test_an_arm_is_named_after_its_data():
    assert_named_after_its_data(forms.get_config("cpu"), "cifar10-vit_narrow-dropout")


def test_a_net_that_the_authors_code_cannot_divide_is_refused():
    made = forms.get_config("smoke")
    made.model.name, made.model.width = "small_conv", 4
    for arm in made.arms.values():
        arm.model = {}
    with pytest.raises(UserError, match="Conv_1/bias.*has not a number for each of its 128"):
        study.plan_of(made.lock())


# What is asked.


@pytest.mark.parametrize("change", [{"data": {"num_train": 5_000}}, {"model": {"width": 32}}])
def test_fewer_images_or_another_width_are_not_the_papers(change):
    whole = {h.id for h in study.hypotheses_of(config("")) if not h.missing}
    made = forms.get_config("")
    made.update(change)
    asked = {h.id for h in study.hypotheses_of(made.lock()) if not h.missing}
    assert "H6.1" in whole and "H6.1 vgg19" not in whole
    assert not any(f"H6.{i}" in asked for i in range(1, 10))
    assert {*(f"H6.{i} vgg19" for i in range(1, 9)), "H6.9 other"} <= asked


def test_the_narrow_nets_are_asked_one_by_one_and_together():
    every = study.hypotheses_of(config("cpu"))
    assert [h.id for h in every if h.missing] == [f"H6.{i}" for i in range(1, 10)]
    of_net = [[f"H6.{i} {net}" for i in range(1, 9)] for net in NETS]
    again = [[f"H6.{i} {net} (authors)" for i in range(1, 4)] for net in NETS]
    ids = [name for pair in zip(of_net, again, strict=True) for part in pair for name in part]
    own = [f"N.{i}" for i in range(1, 5)]
    assert [h.id for h in every if not h.missing] == [*ids, "H6.9 narrow", *own]


def test_the_papers_nets_are_asked_by_their_own_ids():
    every = {h.id: h for h in study.hypotheses_of(config(""))}
    assert not any(every[f"H6.{i}"].missing for i in range(1, 9))
    assert "two layers after its last block" in every["H6.9"].missing
    assert not every["H6.9 cifar10-resnet20/vgg19 cifar100-resnet20/vgg19"].missing


@pytest.mark.parametrize("form", ["cpu", "quick", "smoke"])
def test_all_that_is_asked_is_measured_and_can_be_decided(form):
    """Every metric is one of its arm; in ten seeds each family can reject (2^-10)."""
    asked, plan = asked_of(form), study.plan_of(config(form))
    there = {arm: {*planning.metrics(plan, arm)} for arm in planning.arms(plan)}
    check(asked, arms=tuple(there), metrics=set().union(*there.values()))
    members = {}
    for hypothesis in asked:
        for contrast, family in families(hypothesis):
            members.setdefault(family, []).append((contrast, hypothesis))
            for quantity, group in zip(quantities(contrast), contrast.groups, strict=True):
                assert all(quantity.metric in there[arm] for arm in group.split("|"))
    for family, own in members.items():
        hypothesis = own[0][1]
        count = len({repr(contrast) for contrast, _ in own})
        assert levels(hypothesis.alpha, count, hypothesis.correction)[0] >= 2.0**-10, family


def test_metrics_of_the_paper_have_a_place():
    """By the definitions, and three of them by the authors' code; all others stay."""
    metrics = {q.metric for h in paper6.HYPOTHESES for c in contrasts(h) for q in quantities(c)}
    right, theirs = asks.right("train[:8]"), asks.theirs("train[:8]")
    assert {m for m in metrics if m.startswith("train/")} == set(right) == set(theirs)
    assert sum(right[m] != theirs[m] for m in right) == 3
    (one, *_) = cells.measured_as(paper6.HYPOTHESES, right)
    found = {q.metric for c in contrasts(one) for q in quantities(c)}
    assert found == {"test/error", *(right[f"train/{m}"] for m in paper6.MEASURES)}


# What is shown.


def test_one_diagram_of_several_seeds():
    edges, empty = np.array([0, 0.5, 1.0]), np.nan
    one = Diagram(edges, np.array([2, 0]), np.array([0.4, empty]), np.array([0.5, empty]), *2 * [0])
    two = Diagram(edges, np.array([6, 4]), np.array([0.2, 0.8]), np.array([0.1, 0.75]), *2 * [0])
    both = shows.over_seeds([one, two])
    np.testing.assert_array_equal(both.count, [8, 4])
    np.testing.assert_allclose(both.confidence, [0.25, 0.8])
    np.testing.assert_allclose(both.accuracy, [0.2, 0.75])
    np.testing.assert_allclose([both.low, both.high], [[0.1, 0.75], [0.5, 0.75]])


def test_the_table_stands_beside_the_papers():
    def row(arm, metric, value, seed):
        return {"study": "s", "arm": arm, "seed": seed, "step": 3, "of": {}, "metric": metric,
                "value": value, "standard_error": 0.0}  # fmt: skip

    arm, where = "cifar10-vgg19-baseline-es", "train[:512]"
    named = {"test/error": 0.25, f"{where}/fisher_rao": 1.5, f"{where}/authors/fisher_rao": 9.0}
    rows = [row(arm, name, value + 0.5 * seed, seed) for name, value in named.items()
            for seed in (0, 1)]  # fmt: skip
    (table,) = shows.tables(rows)
    (line,) = table.rows
    found = list(zip(table.columns, line, strict=True))
    assert ("error", "0.50 ± 0.25") in found and ("Fisher-Rao norm", "1.75 ± 0.25") in found
    at = table.columns.index("Fisher-Rao norm")
    assert line[at + 1].startswith("9.25") and line[at + 2] == "0.8"
    assert shows.tables([row(arm, "test/error", 0.1, 0)]) == ()
    assert json.dumps(table.caption)
