"""Distances between models within an arm, to a reference, across arms; ranks from rows."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpjax.data import Examples, Splits
from sharpjax.errors import UserError
from sharpjax.metrics import disagreement
from sharpjax.train.measures import Across, MeanRank, ToReference, Within, at_end
from sharpjax.train.plan import Compare, Derive, Member, Ref, Teacher
from sharpjax.train.results import of
from tests.plans import a_plan, an_arm, rows, run, values, with_outputs
from tests.test_stages import SCALE


def logits(*predicted):
    return np.eye(3)[list(predicted)]


outputs = st.lists(st.integers(0, 2), min_size=4, max_size=4).map(lambda own: logits(*own))


@given(outputs, outputs, outputs)
def test_disagreement_is_a_distance(a, b, c):
    """Of predictions: 0 to itself, symmetric, a triangle; whatever the scale of the outputs."""
    assert disagreement(a, a) == 0 == disagreement(a, 3 * a + 1)
    assert disagreement(a, b) == disagreement(b, a) == np.mean((a != b).any(1))
    assert disagreement(a, c) <= disagreement(a, b) + disagreement(b, c)


def test_disagreement_of_ties_and_of_nothing():
    assert disagreement(np.zeros((2, 3)), logits(0, 1)) == 0.5
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="a is not finite in 2 of 2"):
            disagreement(np.full((2, 3), bad), logits(0, 1))


@dataclasses.dataclass
class View:
    """What arms left: predictions by arm and member."""

    models: dict
    table: tuple = ()

    def members(self, arm):
        return tuple(member for own, member in self.models if own == arm)

    def arrays(self, arm, name, member):
        own = {(a, m.key): x for (a, m), x in self.models.items()}.get((arm, member.key))
        return {} if name != "outputs" or own is None else {"logits": logits(*own)}

    def data(self, arm, member):
        both = Examples(np.zeros((9, 2)), np.zeros(9, np.int32))
        return Splits(both, both._replace(label=np.arange(9) % 3))

    def rows(self, arm):
        return [row for row in self.table if row["arm"] == arm]


def named(measure, view):
    return {(arm, m.key, *own): float(x.value) for arm, m, _, own, x in measure(view)}


ZERO, ONE, TWO = Member(0), Member(1), Member(2)
A = {("a", ZERO): (0, 0, 0, 0), ("a", ONE): (0, 0, 1, 1), ("a", TWO): (0, 2, 1, 1)}


def test_within_an_arm():
    measure = Within("test/disagreement", disagreement, ("a",))
    # Distances .5, .75 and .25.
    assert named(measure, View(A)) == {
        ("a", "0"): 0.625, ("a", "1"): 0.375, ("a", "2"): 0.5
    }  # fmt: skip
    by_pair = dataclasses.replace(measure, by_pair=True)
    assert named(by_pair, View(A)) == {
        ("a", "0", ("pair", (0, 1))): 0.5,
        ("a", "0", ("pair", (0, 2))): 0.75,
        ("a", "1", ("pair", (1, 2))): 0.25,
    }
    # Of one model there is nothing to say, nor of one that left nothing.
    assert not named(measure, View({("a", ZERO): (0, 0)}))
    assert named(measure, View(A | {("a", ONE): None})) == {("a", "0"): 0.75, ("a", "2"): 0.75}
    copies = {("a", Member(0, of(copy=i))): own for i, own in enumerate(A.values())}
    assert ("a", "0-copy=1", ("pair", ("0-copy=1", "0-copy=2"))) in named(by_pair, View(copies))
    assert measure.metrics == ("test/disagreement",)


def test_a_model_without_finite_outputs_has_no_row_and_is_nobodys_partner(monkeypatch):
    """Else one that overflows in few bits would end the stage, or make a mean NaN."""
    stored = View.arrays

    def spoilt(self, arm, name, member):
        found = stored(self, arm, name, member)
        return {n: x * np.nan if member == TWO else x for n, x in found.items()}

    monkeypatch.setattr(View, "arrays", spoilt)
    measure = Within("test/disagreement", disagreement, ("a",))
    assert named(measure, View(A)) == {("a", "0"): 0.5, ("a", "1"): 0.5}


@pytest.mark.parametrize("column", ["input", "label"])
def test_outputs_for_other_examples_are_refused(column):
    """Else a distance of models that were asked other things, or in another order, looks sound."""

    class Mixed(View):
        last = 4  # of the nine examples, the first that differs

        def data(self, arm, member):
            train, test, _ = super().data(arm, member)
            test = test._replace(**{column: np.array(getattr(test, column))})
            if arm == "b":
                getattr(test, column)[self.last] += 1
            return Splits(train, test)

    view = Mixed(A | {("b", ZERO): (0, 0, 0, 1), ("b", ONE): (0, 0, 1, 1)})
    measure = ToReference("base/disagreement", disagreement, ("b",), reference="a")
    assert named(measure, view) == {("b", "0"): 0.25, ("b", "1"): 0}  # only four were stored
    view.last = 3
    for other in (measure, Across("disagreement", disagreement, ("b", "a"))):
        with pytest.raises(
            UserError,
            match="with arm 'a', member 0, and their first 4 examples of the split 'test' are not "
            "the same",
        ):
            named(other, view)


def test_to_the_model_of_the_same_seed():
    first, second = (Member(0, of(copy=i)) for i in (1, 2))
    view = View(A | {("b", first): (0, 0, 0, 1), ("b", second): (1, 1, 1, 0)})
    measure = ToReference("base/disagreement", disagreement, ("b",), reference="a")
    assert named(measure, view) == {("b", "0-copy=1"): 0.25, ("b", "0-copy=2"): 0.75}
    by_seed = dataclasses.replace(measure, by_seed=True)
    assert named(by_seed, view) == {("b", "0"): 0.5}
    # The other way round: the mean over all models of the seed; of seeds without one, nothing.
    measure = dataclasses.replace(measure, arms=("a",), reference="b")
    assert named(measure, view) == {("a", "0"): 0.5}
    # In its own arm it is the others of the seed.
    assert not named(dataclasses.replace(measure, reference="a"), view)
    within = dataclasses.replace(measure, arms=("b",), reference="b")
    assert set(named(within, view).values()) == {1.0}


def test_to_the_teachers():
    def student(seed, *refs):
        return Member(seed, teacher=Teacher("ensemble", refs))

    both, last = student(5, Ref("a", 0), Ref("a", 2)), student(6, Ref("a", 1))
    view = View(A | {("b", both): (0, 0, 0, 0), ("b", last): (0, 0, 1, 0), ("b", ZERO): (1,) * 4})
    measure = ToReference("teacher/disagreement", disagreement, ("b",))
    assert named(measure, view) == {("b", "5"): 0.375, ("b", "6"): 0.25}
    early = View(A | {("b", student(5, Ref("a", 0, at="best"))): (0, 0, 0, 0)})
    with pytest.raises(UserError, match="a teacher of arm 'b' is at 'best'; make a derived arm"):
        named(measure, early)


def test_across_arms():
    view = View(A | {("b", ZERO): (0, 0, 0, 0), ("c", ONE): (2, 2, 2, 2)})
    measure = Across("test/disagreement", disagreement, ("a", "b", "c"))
    found = named(measure, view)
    assert found["b", "0", ("to", "a")] == pytest.approx((0 + 0.5 + 0.75) / 3)
    assert found["a", "1", ("to", "b")] == 0.5 and found["a", "2", ("to", "c")] == 0.75
    assert found["b", "0", ("to", "c")] == found["c", "1", ("to", "b")] == 1
    assert len(found) == 3 * 2 + 2 + 2


def test_a_distance_may_read_the_labels():
    def right_alone(a, b, label):
        return np.mean((a.argmax(1) == label) & (b.argmax(1) != label))

    measure = ToReference("right", right_alone, ("a",), reference="b")
    # Labels are 0, 1, 2, 0.
    view = View({("a", ZERO): (0, 1, 1, 0), ("b", ZERO): (0, 0, 2, 1)})
    assert named(measure, view) == {("a", "0"): 0.5}
    assert named(dataclasses.replace(measure, split="train"), view) == {("a", "0"): 0.25}


def a_row(arm, seed, metric, value, step=4, **own):
    return {"arm": arm, "seed": seed, "metric": metric, "value": value, "step": step, "of": own}


def test_mean_rank():
    """Three arms by two metrics: ranks 1, 2, 3 and 1.5, 3, 1.5 of seed 0."""
    found = {
        ("error", 0): (0.1, 0.2, 0.3), ("accuracy", 0): (0.9, 0.7, 0.9),
        ("error", 1): (0.3, 0.2, 0.1), ("accuracy", 1): (0.7, 0.8, 0.9),
        ("error", 2): (0.1, None, 0.1), ("accuracy", 2): (0.7, 0.8, 0.9),
    }  # fmt: skip
    table = [a_row(arm, seed, metric, value) for (metric, seed), each in found.items()
             for arm, value in zip("abc", each, strict=True)]  # fmt: skip
    # What is none of its business: other steps, and coordinates.
    table += [a_row("a", 0, "error", 9, step=2), a_row("a", 0, "error", 9, layer="head")]
    view = View({(arm, m): None for arm in "abc" for m in (ZERO, ONE, TWO)}, tuple(table))
    over = (("error", "less"), ("accuracy", "greater"))
    assert named(MeanRank("test/mean_rank", ("a", "b", "c"), over), view) == {
        ("a", "0"): 1.25, ("b", "0"): 2.5, ("c", "0"): 2.25,
        ("a", "1"): 3, ("b", "1"): 2, ("c", "1"): 1,
    }  # fmt: skip
    assert at_end(view, "a", "error") == {
        (0, ()): 0.1, (1, ()): 0.3, (2, ()): 0.1, (0, (("layer", "head"),)): 9
    }  # fmt: skip


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 4), min_size=1, max_size=3))
def test_ranks_add_up(table):
    """Whatever the values, the mean over arms is that of 1 to 4."""
    arms = ("a", "b", "c", "d")
    drawn = [a_row(arm, 0, f"m{i}", x) for i, each in enumerate(table)
             for arm, x in zip(arms, each, strict=True)]  # fmt: skip
    view = View({(arm, ZERO): None for arm in arms}, tuple(drawn))
    over = tuple((f"m{i}", "less") for i in range(len(table)))
    ranks = named(MeanRank("rank", arms, over), view)
    assert sum(ranks.values()) == pytest.approx(10) and min(ranks.values()) >= 1
    for a, b in itertools.combinations(range(4), 2):
        if all(each[a] <= each[b] for each in table):
            assert ranks[arms[a], "0"] <= ranks[arms[b], "0"]


def test_measures_of_a_run(tmp_path):
    """All of them in one stage, over trained, derived and taught models."""
    members = [Member(s, teacher=Teacher("model", (Ref("a", s),))) for s in (0, 1)]
    arms = ("a", "scaled", "student")
    plan = a_plan(
        an_arm("a", evaluators=with_outputs()),
        Derive("scaled", "a", SCALE, with_outputs(), outputs=SCALE.outputs),
        an_arm("student", members, evaluators=with_outputs()),
        Compare(
            "distances",
            arms,
            (
                Within("test/disagreement", disagreement, arms, by_pair=True),
                ToReference("base/disagreement", disagreement, ("scaled",), reference="a"),
                ToReference("teacher/disagreement", disagreement, ("student",)),
                MeanRank("test/mean_rank", ("a", "student"), (("test/nll", "less"),)),
            ),
        ),
    )
    ran = run(plan, tmp_path / "run")

    def between(a, b):
        return disagreement(*(ran.library.arrays(arm, "outputs", m)["logits"] for arm, m in (a, b)))

    pairs = rows(tmp_path / "run", arm="a", metric="test/disagreement")
    assert [(r["seed"], r["of"]) for r in pairs] == [(0, {"pair": [0, 1]})]
    assert pairs[0]["value"] == between(("a", ZERO), ("a", ONE))
    base = values(tmp_path / "run", arm="scaled", metric="base/disagreement")
    assert len(base) == 4
    for (seed, step, *own), value in base.items():
        member = Member(seed, tuple(own))
        assert step == 8 and value == between(("scaled", member), ("a", Member(seed)))
    taught = values(tmp_path / "run", arm="student", metric="teacher/disagreement")
    for seed in (0, 1):
        assert taught[seed, 8] == between(("student", Member(seed)), ("a", Member(seed)))
        ranks = [values(tmp_path / "run", arm=arm, metric="test/mean_rank")[seed, 8]
                 for arm in ("a", "student")]  # fmt: skip
        assert sorted(ranks) in ([1, 2], [1.5, 1.5])
